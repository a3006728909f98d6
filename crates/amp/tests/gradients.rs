//! What can be done with the gradients of a step, and steps in one call.

mod common;

use burn::lr_scheduler::LrScheduler;
use burn::lr_scheduler::LrSchedulerConfig;
use burn::lr_scheduler::constant::ConstantLr;
use burn::lr_scheduler::exponential::ExponentialLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrSchedulerConfig;
use burn::module::{Module, ParamGroup};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::Tensor;
use common::{Net, Weights, bits, device, floats, gradients, values, vec};
use halfseg_amp::{
    DynamicScale, Ema, GradScaler, Policy, ScalerSchedule, SharedScaler, StepOutcome,
    UnscaledGrads, autocast,
};

fn sgd() -> ModuleOptimizer {
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    SgdConfig::new().with_momentum(Some(momentum)).init()
}

/// Two vectors of weights whose gradients are given.
fn pair() -> Vec<Weights> {
    let device = device();
    vec![
        Weights::new([1.0, 2.0, 3.0], &device),
        Weights::new([4.0, 5.0], &device),
    ]
}

fn unscaled(scaler: &mut GradScaler, model: &Vec<Weights>, of: [&[f32]; 2]) -> UnscaledGrads {
    scaler.begin(model);
    let loss = |weights: &Weights, of: &[f32]| weights.loss(Tensor::from_floats(of, &device()));
    let loss = loss(&model[0], of[0]) + loss(&model[1], of[1]);
    let grads = scaler.scale(loss).backward(model);
    scaler.unscale(grads)
}

const FIRST: [f32; 3] = [3.0, -4.0, 0.5];
const SECOND: [f32; 2] = [-12.0, 0.25];

fn taken(scaler: &mut GradScaler, model: &[Weights], grads: UnscaledGrads) -> [Vec<f32>; 2] {
    let grads = gradients(scaler, model.to_vec(), grads);
    [0, 1].map(|place| vec(grads.of(&model[place].weight)))
}

#[test]
fn a_step_in_one_call_is_the_step_in_parts() {
    let start = Net::new(&device());
    let x = |model: &Net, seed: u32| match seed {
        // One of the steps overflows.
        3 => model.loss(seed) + model.overflowing(),
        _ => model.loss(seed),
    };
    let run = |in_one: bool| {
        let (mut optimizer, mut scaler) = (sgd(), GradScaler::dynamic(DynamicScale::torch()));
        let mut model: Net = start.valid().train();
        let mut outcomes = Vec::new();
        for seed in [1, 2, 3, 4] {
            let policy = Policy::f16();
            let (updated, outcome) = if in_one {
                scaler.train_step(&policy, model, &mut optimizer, 0.01, |model| x(model, seed))
            } else {
                scaler.begin(&model);
                let loss = autocast(&policy, || x(&model, seed));
                let grads = scaler.scale(loss).backward(&model);
                let grads = scaler.unscale(grads);
                scaler.step(&mut optimizer, 0.01, model, grads)
            };
            model = updated;
            outcomes.push(outcome);
        }
        (bits(&model), outcomes, scaler)
    };
    let (model, outcomes, scaler) = run(true);
    let (in_parts, same, scaler_in_parts) = run(false);
    assert_eq!((&model, &outcomes), (&in_parts, &same));
    assert_eq!(scaler, scaler_in_parts);
    let stepped: Vec<bool> = outcomes.iter().map(StepOutcome::stepped).collect();
    assert_eq!(stepped, [true, true, false, true]);
}

#[test]
fn a_step_says_its_loss_without_another_transfer() {
    let model = Net::new(&device());
    for mut scaler in [
        GradScaler::mmcv_static(),
        GradScaler::dynamic(DynamicScale::torch()),
    ] {
        // The sum of what was accumulated, as it was before scaling.
        scaler.begin(&model);
        let losses = [1, 2].map(|seed| model.loss(seed).div_scalar(2.0));
        let expected: f32 = losses.iter().map(|loss| vec(loss.clone())[0]).sum();
        let [first, second] = losses.map(|loss| scaler.scale(loss).backward(&model));
        let grads = scaler.unscale(first.accumulate(second));
        assert_eq!(grads.loss(), Some(expected));
        let (_, outcome) = scaler.step_with(model.clone(), grads, |model, _| model);
        assert!(matches!(outcome, StepOutcome::Stepped { loss, .. } if loss == Some(expected)));
    }
    let mut scaler = GradScaler::disabled();
    let grads = scaler.gradients(&Policy::disabled(), &model, |model| model.loss(1));
    assert_eq!(grads.loss(), None);
}

