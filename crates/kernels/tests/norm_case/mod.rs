//! Operands of a normalisation, their f64 reference, and the comparison with it.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use halfseg_kernels::{
    Activation, BatchNormOutput, BatchParts, Running, batch_norm_shared, batch_norm_train,
    batch_norm_train_moving,
};
use rand::RngExt;
use rand::rngs::StdRng;

pub const EPSILON: f64 = 1e-5;

/// Half the distance of neighbouring numbers, relative to them.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

/// One set of operands; maps hold values of `dtype`.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: [usize; 4],
    pub dtype: DType,
    pub relu: bool,
    pub x: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub skip: Option<Vec<f32>>,
    /// Gradient of the output.
    pub gradient: Vec<f32>,
    /// Whether maps lie pixel by pixel in memory.
    pub pixels: bool,
}

#[derive(Debug)]
pub struct Results {
    pub output: Vec<f64>,
    pub mean: Vec<f64>,
    pub variance: Vec<f64>,
    pub x: Vec<f64>,
    pub gamma: Vec<f64>,
    pub beta: Vec<f64>,
    pub skip: Vec<f64>,
}

impl Results {
    /// Each within `bound` of its norm, and 1e-6 a value where expected values cancel.
    pub fn check_close(&self, expected: &Self, bound: f64, what: &str) {
        let all = |results: &Self| {
            let Self {
                output,
                mean,
                variance,
                x,
                gamma,
                beta,
                skip,
            } = results;
            [output, mean, variance, x, gamma, beta, skip].map(Clone::clone)
        };
        for (i, (found, expected)) in all(self).iter().zip(all(expected)).enumerate() {
            assert_eq!(found.len(), expected.len(), "result {i} of {what}");
            let error = norm(found.iter().zip(&expected).map(|(f, e)| f - e));
            let norm = norm(expected.iter().copied());
            assert!(
                error <= bound * norm + 1e-6 * (found.len() as f64).sqrt(),
                "result {i} of {what}: off by {error} of {norm}"
            );
        }
    }
}

/// A batch of several parts that are all alike: its statistics are those of each.
struct Alike(usize);

impl BatchParts for Alike {
    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        vec![own; self.0]
    }

    fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        own * self.0 as f64
    }
}

