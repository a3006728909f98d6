//! What a step does and what a skipped step leaves alone: checks 16 to 21.

mod common;

use burn::module::Module;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, ModuleOptimizer, SgdConfig};
use burn::tensor::Tensor;
use common::{Net, Weights, bits, device, floats, gradients, odd_scale, step, values, vec};
use halfseg_amp::{
    DynamicScale, GradScaler, OverflowPass, Policy, Precision, Scaling, StepOutcome,
};
use halfseg_amp::{autocast, ops};

fn sgd() -> ModuleOptimizer {
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    SgdConfig::new()
        .with_momentum(Some(momentum))
        .with_weight_decay(Some(WeightDecayConfig::new(5e-4)))
        .init()
}

/// All of an optimizer's state, counters included.
fn state(optimizer: &ModuleOptimizer) -> Vec<u8> {
    optimizer
        .into_bytes()
        .expect("the state serializes")
        .to_vec()
}

fn loss(model: &Net, seed: u32) -> Tensor<1> {
    autocast(&Policy::f16(), || model.loss(seed))
}

#[test]
fn check_16_a_skipped_step_changes_nothing() {
    // AdamW counts its steps, SGD with momentum has the state of the published recipe.
    for mut optimizer in [sgd(), AdamWConfig::new().init()] {
        let mut scaler = GradScaler::dynamic(DynamicScale::torch());
        let mut model = Net::new(&device());
        for seed in [1, 2] {
            let (updated, outcome) = step(&mut scaler, &mut optimizer, 0.01, model, |model| {
                loss(model, seed)
            });
            assert!(outcome.stepped());
            model = updated;
        }
        let before = (bits(&model), state(&optimizer));
        let statistics = floats(model.bn.running_mean.value_sync(), f32::to_bits);

        let (model, outcome) = step(&mut scaler, &mut optimizer, 0.01, model, |model| {
            let loss = loss(model, 3) + model.overflowing();
            // The forward pass did change the statistics.
            let changed = floats(model.bn.running_mean.value_sync(), f32::to_bits);
            assert_ne!(changed, statistics);
            loss
        });
        let StepOutcome::Skipped {
            scale,
            next_scale,
            culprits,
            pass,
            non_finite_forward,
            ..
        } = &outcome
        else {
            panic!("the step has an overflow");
        };
        assert_eq!(culprits, &["spare"]);
        assert_eq!(*pass, OverflowPass::Backward);
        assert!(non_finite_forward.is_empty());
        assert_eq!(
            (*scale, *next_scale, scaler.current_scale()),
            (65536.0, 32768.0, 32768.0)
        );
        assert_eq!((bits(&model), state(&optimizer)), before);
        assert_eq!(
            outcome.to_string(),
            "skipped, backward overflow at scale 65536 (now 32768) in spare"
        );

        // And the next step is taken.
        let (model, outcome) = step(&mut scaler, &mut optimizer, 0.01, model, |model| {
            loss(model, 4)
        });
        assert!(outcome.stepped());
        assert_ne!(bits(&model), before.0);
        assert_ne!(state(&optimizer), before.1);
    }
}

#[test]
fn a_run_with_a_skipped_step_equals_the_run_without_it() {
    let start = Net::new(&device());
    let run = |seeds: &[(u32, bool)]| {
        let mut optimizer = sgd();
        // A fixed scale, so that both runs round alike.
        let mut scaler = GradScaler::fixed(1024.0);
        // A copy that shares no running statistics.
        let mut model = start.valid().train();
        for (seed, overflow) in seeds {
            let (updated, outcome) =
                step(
                    &mut scaler,
                    &mut optimizer,
                    0.01,
                    model,
                    |model| match overflow {
                        true => loss(model, *seed) + model.overflowing(),
                        false => loss(model, *seed),
                    },
                );
            assert_eq!(outcome.stepped(), !overflow);
            model = updated;
        }
        bits(&model)
    };
    // The last step shows the momentum.
    let with = run(&[(1, false), (9, true), (2, false), (3, false)]);
    assert_eq!(with, run(&[(1, false), (2, false), (3, false)]));
}

