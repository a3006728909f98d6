//! Losses, optimizers and learning rates against those of PyTorch and MMSegmentation, as
//! `record_training.py` recorded them; `HALFSEG_TRAINING` names another recording.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use halfseg_amp::{Ema, GradScaler, ScaledGrads};
use halfseg_train::{AdamW, Decay, Factors, Objective, PolySchedule, Schedule, Sgd};
use serde_json::Value;

fn recording() -> Value {
    let text = match std::env::var_os("HALFSEG_TRAINING") {
        Some(path) => std::fs::read_to_string(path).unwrap(),
        None => include_str!("data/training.json").to_owned(),
    };
    serde_json::from_str(&text).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

/// Within `limit` of the largest number.
fn check_near(name: &str, found: &[f64], expected: &[f64], limit: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(1e-3f64, |most, v| most.max(v.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= limit * largest,
            "{name}, value {at}: {found} against {expected}"
        );
    }
}

fn objective(name: &str, weights: &[f64]) -> Objective {
    let mut objective = Objective::default();
    let weights = weights.iter().map(|weight| *weight as f32).collect();
    match name {
        "class_weights" => objective.class_weights = weights,
        "label_smoothing" => {
            objective.class_weights = weights;
            objective.label_smoothing = 0.1;
        }
        "focal" => {
            objective.class_weights = weights;
            objective.focal_gamma = 2.0;
        }
        "ohem" => {
            objective.ohem_threshold = 0.3;
            objective.ohem_kept = 7;
        }
        "sigmoid" => {
            objective.class_weights = weights;
            objective.sigmoid = true;
        }
        "dice" => (objective.cross_entropy, objective.dice) = (0.0, 1.0),
        "lovasz" => (objective.cross_entropy, objective.lovasz) = (0.0, 1.0),
        "sum" => (objective.cross_entropy, objective.dice, objective.lovasz) = (0.5, 2.0, 0.75),
        other => panic!("an unknown loss: {other}"),
    }
    objective
}

#[test]
fn losses_and_their_gradients() {
    let recorded = &recording()["losses"];
    let device = Device::flex().autodiff();
    let shape: Vec<usize> = numbers(&recorded["shape"])
        .iter()
        .map(|v| *v as usize)
        .collect();
    let [n, c, h, w] = shape[..] else {
        panic!("{shape:?}")
    };
    let logits: Vec<f32> = numbers(&recorded["logits"])
        .iter()
        .map(|v| *v as f32)
        .collect();
    let labels: Vec<i32> = numbers(&recorded["labels"])
        .iter()
        .map(|v| *v as i32)
        .collect();
    let weights = numbers(&recorded["class_weights"]);
    for (name, case) in recorded["cases"].as_object().unwrap() {
        let logits = TensorData::new(logits.clone(), [n, c, h, w]);
        let logits = Tensor::<4>::from_data(logits, (&device, DType::F32)).require_grad();
        let labels =
            Tensor::<3, Int>::from_data(TensorData::new(labels.clone(), [n, h, w]), &device);
        let found = objective(name, &weights).loss(logits.clone(), labels, false);
        let value: f32 = found.loss.clone().into_scalar();
        check_near(
            name,
            &[f64::from(value)],
            &[case["loss"].as_f64().unwrap()],
            1e-6,
        );
        let gradient = logits.grad(&found.loss.backward()).unwrap().into_data();
        let gradient: Vec<f64> = gradient.iter::<f32>().map(f64::from).collect();
        check_near(name, &gradient, &numbers(&case["gradient"]), 2e-6);
    }
}

#[derive(Module, Debug)]
struct Rows {
    one: Param<Tensor<1>>,
    other: Param<Tensor<1>>,
}

/// Twenty steps, in which the second row has other factors than the first.
fn check_steps(name: &str, mut step: impl FnMut(Rows, GradientsParams) -> Rows, model: Rows) {
    let recorded = &recording()["optimizers"];
    let plain = Device::flex();
    let mut model = model;
    let gradients = recorded["gradients"].as_array().unwrap();
    for (at, rows) in gradients.iter().enumerate() {
        let mut grads = GradientsParams::new();
        for (id, row) in [model.one.id, model.other.id]
            .into_iter()
            .zip(rows.as_array().unwrap())
        {
            let row: Vec<f32> = numbers(row).iter().map(|v| *v as f32).collect();
            grads.register(id, Tensor::<1>::from_floats(&row[..], &plain));
        }
        model = step(model, grads);
        for (row, expected) in [&model.one, &model.other]
            .into_iter()
            .zip(recorded[name][at].as_array().unwrap())
        {
            let found: Vec<f64> = row.val().into_data().iter::<f32>().map(f64::from).collect();
            check_near(
                &format!("{name}, step {at}"),
                &found,
                &numbers(expected),
                1e-6,
            );
        }
    }
}

fn rows() -> (Rows, Factors) {
    let recorded = &recording()["optimizers"];
    let device = Device::flex().autodiff();
    let row = |at: usize| {
        let row: Vec<f32> = numbers(&recorded["start"][at])
            .iter()
            .map(|v| *v as f32)
            .collect();
        Param::from_tensor(Tensor::from_floats(&row[..], &device))
    };
    let model = Rows {
        one: row(0),
        other: row(1),
    };
    let factors = |factor: f64| BTreeMap::from([("other".to_owned(), factor)]);
    let (factors, unknown) = Factors::new(&model, &factors(10.0), &factors(0.0));
    assert!(unknown.is_empty());
    (model, factors)
}

#[test]
fn adamw_and_sgd_over_twenty_steps() {
    let (model, factors) = rows();
    let mut adam = AdamW::new([0.9, 0.98], 1e-6, 0.05).with_factors(factors);
    check_steps("adamw", |model, grads| adam.step(0.02, model, grads), model);
    let (model, factors) = rows();
    let mut sgd = Sgd::new(0.9, 0.05).with_factors(factors);
    check_steps("sgd", |model, grads| sgd.step(0.02, model, grads), model);
}

#[test]
fn adamw_goes_on_from_its_buffers_bit_for_bit() {
    let (model, factors) = rows();
    let mut adam = AdamW::new([0.9, 0.98], 1e-6, 0.05).with_factors(factors.clone());
    let restarted = |model: Rows, grads| {
        // A new optimizer before every step.
        let mut next = AdamW::new([0.9, 0.98], 1e-6, 0.05).with_factors(factors.clone());
        let left = next.restore(&model, adam.buffers(&model), &Device::flex());
        assert!(left.is_empty(), "{left:?}");
        adam = next;
        adam.step(0.02, model, grads)
    };
    check_steps("adamw", restarted, model);
}

#[test]
fn a_factor_of_0_leaves_weights_as_they_are() {
    let (model, _) = rows();
    let frozen = BTreeMap::from([("one".to_owned(), 0.0)]);
    let (factors, unknown) =
        Factors::new(&model, &frozen, &BTreeMap::from([("ones".to_owned(), 1.0)]));
    assert_eq!(unknown, ["ones"]);
    let values = |row: &Param<Tensor<1>>| row.val().into_data().iter::<f32>().collect::<Vec<_>>();
    let (one, other) = (values(&model.one), values(&model.other));
    let grads = || {
        let mut grads = GradientsParams::new();
        for id in [model.one.id, model.other.id] {
            grads.register(
                id,
                Tensor::<1>::from_floats([1.0, 2.0, 3.0], &Device::flex()),
            );
        }
        grads
    };
    let by_sgd = Sgd::new(0.9, 0.1)
        .with_factors(factors.clone())
        .step(0.1, model.clone(), grads());
    let by_adam = AdamW::new([0.9, 0.99], 1e-8, 0.1)
        .with_factors(factors)
        .step(0.1, model.clone(), grads());
    for moved in [by_sgd, by_adam] {
        assert_eq!(values(&moved.one), one);
        assert_ne!(values(&moved.other), other);
    }
}

#[test]
fn learning_rates() {
    let recorded = recording();
    for (name, rates) in recorded["schedules"].as_object().unwrap() {
        let rates = numbers(rates);
        let min_lr = if name == "cosine" { 0.125 } else { 0.0 };
        let poly = PolySchedule {
            lr: 0.5,
            min_lr,
            power: 0.9,
            iterations: rates.len() as u64,
        };
        let mut schedule = Schedule::of(poly);
        schedule.decay = match name.split('_').next().unwrap() {
            "poly" => Decay::Poly,
            "cosine" => Decay::Cosine,
            "step" => Decay::Step,
            _ => Decay::Constant,
        };
        if schedule.decay == Decay::Step {
            (schedule.milestones, schedule.gamma) = (vec![8, 15], 0.3);
        }
        if name.ends_with("warmup") {
            (schedule.warmup, schedule.warmup_factor) = (6, 0.25);
        }
        let found: Vec<f64> = (0..rates.len()).map(|i| schedule.at(i as u64)).collect();
        check_near(name, &found, &rates, 1e-9);
    }
}

/// A linear classifier of three values.
#[derive(Module, Debug)]
struct Linear {
    /// `[c, 3]`.
    weight: Param<Tensor<2>>,
    /// `[c]`.
    bias: Param<Tensor<1>>,
}

impl Linear {
    fn values(&self) -> [Vec<f64>; 2] {
        let data = [self.weight.val().into_data(), self.bias.val().into_data()];
        data.map(|data| data.iter::<f32>().map(f64::from).collect())
    }
}

fn singles(value: &Value) -> Vec<f32> {
    numbers(value).iter().map(|value| *value as f32).collect()
}

/// Twenty steps of everything at once: a batch in parts with class weights, AdamW, a warm-up and a cosine, averages of
/// the weights, and a step that is skipped.
#[test]
fn a_run_with_averages_and_accumulation() {
    let recording = recording();
    let recorded = &recording["run"];
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    let bias = singles(&recorded["start"][1]);
    let classes = bias.len();
    let weight = TensorData::new(singles(&recorded["start"][0]), [classes, 3]);
    let mut model = Linear {
        weight: Param::from_tensor(Tensor::from_data(weight, &device)),
        bias: Param::from_tensor(Tensor::from_floats(&bias[..], &device)),
    };
    let mut objective = Objective::default();
    objective.class_weights = singles(&recorded["class_weights"]);
    let steps = recorded["after"].as_array().unwrap();
    let mut schedule = Schedule::of(PolySchedule {
        lr: 0.05,
        min_lr: 0.0,
        power: 0.9,
        iterations: steps.len() as u64,
    });
    schedule.decay = Decay::Cosine;
    (schedule.warmup, schedule.warmup_factor) = (6, 0.25);
    let mut adam = AdamW::new([0.9, 0.98], 1e-6, 0.05);
    let mut scaler = GradScaler::fixed(512.0);
    let mut averages: Option<Ema> = None;
    let parts = recorded["parts"].as_u64().unwrap() as usize;
    for (at, expected) in steps.iter().enumerate() {
        let labels: Vec<i32> = singles(&recorded["labels"][at])
            .iter()
            .map(|v| *v as i32)
            .collect();
        let images = labels.len() / parts;
        let inputs = TensorData::new(singles(&recorded["inputs"][at]), [labels.len(), 3]);
        let inputs = Tensor::<2>::from_data(inputs, &device);
        let overflows = recorded["left_out"] == at;
        scaler.begin(&model);
        let mut sum: Option<ScaledGrads> = None;
        for part in 0..parts {
            let first = part * images;
            let x = inputs.clone().narrow(0, first, images);
            let logits = x.matmul(model.weight.val().transpose()) + model.bias.val().unsqueeze();
            let labels = TensorData::new(labels[first..][..images].to_vec(), [images, 1, 1]);
            let labels = Tensor::<3, Int>::from_data(labels, &device);
            let loss = objective.loss(logits.reshape([images, classes, 1, 1]), labels, false);
            let loss = loss.loss / parts as f64 * if overflows { f64::INFINITY } else { 1.0 };
            let grads = scaler.scale(loss).backward(&model);
            sum = Some(match sum {
                None => grads,
                Some(before) => before.accumulate(grads),
            });
        }
        let grads = scaler.unscale(sum.unwrap());
        let lr = schedule.at(at as u64);
        let (next, outcome) =
            scaler.step_with(model, grads, |model, grads| adam.step(lr, model, grads));
        model = next;
        assert_eq!(outcome.stepped(), !overflows);
        match &mut averages {
            Some(averages) => averages.update(&model, &outcome),
            None => averages = Some(Ema::new(&model, 0.9)),
        }
        let averaged = averages.as_ref().unwrap().averaged(&model);
        for (found, expected) in [&model, &averaged]
            .into_iter()
            .zip(expected.as_array().unwrap())
        {
            for (found, expected) in found.values().iter().zip(expected.as_array().unwrap()) {
                check_near(&format!("step {at}"), found, &numbers(expected), 1e-6);
            }
        }
    }
}
