//! Unscaling, whether in one pass over the memory of this machine or through Burn's operations: what
//! the gradients are afterwards, and what is said of them.

mod common;

use burn::module::{Module, Param};
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use common::{Weights, computes_in, device, floats, gradients, takes_means_of, values, vec};
use halfseg_amp::GradScaler;

/// More than two tasks of the pass, and no whole number of them.
const LONG: usize = 2 * 65536 + 1237;

#[derive(Module, Debug)]
struct Pair {
    long: Weights,
    short: Weights,
}

impl Pair {
    fn new(dtype: DType) -> Self {
        let weights = |count: usize| {
            let data = TensorData::new(vec![1f32; count], [count]).convert_dtype(dtype);
            Weights {
                weight: Param::from_tensor(Tensor::from_data(data, (&device(), dtype))),
            }
        };
        Self {
            long: weights(LONG),
            short: weights(5),
        }
    }

    /// A loss with these gradients, before scaling.
    fn loss(&self, long: &Tensor<1>, short: &Tensor<1>) -> Tensor<1> {
        let part = |weights: &Weights, gradient: &Tensor<1>| {
            let dtype = FloatDType::from(weights.weight.dtype());
            weights.loss(gradient.clone().cast(dtype))
        };
        part(&self.long, long) + part(&self.short, short)
    }
}

/// Both ways: f64 goes through Burn's operations, where the device computes in it.
fn ways() -> impl Iterator<Item = DType> {
    let f64 = computes_in(FloatDType::F64) && takes_means_of(LONG, FloatDType::F64);
    [DType::F32].into_iter().chain(f64.then_some(DType::F64))
}

fn long() -> Tensor<1> {
    values([LONG], 1, &device())
}

fn short() -> Tensor<1> {
    values([5], 2, &device())
}

#[test]
fn unscaled_gradients_are_what_burn_computes_to_the_bit() {
    // 0.3 is no power of two: both multiplications round.
    for scale in [1.0, 512.0, 1000.0, 0.3, 1e30] {
        let model = Pair::new(DType::F32);
        let mut scaler = GradScaler::fixed(scale);
        scaler.begin(&model);
        // The gradient of a product with the scale is the scale times the other factor.
        let loss = model.loss(&long(), &short());
        let grads = scaler.scale(loss).backward(&model);
        let grads = scaler.unscale(grads);
        assert!(grads.is_finite());
        let grads = gradients(&mut scaler, model.clone(), grads);
        let inverse = (1.0 / f64::from(scale)) as f32;
        for (found, gradient) in [
            (grads.of(&model.long.weight), long()),
            (grads.of(&model.short.weight), short()),
        ] {
            let expected = gradient.mul_scalar(scale).mul_scalar(inverse);
            let [found, expected] = [found, expected].map(|x| floats(x, f32::to_bits));
            assert!(found == expected, "scale {scale}");
        }
    }
}

#[test]
fn a_value_that_is_not_finite_is_found_wherever_it_is() {
    for dtype in ways() {
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for place in [0, 65535, 65536, LONG - 1] {
                let model = Pair::new(dtype);
                let mut scaler = GradScaler::mmcv_static();
                scaler.begin(&model);
                let mut gradient = vec(long());
                gradient[place] = value;
                let gradient = Tensor::from_floats(gradient.as_slice(), &device());
                let grads = scaler
                    .scale(model.loss(&gradient, &short()))
                    .backward(&model);
                let mut grads = scaler.unscale(grads);
                assert_eq!(
                    grads.culprits(),
                    ["long.weight"],
                    "{value} at {place}, {dtype:?}"
                );
                assert!(!grads.norm().is_finite());
                scaler.abandon(&model);
            }
        }
    }
}

#[test]
fn a_gradient_that_overflows_while_it_is_unscaled_is_found_too() {
    // 1e30 at a scale of 2^-40 is finite, and so is 1e38; unscaled the latter would be 1e50.
    let model = Pair::new(DType::F32);
    let mut scaler = GradScaler::fixed(2f32.powi(-40));
    scaler.begin(&model);
    let grads = scaler.scale(model.loss(&long(), &short())).backward(&model);
    let huge = model.short.loss(Tensor::full([5], 1e38, &device()));
    // As if the backward pass had grown it: the factor is put in behind the scale.
    let grads = grads.accumulate(scaler.scale(huge.mul_scalar(1e12)).backward(&model));
    let grads = scaler.unscale(grads);
    assert_eq!(grads.culprits(), ["short.weight"]);
    scaler.abandon(&model);
}

#[test]
fn norms_are_those_of_f64_and_clipping_holds_them() {
    for dtype in ways() {
        let model = Pair::new(dtype);
        let mut scaler = GradScaler::mmcv_static();
        scaler.begin(&model);
        let grads = scaler.scale(model.loss(&long(), &short())).backward(&model);
        let mut grads = scaler.unscale(grads);
        let norm = |values: &[Vec<f32>]| {
            let values = values.iter().flatten();
            values.map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
        };
        let expected = norm(&[vec(long()), vec(short())]);
        let error = (f64::from(grads.norm()) - expected).abs();
        assert!(error <= 1e-6 * expected, "{} {expected}", grads.norm());
        let grads = grads.clip_norm(2.0);
        assert!(grads.is_clipped());
        let grads = gradients(&mut scaler, model.clone(), grads);
        let found = [&model.long, &model.short]
            .map(|weights| vec(grads.of(&weights.weight).cast(FloatDType::F32)));
        assert!((norm(&found) - 2.0).abs() <= 2e-6, "{}", norm(&found));
    }
}

