//! The listed operations beside torch.amp on the CPU, and the state of its scaler, as
//! `record_torch_amp.py` recorded them.

mod common;

use burn::module::Param;
use burn::nn::conv::Conv2dConfig;
use burn::nn::{GroupNormConfig, LayerNormConfig, LinearConfig};
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, activation};
use common::{computes_in, device, on_gpu, trajectory, values};
use halfseg_amp::{DynamicScale, GradScaler, Policy, TorchState, add, autocast, cat, nn, ops};
use serde_json::Value;

const RECORDED: &str = include_str!("data/torch_amp.jsonl");

fn recorded(key: &str) -> impl Iterator<Item = Value> {
    let lines = RECORDED
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    lines.filter(move |line: &Value| line.get(key).is_some())
}

/// What torch.autocast leaves in the dtype of its input on the CPU, and runs in f32 on CUDA, whose lists
/// this crate follows. `mean` is on neither list: Burn's may accumulate in its input's dtype.
const F32_ON_CUDA_ONLY: [&str; 21] = [
    "exp",
    "sinh",
    "cosh",
    "tan",
    "acos",
    "asin",
    "log",
    "log1p",
    "square",
    "powf_scalar",
    "recip",
    "softmax",
    "log_softmax",
    "softplus",
    "sum",
    "cumsum",
    "mean",
    "norm",
    "layer_norm",
    "group_norm",
    "interpolate",
];

fn dtype(name: &Value) -> FloatDType {
    match name.as_str().unwrap() {
        "f16" => FloatDType::F16,
        "bf16" => FloatDType::BF16,
        _ => FloatDType::F32,
    }
}

fn weights(count: usize) -> Vec<f64> {
    (0..count).map(|i| (0.7 * i as f64).cos()).collect()
}

/// The sum of all values times cos(0.7 i), and the same of magnitudes, which errors are small beside.
fn weighted<const D: usize>(x: Tensor<D>) -> (f64, f64) {
    let values = common::vec(x.cast(FloatDType::F32));
    let terms = values.iter().zip(weights(values.len()));
    let terms = terms.map(|(value, weight)| f64::from(*value) * weight);
    terms.fold((0.0, 0.0), |(sum, size), term| {
        (sum + term, size + term.abs())
    })
}

struct Outcome {
    output: DType,
    sum: (f64, f64),
    gradient: DType,
    gradient_sum: (f64, f64),
}

/// Runs an operation under autocast, and its backward pass from the weighted sum of its result.
fn outcome<const D: usize, const E: usize>(
    policy: &Policy,
    input: FloatDType,
    x: Tensor<D>,
    body: impl Fn(Tensor<D>) -> Tensor<E>,
) -> Outcome {
    let x = x.cast(input).detach().require_grad();
    let y = autocast(policy, || body(x.clone()));
    let shape = y.shape();
    let weights: Vec<f32> = weights(shape.num_elements())
        .iter()
        .map(|w| *w as f32)
        .collect();
    let weights = Tensor::<E>::from_data(TensorData::new(weights, shape), &y.device());
    let loss = y.clone().cast(FloatDType::F32).mul(weights).sum();
    let gradient = x.grad(&loss.backward()).expect("the input has a gradient");
    Outcome {
        output: y.dtype(),
        sum: weighted(y),
        gradient: gradient.dtype(),
        gradient_sum: weighted(gradient),
    }
}

