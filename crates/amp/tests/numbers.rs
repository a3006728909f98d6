//! What half precision does to numbers, and what scaling saves: checks 7 to 15.

mod common;

use burn::module::Param;
use burn::nn::BatchNormConfig;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::SgdConfig;
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use common::{
    Weights, computes_in, device, floats, gradients, on_gpu, takes_means_of, values, vec,
};
use halfseg_amp::{DynamicScale, GradScaler, Op, OverflowPass, Policy, StepOutcome};
use halfseg_amp::{autocast, cast_param, nn, ops};

/// The gradient of one f32 weight whose f16 cast has the gradient `gradient`.
fn gradient_through_f16(mut scaler: GradScaler, gradient: f32) -> (StepOutcome, Option<f32>) {
    let device = device();
    let model = Weights::new([1.0], &device);
    scaler.begin(&model);
    let loss = autocast(&Policy::f16(), || {
        let weight = cast_param(Op::Conv2d, &model.weight);
        assert_eq!(weight.dtype(), DType::F16);
        weight.cast(FloatDType::F32).mul_scalar(gradient).sum()
    });
    let grads = scaler.scale(loss).backward(&model);
    let grads = scaler.unscale(grads);
    let grads = gradients(&mut scaler, model.clone(), grads);
    let value = grads
        .outcome
        .stepped()
        .then(|| vec(grads.of(&model.weight))[0]);
    (grads.outcome, value)
}

#[test]
fn check_07_scaling_saves_a_gradient_that_f16_flushes() {
    assert_eq!(
        gradient_through_f16(GradScaler::disabled(), 2e-8).1,
        Some(0.0)
    );
    let saved = gradient_through_f16(GradScaler::fixed(512.0), 2e-8)
        .1
        .unwrap();
    assert_eq!((saved * 1e12).round(), 20023.0);
    let error = (f64::from(saved) - 2e-8).abs() / 2e-8;
    assert!((1.1e-3..1.3e-3).contains(&error), "{error}");
}

#[test]
fn check_08_the_ceiling_of_static_512() {
    let (outcome, value) = gradient_through_f16(GradScaler::fixed(512.0), 127.9375);
    assert!(outcome.stepped());
    assert_eq!(value, Some(127.9375));

    let (outcome, _) = gradient_through_f16(GradScaler::fixed(512.0), 128.0);
    let StepOutcome::Skipped {
        culprits,
        pass,
        scale,
        next_scale,
        ..
    } = outcome
    else {
        panic!("128 * 512 is infinite in f16");
    };
    assert_eq!(culprits, ["weight"]);
    assert_eq!(pass, OverflowPass::Backward);
    assert_eq!((scale, next_scale), (512.0, 512.0));
}

#[test]
fn check_09_a_mean_over_a_million_pixels_needs_scaling() {
    const PIXELS: usize = 1 << 20;
    if !takes_means_of(PIXELS, FloatDType::F32) {
        return;
    }
    let p = 0.01f64;
    // The gradient of a wrong class of probability p, as it arrives at f16 logits.
    let gradient = |mut scaler: GradScaler| {
        let device = device();
        let logits = Param::from_tensor(Tensor::<2>::zeros([PIXELS, 2], &device));
        scaler.begin(&logits);
        let loss = autocast(&Policy::f16(), || {
            // Zeros in f16, which are exact, and the logits of p and 1 - p added in f32.
            let logits = cast_param(Op::Conv2d, &logits);
            let offset = [[((1.0 - p) / p).ln() as f32, 0.0]];
            let offset = Tensor::<2>::from_floats(offset, &device).expand([PIXELS, 2]);
            let logits = halfseg_amp::add(logits, offset);
            ops::cross_entropy(logits, Tensor::<1, Int>::zeros([PIXELS], &device))
        });
        let error = (vec(loss.clone())[0] + (1.0 - p).ln() as f32).abs();
        assert!(error < if on_gpu() { 1e-5 } else { 1e-6 }, "{error}");
        let grads = scaler.scale(loss).backward(&logits);
        let grads = scaler.unscale(grads);
        let grads = gradients(&mut scaler, logits.clone(), grads);
        vec(grads.of(&logits))[1]
    };
    let exact = p / PIXELS as f64;
    assert!((exact - 9.54e-9).abs() < 1e-11);
    assert_eq!(gradient(GradScaler::disabled()), 0.0);
    let error = (f64::from(gradient(GradScaler::fixed(512.0))) - exact).abs() / exact;
    assert!((9.3e-4..1.02e-3).contains(&error), "{error}");
}

#[test]
fn check_10_the_scaled_loss_is_f32() {
    let device = device();
    let model = Weights::new([1.0], &device);
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    scaler.begin(&model);
    // A loss in f16: 65536 would be infinite there.
    let loss = model.weight.val().cast(FloatDType::F16);
    let scaled = scaler.scale(loss);
    assert_eq!(scaled.value().dtype(), DType::F32);
    assert_eq!(vec(scaled.value()), [65536.0]);
    assert_eq!(vec(scaled.unscaled()), [1.0]);
}