#[test]
fn gradients_leave_a_step_as_an_optimizer_would_have_had_them() {
    let model = Net::new(&device());
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    let all = |grads: &GradientsParams| {
        let weight = grads.get::<4>(model.conv.weight.id).expect("a gradient");
        let bias = grads.get::<1>(model.bn.beta.id).expect("a gradient");
        (floats(weight, f32::to_bits), floats(bias, f32::to_bits))
    };
    let loss = |seed| move |model: &Net| model.loss(seed);
    let grads = scaler
        .gradients(&Policy::f16(), &model, loss(1))
        .clip_norm(0.1);
    let expected = gradients(&mut scaler, model.clone(), grads);
    let grads = scaler
        .gradients(&Policy::f16(), &model, loss(1))
        .clip_norm(0.1);
    let found = grads
        .into_gradients(&mut scaler, &model)
        .expect("no overflow");
    assert_eq!(
        all(&found),
        all(&expected.grads.expect("the step was taken"))
    );
    assert_eq!((found.len(), scaler.steps()), (6, 2));

    // After an overflow they do not; the step is over all the same, and left no trace.
    let before = bits(&model);
    let grads = scaler.gradients(&Policy::f16(), &model, |model| {
        model.loss(2) + model.overflowing()
    });
    assert_ne!(bits(&model), before);
    let overflow = grads
        .into_gradients(&mut scaler, &model)
        .expect_err("an overflow");
    assert_eq!(
        overflow.to_string(),
        "skipped, backward overflow at scale 65536 (now 32768) in spare"
    );
    assert_eq!(bits(&model), before);
    assert_eq!((scaler.current_scale(), scaler.skips()), (32768.0, 1));
    // The next step finds nothing open.
    let grads = scaler.gradients(&Policy::f16(), &model, loss(3));
    assert!(grads.into_gradients(&mut scaler, &model).is_ok());
}

#[test]
fn groups_of_parameters_have_their_own_learning_rates() {
    let model = pair();
    let group = ParamGroup::ids_from_module(model[1].clone());
    let mut rates = ModuleLrSchedulerConfig::new(LrSchedulerConfig::Constant(0.5))
        .with_group(group, LrSchedulerConfig::Constant(0.25))
        .init()
        .unwrap();
    let mut scaler = GradScaler::mmcv_static();
    let mut optimizer = SgdConfig::new().init();
    let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND]);
    let (model, outcome) = scaler.step(&mut optimizer, rates.step(), model, grads);
    assert!(outcome.stepped());
    assert_eq!(
        vec(model[0].weight.val()),
        [1.0 - 1.5, 2.0 + 2.0, 3.0 - 0.25]
    );
    assert_eq!(vec(model[1].weight.val()), [4.0 + 3.0, 5.0 - 0.0625]);
}

#[test]
fn values_are_clipped_as_in_pytorch() {
    for mut scaler in [GradScaler::mmcv_static(), GradScaler::disabled()] {
        let model = pair();
        let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND]).clip_value(3.5);
        assert!(grads.is_clipped());
        let found = taken(&mut scaler, &model, grads);
        assert_eq!(found, [vec![3.0, -3.5, 0.5], vec![-3.5, 0.25]]);
    }
    // Nothing is done where the norm rules out that a value is as large.
    let mut scaler = GradScaler::mmcv_static();
    let model = pair();
    let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND]).clip_value(13.5);
    assert!(!grads.is_clipped());
    // A norm that is taken after values were clipped is theirs; the reported one is not.
    let mut grads = grads.clip_value(3.5).clip_norm(1.0);
    let before = [&FIRST[..], &SECOND].concat();
    let norm = |values: &[f32]| {
        values
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    assert!((f64::from(grads.norm()) - norm(&before)).abs() < 1e-5);
    let found = taken(&mut scaler, &model, grads);
    let clipped = [3.0, -3.5, 0.5, -3.5, 0.25];
    for (found, value) in found.concat().iter().zip(clipped) {
        let expected = f64::from(value) / (norm(&clipped) + 1e-6);
        assert!(
            (f64::from(*found) - expected).abs() < 1e-6,
            "{found} {expected}"
        );
    }
}

