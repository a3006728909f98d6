//! The differentiable normalisation against a plain f64 reference, on the CPU.

use burn::tensor::{DType, Device, Tensor, TensorData};
use halfseg_kernels::{Activation, batch_norm_train};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const EPSILON: f64 = 1e-5;
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Half the distance of neighbouring numbers, relative to them.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

/// One set of operands; maps hold values of `dtype`.
#[derive(Clone, Debug)]
struct Case {
    shape: [usize; 4],
    dtype: DType,
    relu: bool,
    x: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    skip: Option<Vec<f32>>,
    /// Gradient of the output.
    gradient: Vec<f32>,
}

#[derive(Debug)]
struct Results {
    output: Vec<f64>,
    mean: Vec<f64>,
    variance: Vec<f64>,
    x: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    skip: Vec<f64>,
}

impl Case {
    fn draw(rng: &mut StdRng, shape: [usize; 4], dtype: DType, skip: bool, relu: bool) -> Self {
        let count = shape.iter().product();
        let offset = rng.random_range(-2.0..2.0);
        let mut map = |count, offset: f32, width: f32| -> Vec<f32> {
            let draw = (0..count).map(|_| offset + rng.random_range(-width..width));
            rounded(draw.collect(), dtype)
        };
        let x = map(count, offset, 2.0);
        let gradient = map(count, 0.25, 1.0);
        let skip = skip.then(|| map(count, 0.0, 1.0));
        let mut parameter = |low: f32, high: f32| {
            let draw = (0..shape[1]).map(|_| rng.random_range(low..high));
            draw.collect::<Vec<f32>>()
        };
        Self {
            shape,
            dtype,
            relu,
            x,
            gamma: parameter(0.3, 2.0),
            beta: parameter(-1.0, 1.0),
            skip,
            gradient,
        }
    }

    fn activation(&self) -> Activation {
        if self.relu {
            Activation::Relu
        } else {
            Activation::None
        }
    }

    fn map(&self, values: &[f32], device: &Device) -> Tensor<4> {
        let data = TensorData::new(values.to_vec(), self.shape);
        Tensor::<4>::from_data(data, device).cast(self.dtype)
    }

    fn reference(&self) -> Results {
        let [n, c, h, w] = self.shape;
        let count = (n * h * w) as f64;
        let channel = |i: usize| i / (h * w) % c;
        let value = |i: usize| f64::from(self.x[i]);
        let all = 0..self.x.len();
        let per_channel = |term: &dyn Fn(usize) -> f64| {
            let mut sums = vec![0f64; c];
            all.clone().for_each(|i| sums[channel(i)] += term(i));
            sums
        };
        let divided = |sums: Vec<f64>| sums.into_iter().map(|s| s / count).collect::<Vec<_>>();
        let mean = divided(per_channel(&value));
        let variance = divided(per_channel(&|i| (value(i) - mean[channel(i)]).powi(2)));
        let normalised = |i: usize| {
            let c = channel(i);
            (value(i) - mean[c]) / (variance[c] + EPSILON).sqrt()
        };
        let before = |i: usize| {
            let skip = self.skip.as_ref().map_or(0.0, |skip| f64::from(skip[i]));
            f64::from(self.gamma[channel(i)]) * normalised(i)
                + f64::from(self.beta[channel(i)])
                + skip
        };
        let on = |i: usize| !self.relu || before(i) > 0.0;
        let gradient = |i: usize| {
            if on(i) {
                f64::from(self.gradient[i])
            } else {
                0.0
            }
        };
        let beta = per_channel(&gradient);
        let gamma = per_channel(&|i| gradient(i) * normalised(i));
        let x = |i: usize| {
            let c = channel(i);
            let scale = f64::from(self.gamma[c]) / (variance[c] + EPSILON).sqrt();
            scale * (gradient(i) - beta[c] / count - normalised(i) * gamma[c] / count)
        };
        Results {
            output: all
                .clone()
                .map(|i| if on(i) { before(i) } else { 0.0 })
                .collect(),
            x: all.clone().map(x).collect(),
            skip: match self.skip {
                Some(_) => all.clone().map(gradient).collect(),
                None => Vec::new(),
            },
            mean,
            variance,
            gamma,
            beta,
        }
    }