#[test]
fn check_11_powers_of_two_change_no_bit() {
    let device = device();
    let gradient = values([4096], 3, &device);
    let bits = |mut scaler: GradScaler| {
        let weight = Param::from_tensor(Tensor::<1>::ones([4096], &device));
        let model = Weights { weight };
        scaler.begin(&model);
        let grads = scaler.scale(model.loss(gradient.clone())).backward(&model);
        let grads = scaler.unscale(grads);
        floats(
            gradients(&mut scaler, model.clone(), grads).of(&model.weight),
            f32::to_bits,
        )
    };
    let plain = floats(gradient.clone(), f32::to_bits);
    assert_eq!(bits(GradScaler::disabled()), plain);
    for exponent in [-20, -1, 0, 1, 9, 16, 24, 60] {
        assert_eq!(
            bits(GradScaler::fixed(2f32.powi(exponent))),
            plain,
            "2^{exponent}"
        );
    }
}

#[test]
fn check_12_f32_masters_keep_small_updates() {
    let device = device();
    let mut optimizer = SgdConfig::new().init();
    let mut scaler = GradScaler::mmcv_static();
    let mut model = Weights::new([1.0], &device);
    for _ in 0..1000 {
        let (updated, outcome) = common::step(&mut scaler, &mut optimizer, 1e-4, model, |model| {
            autocast(&Policy::f16(), || {
                cast_param(Op::Linear, &model.weight)
                    .cast(FloatDType::F32)
                    .neg()
                    .sum()
            })
        });
        assert!(outcome.stepped());
        model = updated;
    }
    let master = vec(model.weight.val())[0];
    assert_eq!(
        (f64::from(master) * 1e7).round() / 1e7,
        1.1000166,
        "{master}"
    );

    // A weight that is f16 itself never moves: 1e-4 is less than half its spacing at 1.
    let half = Tensor::<1>::ones([1], &device).cast(FloatDType::F16);
    let mut model = Weights {
        weight: Param::from_tensor(half),
    };
    let mut optimizer = SgdConfig::new().init();
    for _ in 0..1000 {
        let loss = model.weight.val().neg().sum();
        let grads = burn::optim::GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-4, model, grads);
    }
    assert_eq!(vec(model.weight.val().cast(FloatDType::F32)), [1.0]);
}

#[test]
fn check_13_sums_and_means_accumulate_in_f32() {
    let device = device();
    let ones = Tensor::<1>::ones([4096], &device).cast(FloatDType::F16);
    let sum = autocast(&Policy::f16(), || ops::sum(ones));
    assert_eq!(vec(sum), [4096.0]);

    if computes_in(FloatDType::BF16) {
        let ones = Tensor::<1>::ones([1000], &device).cast(FloatDType::BF16);
        let mean = autocast(&Policy::bf16(), || ops::mean(ones));
        assert_eq!(vec(mean), [1.0]);
    }
}

#[test]
fn check_14_batch_norm_of_f16_reaches_beyond_its_squares() {
    let device = device();
    let x = values([2, 3, 8, 8], 5, &device).sign().mul_scalar(256.0);
    let layer = BatchNormConfig::new(3).init(&device);
    let control = vec(layer.forward(x.clone()));
    let layer = BatchNormConfig::new(3).init(&device);
    let half = autocast(&Policy::f16(), || {
        nn::batch_norm(&layer, x.cast(FloatDType::F16))
    });
    assert_eq!(half.dtype(), DType::F16);
    for (half, control) in vec(half.cast(FloatDType::F32)).into_iter().zip(control) {
        assert!(half.is_finite());
        // Half a unit in the last place of the f16 output.
        assert!(
            (half - control).abs() <= control.abs() * 2f32.powi(-11),
            "{half} {control}"
        );
    }
    // Statistics are f32: the variance, 65536, is beyond f16.
    let variance = layer.running_var.value_sync();
    assert_eq!(variance.dtype(), DType::F32);
    assert!(vec(variance).into_iter().all(|variance| variance > 6000.0));
}