#[test]
fn norms_are_clipped_group_by_group() {
    for mut scaler in [GradScaler::mmcv_static(), GradScaler::disabled()] {
        let model = pair();
        let by_id = ParamGroup::ids_from_module(model[0].clone());
        let by_path = ParamGroup::from_path("1.weight");
        let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND])
            .clip_norm_of(&by_id, 1.0)
            .clip_norm_of(&by_path, 100.0);
        let [first, second] = taken(&mut scaler, &model, grads);
        assert_eq!(second, SECOND);
        let norm = 25.25f64.sqrt();
        for (found, before) in first.iter().zip(FIRST) {
            let expected = f64::from(before) / (norm + 1e-6);
            assert!(
                (f64::from(*found) - expected).abs() < 1e-6,
                "{found} {expected}"
            );
        }
        // Clipping what was clipped leaves it, but for the 1e-6 that PyTorch adds to norms.
        let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND]).clip_norm(2.0);
        let once = taken(&mut scaler, &model, grads);
        let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND])
            .clip_norm(2.0)
            .clip_norm(2.0);
        let twice = taken(&mut scaler, &model, grads);
        for (twice, once) in twice.concat().into_iter().zip(once.concat()) {
            assert!((twice / once - 1.0).abs() < 1e-6, "{twice} {once}");
        }
    }
}

#[test]
#[should_panic(expected = "no gradient of the step belongs to the group")]
fn a_group_without_gradients_is_noticed() {
    let model = pair();
    let grads = unscaled(&mut GradScaler::mmcv_static(), &model, [&FIRST, &SECOND]);
    let _ = grads.clip_norm_of(&ParamGroup::from_path("head.weight"), 1.0);
}

#[test]
fn single_gradients_are_read_and_changed() {
    let model = pair();
    for mut scaler in [GradScaler::mmcv_static(), GradScaler::disabled()] {
        let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND]);
        assert_eq!(vec(grads.get(&model[0].weight).unwrap()), FIRST);
        assert!(grads.get(&pair()[0].weight).is_none());
        let mut seen = Vec::new();
        let grads = grads.map(|path, row| {
            seen.push(path.to_owned());
            match path {
                "0.weight" => row.mul_scalar(2.0),
                _ => row,
            }
        });
        assert_eq!(seen, ["0.weight", "1.weight"]);
        let found = taken(&mut scaler, &model, grads);
        assert_eq!(found, [FIRST.map(|x| 2.0 * x).to_vec(), SECOND.to_vec()]);
    }
    // What is no longer finite is an overflow as any other.
    let mut scaler = GradScaler::mmcv_static();
    let grads = unscaled(&mut scaler, &model, [&FIRST, &SECOND]).map(|path, row| match path {
        "1.weight" => row.mul_scalar(f32::INFINITY),
        _ => row,
    });
    assert_eq!(grads.culprits(), ["1.weight"]);
    let before = bits(&model);
    let (model, outcome) = scaler.step(&mut sgd(), 0.1, model, grads);
    assert!(!outcome.stepped());
    assert_eq!(bits(&model), before);
}

