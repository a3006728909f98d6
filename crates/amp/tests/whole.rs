//! Models that cannot be edited: what running them as one operation gives.

#[path = "models/resnet18.rs"]
mod resnet18;
#[path = "models/transformer.rs"]
mod transformer;

mod common;

use burn::module::{Lora, Module, ModuleMapper, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, FloatDType, Int, Tensor};
use common::{again, bits, device, exact, plain_device, policies, values, vec};
use halfseg_amp::{DynamicScale, GradScaler, Op, Policy, Precision, StepOutcome};
use halfseg_amp::{audit, autocast, cast_report, nn, ops};
use resnet18::ResNet18;
use transformer::Transformer;

/// A copy, statistics included, in `dtype`.
fn cast_by_hand<M: Module>(model: &M, dtype: FloatDType) -> M {
    struct Caster(FloatDType);
    impl ModuleMapper for Caster {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = param.base().cast(self.0).detach().require_grad();
            Param::initialized(param.id, value)
        }
    }
    copy(model).map(&mut Caster(dtype))
}

fn images(seed: u32) -> Tensor<4> {
    values([4, 3, 32, 32], seed, &device())
}

fn tokens() -> (Tensor<2, Int>, Tensor<1, Int>) {
    let tokens = [
        [1, 4, 2, 0, 7],
        [3, 3, 6, 5, 1],
        [0, 2, 7, 7, 4],
        [6, 1, 5, 3, 2],
    ];
    let (device, classes) = (device(), [0, 1, 1, 0]);
    (
        Tensor::from_ints(tokens, &device),
        Tensor::from_ints(classes, &device),
    )
}

/// A copy that shares no running statistics.
fn copy<M: Module>(model: &M) -> M {
    model.valid().train()
}

#[test]
fn a_model_with_batch_norm_is_what_casts_by_hand_make_of_it() {
    // The output, and gradients of some weights.
    let run = |model: &ResNet18, forward: &dyn Fn(&ResNet18) -> Tensor<2>| {
        again(|| {
            let y = forward(model);
            let output = exact(y.clone());
            let grads = y.cast(FloatDType::F32).square().mean().backward();
            let layers = [&model.conv1, &model.blocks[7].conv2];
            let grads = layers.map(|layer| layer.weight.val().grad(&grads));
            (output, grads.map(|grad| exact(grad.expect("a gradient"))))
        })
    };
    let model = ResNet18::new(5, 4, &device());
    for (half, policy) in policies() {
        let found = run(&model, &|model| {
            autocast(&policy, || nn::whole(model, images(1), |m, x| m.forward(x)))
        });
        let control = cast_by_hand(&model, half);
        let (output, grads) = run(&control, &|m| m.forward(images(1).cast(half)));
        // In f32, for the f32 weight.
        let grads = grads.map(|(_, bits)| (DType::F32, bits));
        assert_eq!(found, (output, grads));
    }
    // Nothing is done where nothing is in force.
    let x = images(2);
    let found = again(|| {
        let model = copy(&model);
        let (y, report) = cast_report(|| nn::whole(&model, x.clone(), |m, x| m.forward(x)));
        assert_eq!(report.casts, 0);
        (exact(y), bits(&model))
    });
    let expected = again(|| {
        let control = copy(&model);
        (exact(control.forward(x.clone())), bits(&control))
    });
    assert_eq!(found, expected);
}

#[test]
fn statistics_stay_f32_and_near_those_of_a_model_in_f32() {
    for (half, policy) in policies() {
        let bound = match half {
            FloatDType::F16 => 0.005,
            _ => 0.03,
        };
        let [norm, control] = [(); 2].map(|()| BatchNormConfig::new(16).init(&device()));
        for step in 0..80 {
            let x = values([32, 16], step, &device()).add_scalar(3.0);
            control.forward(x.clone());
            let _ = autocast(&policy, || {
                nn::whole(&norm, x, |norm: &BatchNorm, x| norm.forward(x))
            });
        }
        for (found, expected) in [
            (&norm.running_mean, &control.running_mean),
            (&norm.running_var, &control.running_var),
        ] {
            let (found, expected) = (found.value_sync(), expected.value_sync());
            assert_eq!(FloatDType::from(found.dtype()), FloatDType::F32);
            for (found, expected) in vec(found).into_iter().zip(vec(expected)) {
                let error = (found / expected - 1.0).abs();
                assert!(error < bound, "{found} {expected} {half:?}");
            }
        }
        // Inference moves nothing.
        let norm = norm.valid();
        let before = bits(&norm);
        let x = values([2, 16], 1, &plain_device());
        let _ = autocast(&policy, || {
            nn::whole(&norm, x, |norm: &BatchNorm, x| norm.forward(x))
        });
        assert_eq!(bits(&norm), before);
    }
}