#[test]
fn an_outcome_tells_people_and_programs_what_overflowed() {
    let mut scaler = GradScaler::mmcv_static();
    let mut optimizer = SgdConfig::new().init();
    let model = Net::new(&device());
    let (_, outcome) = step(&mut scaler, &mut optimizer, 0.1, model, |model| {
        model.overflowing()
    });
    assert_eq!(
        outcome.to_string(),
        "skipped, backward overflow at scale 512 (now 512) in spare"
    );
    let json = serde_json::to_value(&outcome).unwrap();
    let expected = serde_json::json!({
        "result": "skipped",
        "scale": 512.0,
        "next_scale": 512.0,
        "culprits": ["spare"],
        "pass": "backward",
        "non_finite_forward": [],
        "at_floor": false,
    });
    assert_eq!(json, expected);

    // Scales are printed to the last digit.
    let mut scaler = GradScaler::dynamic(DynamicScale::megatron());
    let model = Net::new(&device());
    let (_, outcome) = step(&mut scaler, &mut optimizer, 0.1, model, |model| {
        model.overflowing()
    });
    let said = outcome.to_string();
    assert!(
        said.contains("at scale 4294967296 (now 4294967296)"),
        "{said}"
    );

    // Weights that are infinite make the loss infinite: all gradients with it.
    let model = Net::new(&device());
    let (_, outcome) = step(&mut scaler, &mut optimizer, 0.1, model, |model| {
        model.loss(1).mul_scalar(f32::INFINITY)
    });
    let said = outcome.to_string();
    assert!(said.contains("forward overflow"), "{said}");
    assert!(
        said.contains("6 gradients from conv.weight to head.bias"),
        "{said}"
    );
    assert!(
        said.ends_with("; the forward pass was not finite from loss on"),
        "{said}"
    );
}

#[test]
fn an_overflow_of_the_forward_pass_is_traced_to_a_layer() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let model = Net::new(&device());
    let before = bits(&model);
    let (model, outcome) = step(&mut scaler, &mut sgd(), 0.01, model, |model| {
        let x = values([2, 3, 6, 6], 1, &device()).mul_scalar(1e6);
        autocast(&Policy::f16(), || ops::mean(model.forward(x)))
    });
    let StepOutcome::Skipped {
        pass,
        non_finite_forward,
        culprits,
        ..
    } = outcome
    else {
        panic!("1e6 is infinite in f16");
    };
    assert_eq!(pass, OverflowPass::Forward);
    assert_eq!(
        non_finite_forward,
        ["bn.running_mean", "bn.running_var", "loss"]
    );
    assert!(culprits.contains(&"conv.weight".to_owned()));
    assert_eq!(bits(&model), before);
}

#[test]
fn check_17_four_steps_one_of_them_skipped() {
    let seeds = [(1, false), (2, true), (3, false), (4, false)];
    for (policy, tolerance) in [(Policy::disabled(), 1e-7), (Policy::f16(), 1e-3)] {
        let settings = DynamicScale::torch().with_init(128.0).with_interval(1);
        let mut scaler = GradScaler::dynamic(settings);
        let mut optimizer = sgd();
        let mut model = Net::new(&device());
        for (seed, overflow) in seeds {
            let (updated, outcome) = step(&mut scaler, &mut optimizer, 0.01, model, |model| {
                let loss = autocast(&policy, || model.loss(seed));
                if overflow {
                    loss + model.overflowing()
                } else {
                    loss
                }
            });
            assert_eq!(outcome.stepped(), !overflow);
            model = updated;
        }
        assert_eq!(scaler.current_scale(), 512.0);

        // Plain Burn in f32, without the skipped batch.
        let mut optimizer = sgd();
        let mut control = Net::new(&device());
        for (seed, _) in seeds.into_iter().filter(|(_, overflow)| !overflow) {
            let grads = control.loss(seed).backward();
            let grads = burn::optim::GradientsParams::from_grads(grads, &control);
            control = optimizer.step(0.01, control, grads);
        }
        for ((path, found), (_, expected)) in bits(&model).into_iter().zip(bits(&control)) {
            for (found, expected) in found.into_iter().zip(expected) {
                let (found, expected) = (f32::from_bits(found), f32::from_bits(expected));
                let error = (found - expected).abs();
                assert!(error <= tolerance, "{path} {policy:?}: {found} {expected}");
            }
        }
    }
}