#[test]
fn averages_follow_the_steps_that_were_taken() {
    let device = device();
    let mut model = Net::new(&device);
    let (mut optimizer, mut scaler) = (sgd(), GradScaler::dynamic(DynamicScale::torch()));
    let decay = 0.75;
    let mut ema = Ema::new(&model, decay);
    let weights = |model: &Net| vec(model.head.weight.val());
    let mut expected: Vec<f64> = weights(&model).into_iter().map(f64::from).collect();
    for seed in 1..=4 {
        let (updated, outcome) = scaler.train_step(
            &Policy::f16(),
            model,
            &mut optimizer,
            0.1,
            |model| match seed {
                2 => model.loss(seed) + model.overflowing(),
                _ => model.loss(seed),
            },
        );
        model = updated;
        assert_eq!(outcome.stepped(), seed != 2);
        ema.update(&model, &outcome);
        if seed != 2 {
            for (average, weight) in expected.iter_mut().zip(weights(&model)) {
                *average = decay * *average + (1.0 - decay) * f64::from(weight);
            }
        }
    }
    let before = bits(&model);
    let averaged = ema.averaged(&model);
    for (found, expected) in weights(&averaged).into_iter().zip(expected) {
        assert!(
            (f64::from(found) - expected).abs() < 1e-6,
            "{found} {expected}"
        );
    }
    assert_ne!(weights(&averaged), weights(&model));
    // The model is as it was, and its statistics are those of the averaged one.
    assert_eq!(bits(&model), before);
    let statistics = |model: &Net| vec(model.bn.running_mean.value_sync());
    assert_eq!(statistics(&averaged), statistics(&model));
    // Saved averages go on.
    let mut resumed = Ema::new(&averaged, decay);
    let (updated, outcome) =
        scaler.train_step(&Policy::f16(), model, &mut optimizer, 0.1, |model| {
            model.loss(5)
        });
    ema.update(&updated, &outcome);
    resumed.update(&updated, &outcome);
    assert_eq!(
        bits(&resumed.averaged(&updated)),
        bits(&ema.averaged(&updated))
    );
}

#[test]
fn a_shared_scaler_serves_loops_that_step_themselves() {
    let scaler = SharedScaler::new(GradScaler::dynamic(DynamicScale::torch()));
    let rates = ExponentialLrSchedulerConfig::new(0.5, 0.5).init().unwrap();
    let mut schedule = ScalerSchedule::new(rates.clone(), scaler.clone());
    let mut alone = rates;
    let mut optimizer = sgd();
    let mut model = Net::new(&device());
    for seed in 1..=4 {
        let before = bits(&model);
        let grads = scaler.gradients(&Policy::f16(), &model, |model| match seed {
            2 => model.loss(seed) + model.overflowing(),
            _ => model.loss(seed),
        });
        let rate = schedule.step();
        model = optimizer.step(rate, model, grads);
        let outcome = scaler.outcome().expect("a step");
        assert_eq!(outcome.stepped(), seed != 2);
        if seed == 2 {
            assert_eq!(bits(&model), before);
        } else {
            assert_eq!(rate, alone.step().base());
        }
    }
    assert_eq!((scaler.scaler().steps(), scaler.scaler().skips()), (3, 1));
    assert_eq!(scaler.scaler().current_scale(), 32768.0);

    // Its state is saved with the schedule's.
    let record = schedule.to_record();
    let bytes = record.into_bytes().unwrap();
    let record = burn::lr_scheduler::LrSchedulerRecord::from_bytes(bytes).unwrap();
    let fresh = SharedScaler::new(GradScaler::dynamic(DynamicScale::torch()));
    let rates = ExponentialLrSchedulerConfig::new(0.5, 0.5).init().unwrap();
    let mut resumed = ScalerSchedule::new(rates, fresh.clone());
    resumed.load_record(record);
    assert_eq!(fresh.scaler(), scaler.scaler());
    let grads = scaler.gradients(&Policy::f16(), &model, |model| model.loss(5));
    assert_eq!(grads.len(), 6);
    assert_eq!(resumed.step(), alone.step().base());
}

#[test]
#[should_panic(expected = "the scaler's state in the record of the learning rate")]
fn a_record_without_a_scaler_is_noticed() {
    let scaler = SharedScaler::new(GradScaler::mmcv_static());
    let rates = ConstantLr::new(0.1);
    let record = rates.to_record();
    ScalerSchedule::new(0.1, scaler).load_record(record);
}

#[test]
fn clipped_gradients_leave_a_shared_scaler_clipped() {
    let scaler = SharedScaler::new(GradScaler::mmcv_static());
    let model = pair();
    let loss = |model: &Vec<Weights>| model[0].loss(values([3], 1, &device()));
    let max = |grads: UnscaledGrads| grads.clip_value(0.01);
    let grads = scaler.gradients_with(&Policy::disabled(), &model, loss, max);
    let found = vec(grads.get::<1>(model[0].weight.id).unwrap());
    assert!(found.iter().all(|value| value.abs() <= 0.01), "{found:?}");
    assert_eq!(grads.len(), 1);
}