#[test]
fn models_learn_and_a_skipped_step_changes_nothing() {
    for (half, policy) in policies() {
        let mut scaler = match half {
            FloatDType::F16 => GradScaler::dynamic(DynamicScale::torch()),
            _ => GradScaler::fixed(1.0),
        };
        let mut optimizer = SgdConfig::new().init();
        let mut model = ResNet18::new(2, 4, &device());
        let mut losses = Vec::new();
        for _ in 0..12 {
            let (updated, outcome) =
                scaler.train_step(&policy, model, &mut optimizer, 0.05, |model| {
                    let y = nn::whole(model, images(3), |model, x| model.forward(x));
                    ops::cross_entropy(y, tokens().1)
                });
            model = updated;
            if let StepOutcome::Stepped { loss, .. } = outcome {
                losses.extend(loss);
            }
        }
        assert!(
            losses.iter().any(|loss| *loss < 0.7 * losses[0]),
            "{half:?}: {losses:?}"
        );

        let before = bits(&model);
        let (model, outcome) = scaler.train_step(&policy, model, &mut optimizer, 0.05, |model| {
            let y = nn::whole(model, images(4), |model, x| model.forward(x));
            ops::mean(y).mul_scalar(f32::INFINITY)
        });
        assert!(!outcome.stepped());
        assert_eq!(bits(&model), before);

        let (mut scaler, mut optimizer) = (scaler.clone(), SgdConfig::new().init());
        let mut model = Transformer::new(8, 16, 2, &device());
        let mut losses = Vec::new();
        for _ in 0..80 {
            let (updated, outcome) =
                scaler.train_step(&policy, model, &mut optimizer, 0.2, |model| {
                    let y = nn::whole(model, tokens().0, |model, x| model.forward(x));
                    ops::cross_entropy(y, tokens().1)
                });
            model = updated;
            if let StepOutcome::Stepped { loss, .. } = outcome {
                losses.extend(loss);
            }
        }
        assert!(
            losses.iter().any(|loss| *loss < 0.7 * losses[0]),
            "{half:?}: {losses:?}"
        );
    }
}

#[test]
fn a_model_has_the_precision_that_the_policy_gives_it() {
    #[derive(Module, Debug)]
    struct Outer {
        foreign: Vec<Linear>,
        own: Linear,
    }
    let linear = || LinearConfig::new(4, 4).init(&device());
    let outer = Outer {
        foreign: vec![linear(), linear()],
        own: linear(),
    };
    let run = |policy: &Policy| {
        let mut policy = policy.clone();
        assert_eq!(policy.bind(&outer), []);
        let x = values([2, 4], 1, &device());
        autocast(&policy, || {
            let y = nn::whole(&outer.foreign, x, |layers, x| {
                layers.iter().fold(x, |x, layer| layer.forward(x))
            });
            [
                FloatDType::from(y.dtype()),
                nn::linear(&outer.own, y).dtype().into(),
            ]
        })
    };
    let (f16, f32) = (FloatDType::F16, FloatDType::F32);
    assert_eq!(run(&Policy::f16()), [f16, f16]);
    assert_eq!(
        run(&Policy::f16().with_module("foreign", Precision::F32)),
        [f32, f16]
    );
    assert_eq!(
        run(&Policy::f16().with_module("own", Precision::F32)),
        [f16, f32]
    );
    assert_eq!(
        run(&Policy::f16().with_op(Op::Model, Precision::F32)),
        [f32, f16]
    );
    let policy = Policy::disabled().with_module("foreign", Precision::F16);
    assert_eq!(run(&policy)[0], f16);

    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run(&Policy::f16().with_module("foreign.1", Precision::F32))
    }));
    let message = *refused.unwrap_err().downcast::<String>().unwrap();
    assert!(
        message.contains("gives none of its own to `0.weight` and f32 to `1.weight`"),
        "{message}"
    );
}

#[test]
fn inputs_of_all_kinds_reach_the_model() {
    let layer = LinearConfig::new(3, 3).init(&device());
    let x = values([2, 3], 1, &device());
    let mask = x.clone().greater_scalar(0.0);
    let order = Tensor::<1, Int>::from_ints([1, 0], &device());
    let inputs = ((x.clone(), Some(x.clone())), vec![mask], order);
    let y = autocast(&Policy::f16(), || {
        nn::whole(&layer, inputs, |layer, ((x, more), masks, order)| {
            let x = x
                .add(more.expect("it was given"))
                .mask_fill(masks[0].clone(), 0.0);
            layer.forward(x).select(0, order)
        })
    });
    assert_eq!(FloatDType::from(y.dtype()), FloatDType::F16);
}

#[test]
fn adapters_are_cast_with_their_base() {
    let base = LinearConfig::new(4, 4).with_bias(false).init(&device());
    let adapted = base.apply_lora(Lora::new(2, 4.0));
    let x = values([2, 4], 1, &device());
    for (half, policy) in policies() {
        let y = autocast(&policy, || {
            nn::whole(&adapted, x.clone(), |layer, x| layer.forward(x))
        });
        assert_eq!(FloatDType::from(y.dtype()), half);
        let grads = y.cast(FloatDType::F32).sum().backward();
        let grads = GradientsParams::from_grads(grads, &adapted);
        // The base is frozen; of the adapter's factors one begins with zeros.
        assert_eq!(grads.len(), 2);
    }
}

#[test]
fn an_audit_sees_a_model_as_one_operation() {
    let model = ResNet18::new(2, 4, &device());
    let before = bits(&model);
    let (_, report) = audit(&model, &Policy::f16(), || {
        nn::whole(&model, images(1), |model, x| model.forward(x))
    });
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| (row.site.as_str(), row.op))
        .collect();
    assert_eq!(rows, [("model", Op::Model)]);
    assert!(report.rows[0].relative_error > 0.0);
    assert_eq!(bits(&model), before);
}