#[test]
fn check_18_clipping_after_unscaling_equals_f32() {
    let model = Net::new(&device());
    let gradients_of = |mut scaler: GradScaler, max: f32| {
        scaler.begin(&model);
        let grads = scaler.scale(model.loss(1)).backward(&model);
        let mut grads = scaler.unscale(grads);
        let norm = grads.norm();
        let grads = grads.clip_norm(max);
        let clipped = grads.is_clipped();
        let grads = gradients(&mut scaler, model.clone(), grads);
        let StepOutcome::Stepped {
            grad_norm,
            clipped: reported,
            ..
        } = grads.outcome
        else {
            panic!("no overflow here");
        };
        assert_eq!((grad_norm, reported), (Some(norm), clipped));
        let mut all = vec(grads.of(&model.conv.weight));
        all.extend(vec(grads.of(&model.bn.gamma)));
        all.extend(vec(grads.of(&model.bn.beta)));
        all.extend(vec(grads.of(&model.head.weight)));
        all.extend(vec(grads.of(model.head.bias.as_ref().unwrap())));
        all.extend(vec(grads.of(model.conv.bias.as_ref().unwrap())));
        (all, norm, clipped)
    };
    let (raw, norm, clipped) = gradients_of(GradScaler::disabled(), 1e6);
    assert!(!clipped);
    // The control, in f64 from the raw gradients.
    let exact = raw
        .iter()
        .map(|g| f64::from(*g).powi(2))
        .sum::<f64>()
        .sqrt();
    assert!(
        (f64::from(norm) - exact).abs() <= 1e-6 * exact,
        "{norm} {exact}"
    );
    let max = norm / 4.0;
    let factor = f64::from(max) / (exact + 1e-6);

    for scaler in [
        GradScaler::disabled(),
        GradScaler::mmcv_static(),
        GradScaler::fixed(odd_scale()),
    ] {
        let (found, _, clipped) = gradients_of(scaler, max);
        assert!(clipped);
        for (found, raw) in found.iter().zip(&raw) {
            let expected = f64::from(*raw) * factor;
            let error = (f64::from(*found) - expected).abs();
            // The odd scale rounds each term of the sums that gradients are.
            assert!(error <= 1e-6 * f64::from(max), "{found} {expected}");
        }
        let after = found
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!(after <= f64::from(max) * (1.0 + 1e-6));
    }
}

#[test]
fn check_19_two_micro_batches_are_one_step() {
    let device = device();
    let x = values([4], 1, &device);
    let y = values([4], 2, &device);
    let run = |micro: &[Tensor<1>]| {
        let mut scaler = GradScaler::dynamic(DynamicScale::torch());
        let mut optimizer = sgd();
        let model = Weights::new([1.0, 2.0, 3.0, 4.0], &device);
        scaler.begin(&model);
        let mut sum = None;
        for gradient in micro {
            let loss = model.loss(gradient.clone()).div_scalar(micro.len() as f32);
            let grads = scaler.scale(loss).backward(&model);
            sum = Some(match sum {
                None => grads,
                Some(sum) => grads.accumulate(sum),
            });
        }
        let grads = scaler.unscale(sum.unwrap());
        let (model, outcome) = scaler.step(&mut optimizer, 0.1, model, grads);
        (vec(model.weight.val()), outcome, scaler)
    };
    let full = x.clone().add(y.clone()).div_scalar(2.0);
    let (expected, _, _) = run(&[full]);
    let (found, outcome, scaler) = run(&[x.clone(), y]);
    assert_eq!((scaler.steps(), scaler.skips()), (1, 0));
    assert!(outcome.stepped());
    for (found, expected) in found.into_iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }

    let inf = Tensor::from_floats([0.0, f32::INFINITY, 0.0, 0.0], &device);
    for micro in [[inf.clone(), x.clone()], [x, inf]] {
        let (found, outcome, scaler) = run(&micro);
        assert_eq!(found, [1.0, 2.0, 3.0, 4.0]);
        assert!(!outcome.stepped());
        assert_eq!((scaler.steps(), scaler.skips()), (0, 1));
    }
}