    fn run(&self, device: &Device) -> Results {
        let parameter = |values: &[f32]| Tensor::<1>::from_floats(values, device).require_grad();
        let x = self.map(&self.x, device).require_grad();
        let (gamma, beta) = (parameter(&self.gamma), parameter(&self.beta));
        let skip = self.skip.as_ref();
        let skip = skip.map(|skip| self.map(skip, device).require_grad());
        let result = batch_norm_train(
            x.clone(),
            gamma.clone(),
            beta.clone(),
            EPSILON,
            skip.clone(),
            self.activation(),
        );
        assert_eq!(result.output.dtype(), self.dtype);
        let weights = self.map(&self.gradient, device).cast(DType::F32);
        let loss = (result.output.clone().cast(DType::F32) * weights).sum();
        let grads = loss.backward();
        let map = |tensor: &Tensor<4>| {
            let gradient = tensor.grad(&grads).expect("the map has a gradient");
            assert_eq!(gradient.dtype(), self.dtype, "dtype of a map's gradient");
            values(gradient)
        };
        let vector = |tensor: &Tensor<1>| {
            let gradient = tensor.grad(&grads).expect("the parameter has a gradient");
            assert_eq!(
                gradient.dtype(),
                DType::F32,
                "dtype of a parameter's gradient"
            );
            values(gradient)
        };
        Results {
            output: values(result.output),
            mean: values(result.mean),
            variance: values(result.variance),
            x: map(&x),
            gamma: vector(&gamma),
            beta: vector(&beta),
            skip: skip.as_ref().map_or(Vec::new(), map),
        }
    }

    fn check(&self, device: &Device) {
        let (found, expected) = (self.run(device), self.reference());
        let what = format!(
            "{:?} {:?}, skip {}, relu {}",
            self.dtype,
            self.shape,
            self.skip.is_some(),
            self.relu
        );
        // Channels of two values have gradients that cancel: dx is small against its terms.
        let terms: f64 = self
            .gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>();
        let terms = terms.sqrt();
        let rounding = 1e-5 + rounding(self.dtype);
        let close = |name: &str, found: &[f64], expected: &[f64], bound: f64, floor: f64| {
            assert_eq!(found.len(), expected.len(), "{what}: {name}");
            let norm = norm(expected.iter().copied());
            let error = self::norm(found.iter().zip(expected).map(|(f, e)| f - e));
            let allowed = bound * norm + 1e-6 * floor;
            assert!(
                error <= allowed,
                "{what}: {name} off by {error} of {norm}, {allowed} allowed"
            );
        };
        close("output", &found.output, &expected.output, rounding, 0.0);
        // Values spread over about 1: a mean near 0 cannot be more exact than they are.
        let spread = (expected.mean.len() as f64).sqrt();
        close("mean", &found.mean, &expected.mean, 1e-6, 0.1 * spread);
        close("variance", &found.variance, &expected.variance, 1e-6, 0.0);
        close("gradient of x", &found.x, &expected.x, rounding, terms);
        close(
            "gradient of gamma",
            &found.gamma,
            &expected.gamma,
            1e-5,
            terms,
        );
        close("gradient of beta", &found.beta, &expected.beta, 1e-5, terms);
        // Nothing but zeros and values that were there before: exact.
        assert_eq!(found.skip, expected.skip, "{what}: gradient of skip");
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let values: Vec<f32> = tensor.cast(DType::F32).into_data().try_to_vec().unwrap();
    values.into_iter().map(f64::from).collect()
}

fn rounded(values: Vec<f32>, dtype: DType) -> Vec<f32> {
    let tensor = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
    tensor
        .cast(dtype)
        .cast(DType::F32)
        .into_data()
        .try_to_vec()
        .unwrap()
}

#[test]
fn output_statistics_and_all_gradients_equal_the_f64_reference() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..25 {
        let shape = [
            rng.random_range(1..=3),
            rng.random_range(1..=9),
            rng.random_range(1..=17),
            rng.random_range(2..=17),
        ];
        for dtype in DTYPES {
            for (skip, relu) in [(false, false), (false, true), (true, false), (true, true)] {
                let case = Case::draw(&mut rng, shape, dtype, skip, relu);
                case.check(&Device::flex().autodiff());
            }
        }
    }
}