impl Case {
    pub fn draw(rng: &mut StdRng, shape: [usize; 4], dtype: DType, skip: bool, relu: bool) -> Self {
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
            pixels: false,
        }
    }

    /// In f16, with deviations whose squares are beyond its range.
    pub fn with_wide_deviations(rng: &mut StdRng, skip: bool) -> Self {
        let mut case = Self::draw(rng, [2, 3, 9, 11], DType::F16, skip, true);
        let wide = case.x.iter().map(|x| x * 10_000.0).collect();
        case.x = rounded(wide, DType::F16);
        assert!(case.x.iter().any(|x| x.abs() > 20_000.0));
        // Gradients shrink with the deviation, below what f16 holds exactly.
        case.gradient.iter_mut().for_each(|g| *g *= 1024.0);
        case
    }

    /// Runs with the inputs recorded whose bits `wanted` has (input, skip connection, gamma, beta),
    /// and wants of these, and no other, the gradients of `all`, and its output.
    pub fn check_wanted(&self, wanted: usize, device: &Device, all: &Results) {
        let wants = |bit: usize| wanted >> bit & 1 == 1;
        let map = |values: &[f32], bit| self.map(values, device).set_require_grad(wants(bit));
        let parameter = |values: &[f32], bit| {
            Tensor::<1>::from_floats(values, device).set_require_grad(wants(bit))
        };
        let (x, skip) = (map(&self.x, 0), map(self.skip.as_ref().unwrap(), 1));
        let (gamma, beta) = (parameter(&self.gamma, 2), parameter(&self.beta, 3));
        let result = batch_norm_train(
            x.clone(),
            gamma.clone(),
            beta.clone(),
            EPSILON,
            Some(skip.clone()),
            self.activation(),
        );
        assert_eq!(values(result.output.clone()), all.output);
        if wanted == 0 {
            return;
        }
        let weights = self.map(&self.gradient, device).cast(DType::F32);
        let grads = (result.output.cast(DType::F32) * weights).sum().backward();
        let found = [
            x.grad(&grads).map(values),
            skip.grad(&grads).map(values),
            gamma.grad(&grads).map(values),
            beta.grad(&grads).map(values),
        ];
        let expected = [&all.x, &all.skip, &all.gamma, &all.beta];
        for (bit, (found, expected)) in found.into_iter().zip(expected).enumerate() {
            let expected = wants(bit).then_some(expected);
            assert_eq!(found.as_ref(), expected, "input {bit} of {wanted:04b}");
        }
    }

    fn activation(&self) -> Activation {
        if self.relu {
            Activation::Relu
        } else {
            Activation::None
        }
    }

    pub fn map(&self, values: &[f32], device: &Device) -> Tensor<4> {
        let [n, c, h, w] = self.shape;
        if self.pixels {
            let place = |i: usize| (i / c / (h * w) * c + i % c) * (h * w) + i / c % (h * w);
            let values: Vec<f32> = (0..values.len()).map(|i| values[place(i)]).collect();
            let data = TensorData::new(values, [n, h, w, c]);
            let map = Tensor::<4>::from_data(data, device).cast(self.dtype);
            return map.permute([0, 3, 1, 2]);
        }
        let data = TensorData::new(values.to_vec(), self.shape);
        Tensor::<4>::from_data(data, device).cast(self.dtype)
    }

    pub fn reference(&self) -> Results {
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

    pub fn run(&self, device: &Device) -> Results {
        self.run_with(device, |x, [gamma, beta], skip| {
            batch_norm_train(x, gamma, beta, EPSILON, skip, self.activation())
        })
    }

    /// As one part of a batch.
    pub fn run_shared(&self, device: &Device, parts: Arc<dyn BatchParts>) -> Results {
        self.run_with(device, |x, parameters, skip| {
            let parts = parts.clone();
            batch_norm_shared(x, parameters, EPSILON, skip, self.activation(), parts)
        })
    }

    fn run_with(
        &self,
        device: &Device,
        normalise: impl Fn(Tensor<4>, [Tensor<1>; 2], Option<Tensor<4>>) -> BatchNormOutput,
    ) -> Results {
        let parameter = |values: &[f32]| Tensor::<1>::from_floats(values, device).require_grad();
        let x = self.map(&self.x, device).require_grad();
        let (gamma, beta) = (parameter(&self.gamma), parameter(&self.beta));
        let skip = self.skip.as_ref();
        let skip = skip.map(|skip| self.map(skip, device).require_grad());
        let result = normalise(x.clone(), [gamma.clone(), beta.clone()], skip.clone());
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

    /// Compares batches of one and of three parts, each of them this map, with the map alone.
    pub fn check_parts_that_are_alike(&self, device: &Device) {
        let expected = self.run(device);
        for parts in [1, 3] {
            let found = self.run_shared(device, Arc::new(Alike(parts)));
            let what = format!("{parts} of {self:?}");
            // Roundings to half precision may fall the other way.
            found.check_close(&expected, 2e-6 + rounding(self.dtype), &what);
        }
    }

    /// Running statistics move as PyTorch's do, by the mean and the unbiased variance, and the output is the
    /// same as without any.
    pub fn check_moving(&self, device: &Device) {
        let [n, c, h, w] = self.shape;
        let parameter = |values: &[f32]| Tensor::<1>::from_floats(values, device);
        let (x, skip) = (
            self.map(&self.x, device),
            self.skip.as_ref().map(|skip| self.map(skip, device)),
        );
        let (gamma, beta) = (parameter(&self.gamma), parameter(&self.beta));
        let before: [Vec<f32>; 2] =
            [0.25, 1.5].map(|start| (0..c).map(|i| start + i as f32 * 0.125).collect());
        let running = Running {
            mean: parameter(&before[0]),
            variance: parameter(&before[1]),
            momentum: 0.1,
        };
        let all = batch_norm_train(
            x.clone(),
            gamma.clone(),
            beta.clone(),
            EPSILON,
            skip.clone(),
            self.activation(),
        );
        let (output, moved) =
            batch_norm_train_moving(x, gamma, beta, EPSILON, skip, self.activation(), running);
        assert_eq!(values(output), values(all.output));
        let count = (n * h * w) as f64;
        for (moved, batch, before, share) in [
            (&moved[0], all.mean, &before[0], 0.1),
            (
                &moved[1],
                all.variance,
                &before[1],
                0.1 * count / (count - 1.0),
            ),
        ] {
            assert!(!moved.is_require_grad());
            let (moved, batch) = (values(moved.clone()), values(batch));
            assert_eq!(moved.len(), c);
            for ((moved, batch), before) in moved.iter().zip(batch).zip(before) {
                let expected = f64::from(*before) * 0.9 + batch * share;
                assert!(
                    (moved - expected).abs() <= 1e-6 * expected.abs() + 1e-7,
                    "{:?} {:?}: {moved}, not {expected}",
                    self.dtype,
                    self.shape
                );
            }
        }
    }

    /// Compares all results with the reference.
    ///
    /// `mean_floor`: by what a mean may be off in any case, in 1e-6 of the values' spread of about 1.
    pub fn check(&self, device: &Device, mean_floor: f64) {
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
        close(
            "mean",
            &found.mean,
            &expected.mean,
            1e-6,
            mean_floor * spread,
        );
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

pub fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let values: Vec<f32> = tensor.cast(DType::F32).into_data().try_to_vec().unwrap();
    values.into_iter().map(f64::from).collect()
}

pub fn rounded(values: Vec<f32>, dtype: DType) -> Vec<f32> {
    let tensor = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
    tensor
        .cast(dtype)
        .cast(DType::F32)
        .into_data()
        .try_to_vec()
        .unwrap()
}