fn run(op: &str, policy: &Policy, input: FloatDType) -> Outcome {
    let device = device();
    let x = || values([4, 6], 1, &device).mul_scalar(3.0);
    let positive = || x().abs().add_scalar(0.125);
    let unit = || x().div_scalar(4.0);
    let matrix = || values([6, 5], 2, &device);
    let maps = || values([2, 3, 8, 7], 3, &device);
    let target = || values([4, 6], 5, &device).abs();
    type Unary = fn(Tensor<2>) -> Tensor<2>;
    let unary = |x: Tensor<2>, body: Unary| outcome(policy, input, x, body);
    match op {
        "matmul" => outcome(policy, input, x(), |x| ops::matmul(x, matrix())),
        "linear" => {
            let mut layer = LinearConfig::new(6, 5).init(&device);
            layer.weight = Param::from_tensor(matrix());
            layer.bias = Some(Param::from_tensor(values([5], 6, &device)));
            outcome(policy, input, x(), |x| nn::linear(&layer, x))
        }
        "conv2d" => {
            let mut layer = Conv2dConfig::new([3, 4], [3, 3])
                .with_bias(false)
                .init(&device);
            layer.weight = Param::from_tensor(values([4, 3, 3, 3], 4, &device));
            outcome(policy, input, maps(), |x| nn::conv2d(&layer, x))
        }
        "exp" => unary(x(), ops::exp),
        "sinh" => unary(x(), ops::sinh),
        "cosh" => unary(x(), ops::cosh),
        "tan" => unary(unit(), ops::tan),
        "acos" => unary(unit(), ops::acos),
        "asin" => unary(unit(), ops::asin),
        "log" => unary(positive(), ops::log),
        "log1p" => unary(positive(), ops::log1p),
        "square" => unary(x(), ops::square),
        "powf_scalar" => unary(positive(), |x| ops::powf_scalar(x, 2.5)),
        "recip" => unary(positive(), ops::recip),
        "softmax" => unary(x(), |x| ops::softmax(x, 1)),
        "log_softmax" => unary(x(), |x| ops::log_softmax(x, 1)),
        "softplus" => unary(x(), |x| ops::softplus(x, 1.0)),
        "sum" => outcome(policy, input, x(), ops::sum),
        "cumsum" => unary(x(), |x| ops::cumsum(x, 1)),
        "mean" => outcome(policy, input, x(), ops::mean),
        "prod_dim" => unary(x(), |x| ops::prod_dim(x, 1)),
        "norm" => outcome(policy, input, x(), ops::norm),
        "layer_norm" => {
            let layer = LayerNormConfig::new(6).init(&device);
            outcome(policy, input, x(), |x| nn::layer_norm(&layer, x))
        }
        "group_norm" => {
            let layer = GroupNormConfig::new(3, 3).init(&device);
            outcome(policy, input, maps(), |x| nn::group_norm(&layer, x))
        }
        "cross_entropy" => {
            let classes = Tensor::<1, Int>::from_ints([0, 3, 1, 5], &device);
            outcome(policy, input, x(), |x| {
                ops::cross_entropy(x, classes.clone())
            })
        }
        "mse" => outcome(policy, input, x(), |x| ops::mse(x, target().cast(input))),
        "binary_cross_entropy_with_logits" => outcome(policy, input, x(), |x| {
            ops::binary_cross_entropy_with_logits(x, target().cast(input))
        }),
        "interpolate" => {
            let options = InterpolateOptions::new(InterpolateMode::Bilinear)
                .with_output_size([11, 9])
                .with_align_corners(false);
            outcome(policy, input, maps(), |x| {
                ops::interpolate(x, options.clone())
            })
        }
        "relu" => unary(x(), activation::relu),
        "add" => outcome(policy, input, x(), |x| add(x, target())),
        "cat" => outcome(policy, input, x(), |x| cat(vec![x, target()], 1)),
        other => panic!("{other} is recorded, and not known here"),
    }
}

#[test]
fn operations_give_what_torch_amp_gives() {
    let mut seen = 0;
    for row in recorded("op") {
        let op = row["op"].as_str().unwrap();
        let (policy, unit) = match dtype(&row["autocast"]) {
            FloatDType::F16 => (Policy::f16(), 2f64.powi(-11)),
            _ => (Policy::bf16(), 2f64.powi(-8)),
        };
        let input = dtype(&row["input"]);
        seen += 1;
        if policy.check(&device()).is_err() || !computes_in(input) {
            continue;
        }
        // Burn 0.22 has no gradient of bilinear resizing on GPUs.
        if on_gpu() && op == "interpolate" {
            continue;
        }
        let found = run(op, &policy, input);
        let expected = match F32_ON_CUDA_ONLY.contains(&op) {
            true => {
                assert_eq!(dtype(&row["output"]), input, "{row}");
                FloatDType::F32
            }
            false => dtype(&row["output"]),
        };
        assert_eq!(found.output, DType::from(expected), "{row}");
        assert_eq!(
            found.gradient,
            DType::from(dtype(&row["gradient"])),
            "{row}"
        );
        // Both round, and torch in half precision where it keeps that: some units in the last place of
        // what is summed up.
        for ((found, size), key) in [(found.sum, "sum"), (found.gradient_sum, "gradient_sum")] {
            let expected = row[key].as_f64().unwrap();
            let half = input != FloatDType::F32 || found_in_half(op);
            let tolerance = if half { 4.0 * unit } else { 1e-5 };
            let error = (found - expected).abs();
            assert!(
                error <= tolerance * size.max(1.0),
                "{key}: {found} {expected} {row}"
            );
        }
    }
    assert_eq!(seen, 124);
}

/// Whether an operation computes in half precision, whatever its input.
fn found_in_half(op: &str) -> bool {
    ["matmul", "linear", "conv2d"].contains(&op)
}

#[test]
fn states_of_pytorch_are_those_of_the_same_steps_here() {
    let mut seen = 0;
    for row in recorded("state") {
        let state: TorchState = serde_json::from_value(row["state"].clone()).unwrap();
        let settings = DynamicScale::torch()
            .with_init(row["init"].as_f64().unwrap() as f32)
            .with_growth(state.growth_factor)
            .with_backoff(state.backoff_factor)
            .with_interval(state.growth_interval);
        let mut scaler = GradScaler::dynamic(settings);
        trajectory(&mut scaler, row["pattern"].as_str().unwrap());
        assert_eq!(scaler.to_torch().unwrap(), state, "{row}");
        assert_eq!(
            serde_json::to_value(scaler.to_torch().unwrap()).unwrap(),
            row["state"]
        );
        // What PyTorch saved goes on as what was never saved.
        let mut restored = GradScaler::from_torch(&state).unwrap();
        let pattern = "..x.......x.";
        assert_eq!(
            trajectory(&mut restored, pattern).0,
            trajectory(&mut scaler, pattern).0
        );
        seen += 1;
    }
    assert_eq!(seen, 3);
}