#[test]
fn planes_longer_than_a_block_equal_the_reference() {
    let mut rng = StdRng::seed_from_u64(8);
    for dtype in DTYPES {
        for skip in [false, true] {
            let case = Case::draw(&mut rng, [2, 5, 37, 53], dtype, skip, true);
            case.check(&Device::flex().autodiff());
        }
    }
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let mut rng = StdRng::seed_from_u64(9);
    for skip in [false, true] {
        let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F16, skip, true);
        case.check(&Device::flex().autodiff().gradient_checkpointing());
    }
}

#[test]
fn a_recomputed_input_gives_the_same_gradients() {
    let mut rng = StdRng::seed_from_u64(10);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F32, true, true);
    let run = |device: Device| {
        let leaf = case.map(&case.x, &device).require_grad();
        // Elementwise, so that checkpointing computes it twice; its gradient has two parents.
        let x = leaf.clone() * 2.0 + leaf.clone().exp();
        let parameter = |values: &[f32]| Tensor::<1>::from_floats(values, &device).require_grad();
        let (gamma, beta) = (parameter(&case.gamma), parameter(&case.beta));
        let skip = Some(leaf.clone().tanh());
        let y = batch_norm_train(x, gamma, beta, EPSILON, skip, Activation::Relu).output;
        let y = y.clone() * y.tanh();
        values(leaf.grad(&y.sum().backward()).unwrap())
    };
    let plain = run(Device::flex().autodiff());
    assert_eq!(
        plain,
        run(Device::flex().autodiff().gradient_checkpointing())
    );
    assert!(norm(plain.into_iter()) > 1.0);
}

#[test]
fn a_mean_of_a_thousand_deviations_costs_no_accuracy() {
    let mut rng = StdRng::seed_from_u64(11);
    for relu in [false, true] {
        let mut case = Case::draw(&mut rng, [2, 4, 33, 65], DType::F32, false, relu);
        for x in &mut case.x {
            *x = 1000.3 + rng.random_range(-1.7f32..1.7);
        }
        case.check(&Device::flex().autodiff());
    }
}

#[test]
fn f16_deviations_above_255_do_not_overflow() {
    let mut rng = StdRng::seed_from_u64(12);
    for skip in [false, true] {
        let mut case = Case::draw(&mut rng, [2, 3, 9, 11], DType::F16, skip, true);
        let wide = case.x.iter().map(|x| x * 10_000.0).collect();
        case.x = rounded(wide, DType::F16);
        assert!(case.x.iter().any(|x| x.abs() > 20_000.0));
        // Gradients shrink with the deviation, below what f16 holds exactly.
        case.gradient.iter_mut().for_each(|g| *g *= 1024.0);
        case.check(&Device::flex().autodiff());
    }
}

#[test]
fn gradients_reach_whichever_inputs_want_them() {
    let mut rng = StdRng::seed_from_u64(13);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::BF16, true, true);
    let all = case.run(&Device::flex().autodiff());
    for device in [
        Device::flex().autodiff(),
        Device::flex().autodiff().gradient_checkpointing(),
    ] {
        for wanted in 0..16 {
            let wants = |bit: usize| wanted >> bit & 1 == 1;
            let map = |values: &[f32], bit| case.map(values, &device).set_require_grad(wants(bit));
            let parameter = |values: &[f32], bit| {
                Tensor::<1>::from_floats(values, &device).set_require_grad(wants(bit))
            };
            let (x, skip) = (map(&case.x, 0), map(case.skip.as_ref().unwrap(), 1));
            let (gamma, beta) = (parameter(&case.gamma, 2), parameter(&case.beta, 3));
            let result = batch_norm_train(
                x.clone(),
                gamma.clone(),
                beta.clone(),
                EPSILON,
                Some(skip.clone()),
                Activation::Relu,
            );
            assert_eq!(values(result.output.clone()), all.output);
            if wanted == 0 {
                continue;
            }
            let weights = case.map(&case.gradient, &device).cast(DType::F32);
            let grads = (result.output.cast(DType::F32) * weights).sum().backward();
            let found = [
                x.grad(&grads).map(values),
                skip.grad(&grads).map(values),
                gamma.grad(&grads).map(values),
                beta.grad(&grads).map(values),
            ];
            for (bit, (found, expected)) in found
                .into_iter()
                .zip([&all.x, &all.skip, &all.gamma, &all.beta])
                .enumerate()
            {
                let expected = wants(bit).then_some(expected);
                assert_eq!(found.as_ref(), expected, "input {bit} of {wanted:04b}");
            }
        }
    }
}