#[test]
fn accumulation_restores_the_statistics_of_all_micro_batches() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let model = Net::new(&device());
    let before = bits(&model);
    scaler.begin(&model);
    let first = scaler.scale(loss(&model, 1)).backward(&model);
    // Opening the step again, as a loop that does so per micro-batch, keeps the first memory.
    scaler.begin(&model);
    let second = scaler
        .scale(loss(&model, 2) + model.overflowing())
        .backward(&model);
    let grads = scaler.unscale(first.accumulate(second));
    assert_eq!(grads.culprits(), ["spare"]);
    let (model, outcome) = scaler.step(&mut sgd(), 0.1, model, grads);
    assert!(!outcome.stepped());
    assert_eq!(bits(&model), before);
}

/// What two devices make of their halves of a step: each gets the sums, and skips if one overflows.
#[test]
fn summed_gradients_decide_like_accumulated_ones() {
    let run = |overflow: bool, summed: bool| {
        let mut scaler = GradScaler::dynamic(DynamicScale::torch());
        let model = Net::new(&device());
        scaler.begin(&model);
        // All parameters have a gradient on both.
        let part = |seed| loss(&model, seed) + model.spare.val().sum().mul_scalar(0.0);
        let first = scaler.scale(part(1)).backward(&model);
        let mut second = part(2);
        if overflow {
            second = second + model.overflowing();
        }
        let second = scaler.scale(second).backward(&model);
        let grads = if summed {
            // The rows of the second device, which the first would wait for.
            let (mut rows, mut flags) = (Vec::new(), None);
            let keep = |row: Tensor<1>| flags.insert(row).clone();
            let copied = |all: Vec<Tensor<1>>| {
                rows = all.clone();
                all
            };
            let _ = second.summed(copied, keep);
            let added =
                |all: Vec<Tensor<1>>| all.into_iter().zip(rows).map(|(a, b)| a + b).collect();
            first.summed(added, |row| row + flags.unwrap())
        } else {
            first.accumulate(second)
        };
        let grads = scaler.unscale(grads);
        let (model, outcome) = scaler.step(&mut sgd(), 0.1, model, grads);
        (outcome, bits(&model))
    };
    for overflow in [false, true] {
        let (outcome, model) = run(overflow, true);
        assert_eq!(outcome.stepped(), !overflow);
        assert_eq!((outcome, model), run(overflow, false));
    }
}

#[test]
fn check_20_two_optimizers_one_backoff() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let (a, b) = (Net::new(&device()), Net::new(&device()));
    let before = (bits(&a), bits(&b));
    let (mut optimizer_a, mut optimizer_b) = (sgd(), sgd());
    let state_b = state(&optimizer_b);

    scaler.begin(&a);
    scaler.begin(&b);
    let loss = loss(&a, 1) + loss(&b, 2) + b.overflowing();
    let mut graph = scaler.scale(loss).backward_graph();
    let (grads_a, grads_b) = (graph.take(&a), graph.take(&b));
    let grads_a = scaler.unscale(grads_a).clip_norm(1.0);
    let grads_b = scaler.unscale(grads_b).clip_norm(1.0);
    let (a, outcome_a) = scaler.apply(&mut optimizer_a, 0.1, a, grads_a);
    let (b, outcome_b) = scaler.apply(&mut optimizer_b, 0.1, b, grads_b);
    let update = scaler.update();

    assert!(outcome_a.stepped());
    assert!(matches!(&outcome_b, StepOutcome::Skipped { culprits, .. } if culprits == &["spare"]));
    assert_ne!(bits(&a), before.0);
    assert_eq!(bits(&b), before.1);
    assert_eq!(state(&optimizer_b), state_b);
    assert_eq!(
        (update.from, update.to, update.overflow),
        (65536.0, 32768.0, true)
    );
    assert_eq!(scaler.skips(), 1);
}