#[test]
fn large_gradients_have_a_norm() {
    // Their squares leave f32, at the end their norm as well. A fixed scale of 1 measures while it
    // unscales, a disabled scaler while it clips.
    for dtype in ways() {
        for mut scaler in [GradScaler::fixed(1.0), GradScaler::disabled()] {
            for size in [1e19, 3e25, 3e38] {
                let model = Pair::new(dtype);
                scaler.begin(&model);
                let long = Tensor::full([LONG], size, &device());
                let short = Tensor::ones([5], &device());
                let grads = scaler.scale(model.loss(&long, &short)).backward(&model);
                let mut grads = scaler.unscale(grads);
                let norm = size * (LONG as f64).sqrt();
                if size < 1e38 {
                    let found = f64::from(grads.norm());
                    assert!((found / norm - 1.0).abs() < 1e-6, "{found} {norm}");
                } else {
                    assert_eq!(grads.norm(), f32::INFINITY);
                }
                let grads = grads.clip_norm(1.0);
                assert!(grads.is_clipped() && grads.is_finite());
                let grads = gradients(&mut scaler, model.clone(), grads);
                let expected = (1.0 / (LONG as f64).sqrt()) as f32;
                let found = vec(grads.of(&model.long.weight).cast(FloatDType::F32));
                let close = |x: &f32| (x / expected - 1.0).abs() < 1e-6;
                assert!(
                    found.iter().all(close),
                    "{size}: {} {expected}, {dtype:?}",
                    found[0]
                );
            }
        }
    }
}

#[test]
fn without_a_check_what_is_not_finite_is_not_clipped() {
    // It would be made NaN, and what is finite zero.
    let model = Weights::new([1.0, 1.0], &device());
    let mut scaler = GradScaler::disabled();
    scaler.begin(&model);
    let gradient = Tensor::from_floats([f32::INFINITY, 2.0], &device());
    let grads = scaler.scale(model.loss(gradient)).backward(&model);
    let grads = scaler.unscale(grads).clip_norm(1.0);
    assert!(!grads.is_clipped());
    let grads = gradients(&mut scaler, model.clone(), grads);
    assert_eq!(vec(grads.of(&model.weight)), [f32::INFINITY, 2.0]);
}

#[test]
fn views_of_other_memory_are_unscaled_as_what_they_show() {
    #[derive(Module, Debug)]
    struct Matrix {
        weight: Param<Tensor<2>>,
    }
    let x = values([7, 300], 4, &device());
    let spread = |row: Tensor<2>| row.expand([300, 7]);
    // Each loss with the gradient that it leads to.
    type Case = (fn(Tensor<2>, Tensor<2>) -> Tensor<1>, Tensor<2>);
    let cases: [Case; 3] = [
        (|w, x| w.transpose().mul(x).sum(), x.clone().transpose()),
        (|w, _| w.sum(), Tensor::ones([300, 7], &device())),
        (
            |w, x| w.sum_dim(0).mul(x.slice([0..7, 0..1]).transpose()).sum(),
            spread(x.clone().slice([0..7, 0..1]).transpose()),
        ),
    ];
    for (loss, gradient) in cases {
        for scale in [1.0, 1000.0] {
            let model = Matrix {
                weight: Param::from_tensor(values([300, 7], 5, &device())),
            };
            let mut scaler = GradScaler::fixed(scale);
            scaler.begin(&model);
            let grads = scaler
                .scale(loss(model.weight.val(), x.clone()))
                .backward(&model);
            let mut grads = scaler.unscale(grads);
            let gradient = gradient.clone().mul_scalar(scale);
            let expected = gradient.mul_scalar((1.0 / f64::from(scale)) as f32);
            let squares = vec(expected.clone());
            let squares = squares.iter().map(|x| f64::from(*x).powi(2));
            let norm = squares.sum::<f64>().sqrt();
            assert!((f64::from(grads.norm()) / norm - 1.0).abs() < 1e-6);
            let grads = gradients(&mut scaler, model.clone(), grads);
            assert_eq!(vec(grads.of(&model.weight)), vec(expected), "{scale}");
        }
    }
}

#[test]
fn what_shares_memory_with_a_gradient_keeps_its_values() {
    let device = device();
    let gradient = values([64], 7, &device);
    let before = floats(gradient.clone(), f32::to_bits);
    // The gradient of both weights may be the very tensor that the loss was made of.
    let model = Pair {
        long: Weights {
            weight: Param::from_tensor(Tensor::ones([64], &device)),
        },
        short: Weights {
            weight: Param::from_tensor(Tensor::ones([64], &device)),
        },
    };
    let mut scaler = GradScaler::fixed(1000.0);
    scaler.begin(&model);
    let sum = model.long.weight.val() + model.short.weight.val();
    let grads = scaler
        .scale(sum.mul(gradient.clone()).sum())
        .backward(&model);
    let grads = scaler.unscale(grads);
    let grads = gradients(&mut scaler, model.clone(), grads);
    let expected = gradient.clone().mul_scalar(1000.0).mul_scalar(1e-3);
    for weights in [&model.long, &model.short] {
        assert_eq!(vec(grads.of(&weights.weight)), vec(expected.clone()));
    }
    assert_eq!(floats(gradient, f32::to_bits), before);
}