#[test]
fn a_device_without_autodiff_gives_the_same_output() {
    let mut rng = StdRng::seed_from_u64(14);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F16, true, true);
    let expected = case.run(&Device::flex().autodiff());
    let device = Device::flex();
    let result = batch_norm_train(
        case.map(&case.x, &device),
        Tensor::from_floats(case.gamma.as_slice(), &device),
        Tensor::from_floats(case.beta.as_slice(), &device),
        EPSILON,
        Some(case.map(case.skip.as_ref().unwrap(), &device)),
        Activation::Relu,
    );
    assert_eq!(values(result.output), expected.output);
    assert_eq!(values(result.mean), expected.mean);
    assert_eq!(values(result.variance), expected.variance);
}

#[test]
fn a_strided_map_and_gradient_are_read_in_order() {
    let mut rng = StdRng::seed_from_u64(15);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F32, false, true);
    let expected = case.reference();
    let device = Device::flex().autodiff();
    // Columns before rows in memory.
    let x = case.map(&case.x, &device).swap_dims(2, 3);
    let x = Tensor::<4>::from_data(x.into_data(), &device).require_grad();
    let gamma = Tensor::from_floats(case.gamma.as_slice(), &device);
    let beta = Tensor::from_floats(case.beta.as_slice(), &device);
    let view = x.clone().swap_dims(2, 3);
    let y = batch_norm_train(view, gamma, beta, EPSILON, None, Activation::Relu).output;
    let weights = case.map(&case.gradient, &device).swap_dims(2, 3);
    let grads = (y.clone().swap_dims(2, 3) * weights).sum().backward();
    let gradient = values(x.grad(&grads).unwrap().swap_dims(2, 3));
    for (found, expected) in [(values(y), expected.output), (gradient, expected.x)] {
        let error = norm(found.iter().zip(&expected).map(|(f, e)| f - e));
        assert!(error <= 1e-5 * norm(expected.iter().copied()));
    }
}

#[test]
fn nan_and_infinity_reach_the_output_through_a_relu() {
    for bad in [f32::NAN, f32::INFINITY] {
        for dtype in DTYPES {
            let mut rng = StdRng::seed_from_u64(16);
            let mut case = Case::draw(&mut rng, [1, 2, 4, 5], dtype, false, true);
            case.x[3] = bad;
            let found = case.run(&Device::flex().autodiff());
            let [first, second] = [&found.output[..20], &found.output[20..]];
            assert!(first.iter().all(|y| y.is_nan()), "{dtype:?} {bad}");
            assert!(second.iter().all(|y| y.is_finite()), "{dtype:?} {bad}");
            assert!(
                found.x[..20].iter().all(|g| !g.is_finite()),
                "{dtype:?} {bad}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "gamma of a batch normalisation must be F32 [3]")]
fn a_scale_in_half_precision_is_refused() {
    let device = Device::flex();
    let x = Tensor::<4>::ones([1, 3, 2, 2], &device);
    let gamma = Tensor::<1>::ones([3], &device);
    let beta = gamma.clone();
    batch_norm_train(
        x,
        gamma.cast(DType::F16),
        beta,
        EPSILON,
        None,
        Activation::None,
    );
}