#[test]
fn check_21_saving_in_mid_interval_continues_alike() {
    let settings = DynamicScale::megatron()
        .with_init(1000.0)
        .with_growth(1.7)
        .with_interval(3);
    for (before, after) in [
        ("..", ".x..xx......"),
        (".x.", ".x......"),
        ("...x.", "..x.."),
    ] {
        let mut scaler = GradScaler::dynamic(settings.clone());
        common::trajectory(&mut scaler, before);
        let saved = serde_json::to_string(&scaler).unwrap();
        let mut restored: GradScaler = serde_json::from_str(&saved).unwrap();
        assert_eq!(restored, scaler);
        let bits = |scaler: &mut GradScaler| {
            let (scales, _) = common::trajectory(scaler, after);
            scales.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(bits(&mut restored), bits(&mut scaler), "{before}|{after}");
        assert_eq!(restored, scaler);
    }
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let scaler = GradScaler::dynamic(DynamicScale::torch().with_min(1.0));
    let saved = serde_json::to_string(&scaler).unwrap();
    for (valid, broken) in [("\"scale\":65536.0", "\"scale\":0.5"), ("0.5", "1.5")] {
        assert!(saved.contains(valid), "{saved}");
        let broken = saved.replacen(valid, broken, 1);
        assert!(
            serde_json::from_str::<GradScaler>(&broken).is_err(),
            "{broken}"
        );
    }
    for text in ["12x", "-1", "0", "inf", "nan", "1e38", "1e-38", ""] {
        assert!(text.parse::<Scaling>().is_err(), "{text}");
    }
    assert_eq!(
        "mmcv-static".parse::<Scaling>().unwrap(),
        Scaling::Fixed(512.0)
    );
    for name in ["none", "512", "torch", "megatron", "flax", "apex", "keras"] {
        assert_eq!(name.parse::<Scaling>().unwrap().to_string(), name);
    }
}

#[test]
fn a_disabled_scaler_never_skips() {
    let model = Net::new(&device());
    let (_, outcome) = step(
        &mut GradScaler::disabled(),
        &mut sgd(),
        0.1,
        model,
        |model| model.loss(1) + model.overflowing().mul_scalar(1e30),
    );
    assert!(outcome.stepped());
}

#[test]
fn an_abandoned_step_leaves_no_trace() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let model = Net::new(&device());
    let before = (bits(&model), scaler.clone());
    scaler.begin(&model);
    let _ = model.loss(1);
    assert_ne!(bits(&model), before.0);
    scaler.abandon(&model);
    assert_eq!((bits(&model), scaler), before);
}

#[test]
fn statistics_that_wait_in_other_threads_are_restored_too() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let model = Net::new(&device());
    let _ = model.loss(1);
    scaler.begin(&model);
    let before = bits(&model);
    std::thread::scope(|scope| {
        for seed in [2, 3] {
            let model = &model;
            scope.spawn(move || model.loss(seed));
        }
    });
    let grads = scaler
        .scale(loss(&model, 4) + model.overflowing())
        .backward(&model);
    let grads = scaler.unscale(grads);
    let (model, outcome) = scaler.step(&mut sgd(), 0.1, model, grads);
    assert!(!outcome.stepped());
    assert_eq!(bits(&model), before);
}