#[test]
fn check_15_cross_entropy_of_extreme_f16_logits_is_finite() {
    let device = device();
    let data = TensorData::from([[60000.0, -60000.0], [-60000.0, 60000.0], [60000.0, 59000.0]]);
    let logits = Param::from_tensor(Tensor::<2>::from_data(data, &device));
    let targets = Tensor::<1, Int>::from_ints([1, 1, 0], &device);
    let mut scaler = GradScaler::mmcv_static();
    let losses: [fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>; 2] =
        [ops::cross_entropy, |logits, targets| {
            let loss = CrossEntropyLossConfig::new().init(&logits.device());
            nn::cross_entropy(&loss, logits, targets)
        }];
    for loss in losses {
        scaler.begin(&logits);
        let value = autocast(&Policy::f16(), || {
            let logits = cast_param(Op::Linear, &logits);
            assert_eq!(logits.dtype(), DType::F16);
            loss(logits, targets.clone())
        });
        assert_eq!(value.dtype(), DType::F32);
        // The first row is wrong by 120000 (f16 rounds 60000 to itself), the others are right.
        assert_eq!(vec(value.clone()), [40000.0]);
        let grads = scaler.scale(value).backward(&logits);
        let grads = scaler.unscale(grads);
        let grads = gradients(&mut scaler, logits.clone(), grads);
        assert!(grads.outcome.stepped());
        let found = vec(grads.of(&logits));
        let first = found[0];
        assert!((first - 1.0 / 3.0).abs() < 1e-3);
        assert_eq!(found, [first, -first, 0.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn binary_cross_entropy_of_certain_probabilities_has_a_finite_gradient() {
    // PyTorch's formula, in f64: (p - y) / max(p (1 - p), 1e-12) / n, and log(1 - p) - log(p) for
    // targets, no logarithm below -100.
    let tiny = if on_gpu() { 1e-35 } else { 1e-40 };
    let p = [0.0f32, 1.0, 0.0, 1.0, tiny, 0.25, 0.999];
    let y = [0.0f32, 1.0, 1.0, 0.0, 1.0, 0.75, 0.5];
    let device = device();
    let probabilities = Tensor::<1>::from_floats(p, &device).require_grad();
    let targets = Tensor::<1>::from_floats(y, &device).require_grad();
    let loss = ops::binary_cross_entropy(probabilities.clone(), targets.clone());
    let log = |x: f32| f64::from(x).ln().max(-100.0);
    let n = p.len() as f64;
    let of = |(p, y): (&f32, &f32)| f64::from(*y) * log(*p) + f64::from(1.0 - y) * log(1.0 - p);
    let expected = -p.iter().zip(&y).map(of).sum::<f64>() / n;
    let error = (f64::from(vec(loss.clone())[0]) / expected - 1.0).abs();
    assert!(error < if on_gpu() { 1e-5 } else { 1e-6 }, "{error}");

    let grads = loss.backward();
    let found = vec(probabilities.grad(&grads).unwrap());
    for ((found, p), y) in found.iter().zip(p).zip(y) {
        let (p, y) = (f64::from(p), f64::from(y));
        let expected = (p - y) / (p * (1.0 - p)).max(1e-12) / n;
        let error = (f64::from(*found) - expected).abs();
        assert!(
            error <= 1e-5 * expected.abs(),
            "p {p}, y {y}: {found} {expected}"
        );
    }
    for ((found, p), y) in vec(targets.grad(&grads).unwrap()).iter().zip(p).zip(y) {
        let expected = (log(1.0 - p) - log(p)) / n;
        let error = (f64::from(*found) - expected).abs();
        assert!(
            error <= 1e-5 * expected.abs(),
            "p {p}, y {y}: {found} {expected}"
        );
    }
}

#[test]
fn norms_of_zero_vectors_have_the_gradient_zero() {
    let device = device();
    let data = [[0.0f32, 0.0, 0.0], [3.0, 0.0, -4.0]];
    let gradient = |norm: &dyn Fn(Tensor<2>) -> Tensor<1>| {
        let x = Tensor::<2>::from_floats(data, &device).require_grad();
        let value = norm(x.clone());
        (vec(value.clone()), vec(x.grad(&value.backward()).unwrap()))
    };
    let (value, slope) = gradient(&|x| ops::norm(x.slice([0..1, 0..3])));
    assert_eq!((value, slope), (vec![0.0], vec![0.0; 6]));
    for (p, rest) in [(2.0, [0.6, 0.0, -0.8]), (3.0, [0.4449, 0.0, -0.7909])] {
        let (value, slope) = gradient(&|x| ops::vector_norm(x, p, 1).sum());
        let norm = (3f32.powf(p) + 4f32.powf(p)).powf(1.0 / p);
        assert!((value[0] - norm).abs() < 1e-5, "{value:?}");
        assert_eq!(slope[..3], [0.0; 3]);
        for (slope, expected) in slope[3..].iter().zip(rest) {
            assert!((slope - expected).abs() < 1e-3, "{slope} {expected}");
        }
    }
    let (value, slope) = gradient(&|x| ops::cosine_similarity(x.clone(), x, 1, 1e-8).sum());
    assert_eq!(value, [1.0]);
    assert!(slope.iter().all(|slope| slope.is_finite()), "{slope:?}");
}

#[test]
fn squares_and_variances_of_large_f16_values_are_finite() {
    let x = Tensor::<2>::from_floats([[300.0, -300.0]], &device()).cast(FloatDType::F16);
    assert!(!vec(x.clone().square().cast(FloatDType::F32))[0].is_finite());
    autocast(&Policy::f16(), || {
        assert_eq!(vec(ops::square(x.clone())), [9e4, 9e4]);
        assert_eq!(vec(ops::powi_scalar(x.clone(), 2)), [9e4, 9e4]);
        assert_eq!(vec(ops::var(x, 1)), [1.8e5]);
    });
}