#[test]
#[should_panic(expected = "call `scaler.begin(&model)` before each forward pass")]
fn a_forgotten_begin_is_noticed() {
    let model = Net::new(&device());
    let _ = GradScaler::mmcv_static().scale(model.loss(1));
}

#[test]
#[should_panic(expected = "gradients of another step or scaler")]
fn gradients_of_an_earlier_step_are_refused() {
    let mut scaler = GradScaler::mmcv_static();
    let model = Net::new(&device());
    scaler.begin(&model);
    let old = scaler.scale(model.loss(1)).backward(&model);
    scaler.abandon(&model);
    scaler.begin(&model);
    let _ = scaler.unscale(old);
}

#[test]
#[should_panic(expected = "the scaler needs f32 master weights")]
fn half_precision_masters_are_refused() {
    let mut scaler = GradScaler::mmcv_static();
    let policy = Policy::f16().with_param(Precision::F16);
    let model = policy.cast_params(Weights::new([1.0], &device()));
    scaler.begin(&model);
    let loss = model.weight.val().sum();
    let _ = scaler.scale(loss).backward(&model);
}

#[test]
fn frozen_parameters_and_their_statistics_are_kept_out() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let mut model = Net::new(&device());
    model.conv = model.conv.freeze();
    model.bn = model.bn.freeze();
    let frozen = (bits(&model.conv), bits(&model.bn));
    let (model, outcome) = step(&mut scaler, &mut sgd(), 0.1, model, |model| {
        loss(model, 1) + model.overflowing()
    });
    assert!(!outcome.stepped());
    let (model, outcome) = step(&mut scaler, &mut sgd(), 0.1, model, |model| loss(model, 1));
    assert!(outcome.stepped());
    assert_eq!((bits(&model.conv), bits(&model.bn)), frozen);
}

#[test]
#[should_panic(expected = "`begin` after `apply` without `update`")]
fn a_forgotten_update_is_noticed() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let model = Net::new(&device());
    let grads = scaler.gradients(&Policy::f16(), &model, |model| model.loss(1));
    let (model, _) = scaler.apply(&mut sgd(), 0.1, model, grads);
    scaler.begin(&model);
}

#[test]
#[should_panic(expected = "`unscale` without gradients")]
fn a_step_without_gradients_is_noticed() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let (model, other) = (Net::new(&device()), Net::new(&device()));
    scaler.begin(&model);
    let grads = scaler.scale(other.loss(1)).backward(&model);
    let _ = scaler.unscale(grads);
}

#[test]
fn gradients_that_were_taken_are_not_taken_again() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let model = Net::new(&device());
    scaler.begin(&model);
    let mut graph = scaler.scale(model.loss(1)).backward_graph();
    assert_eq!(graph.take(&model).len(), 6);
    assert!(graph.take(&model).is_empty());
}

#[test]
fn a_step_that_was_given_up_is_forgotten() {
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let model = Net::new(&device());
    // A loop that leaves the step behind at each stage of it.
    scaler.begin(&model);
    let _ = model.loss(1);
    scaler.begin(&model);
    let _ = scaler.scale(model.loss(2));
    scaler.begin(&model);
    let _ = scaler.gradients(&Policy::f16(), &model, |model| {
        model.loss(3) + model.overflowing()
    });
    let before = bits(&model);
    // A skipped step then restores what was before it, not before the first of those.
    let grads = scaler.gradients(&Policy::f16(), &model, |model| {
        model.loss(4) + model.overflowing()
    });
    assert_ne!(bits(&model), before);
    let (model, outcome) = scaler.step(&mut sgd(), 0.1, model, grads);
    assert!(!outcome.stepped());
    assert_eq!(bits(&model), before);
    assert_eq!((scaler.steps(), scaler.skips()), (0, 1));

    // Nor does a panic in the forward pass stay open.
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        scaler.gradients(&Policy::f16(), &model, |_| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    let (_, outcome) = step(&mut scaler, &mut sgd(), 0.1, model, |model| loss(model, 5));
    assert!(outcome.stepped());
}
