//! What a step costs: casts, and waits for the device.

mod common;

use burn::module::{Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{DType, Device, FloatDType, Tensor};
use common::{computes_in, device, runnable};
use halfseg_amp::{DynamicScale, GradScaler, Policy, autocast, cast_report, nn, ops};

fn readbacks<R>(body: impl FnOnce() -> R) -> (R, u64) {
    let (result, report) = cast_report(body);
    (result, report.readbacks)
}

#[derive(Module, Debug)]
struct Model {
    norm: BatchNorm,
    /// In the memory of this machine.
    near: Param<Tensor<2>>,
    /// f64 if the device has it, which is left to Burn's operations as if it were on another device.
    far: Param<Tensor<2>>,
}

impl Model {
    fn new(device: &Device) -> Self {
        let dtype = match computes_in(FloatDType::F64) {
            true => DType::F64,
            false => DType::F32,
        };
        let far = Tensor::from_data([[1.0, 2.0]], (device, dtype));
        Self {
            norm: BatchNormConfig::new(2).init(device),
            near: Param::from_tensor(Tensor::from_data([[3.0, 4.0]], device)),
            far: Param::from_tensor(far),
        }
    }

    fn loss(&self, factor: f32) -> Tensor<1> {
        let x = Tensor::from_data([[1.0, 2.0], [3.0, 5.0]], &self.near.device());
        let x = nn::batch_norm(&self.norm, x).matmul(self.near.val().transpose());
        let far = self.far.val().mul_scalar(factor).sum();
        ops::mean(x) + far.cast(FloatDType::F32)
    }
}

#[test]
fn a_step_waits_for_the_device_once() {
    let device = device();
    for (factor, steps) in [(1.0, 1), (f32::INFINITY, 0)] {
        let mut optimizer = SgdConfig::new().init();
        let mut scaler = GradScaler::dynamic(DynamicScale::torch());
        let model = Model::new(&device);
        let ((_, outcome), count) = readbacks(|| {
            scaler.begin(&model);
            let loss = autocast(&Policy::f16(), || model.loss(factor));
            let first = scaler.scale(loss).backward(&model);
            let first = first.with_numbers(Tensor::from_floats([3.0, 4.0], &device));
            let loss = autocast(&Policy::f16(), || model.loss(factor));
            let second = scaler.scale(loss).backward(&model);
            let second = second.with_numbers(Tensor::from_floats([5.0], &device));
            let mut grads = scaler.unscale(first.accumulate(second)).clip_norm(0.1);
            assert_eq!(grads.take_numbers().read(), [3.0, 4.0, 5.0]);
            assert!(grads.take_numbers().read().is_empty());
            scaler.step(&mut optimizer, 0.1, model, grads)
        });
        assert_eq!((scaler.steps(), outcome.stepped()), (steps, steps == 1));
        assert_eq!(count, 1);
    }
}

#[test]
fn a_disabled_scaler_waits_for_clipping_only() {
    let device = device();
    for (clip, reads) in [(false, 0), (true, 1)] {
        let mut scaler = GradScaler::disabled();
        let model = Model::new(&device);
        let mut numbers = None;
        let (_, count) = readbacks(|| {
            scaler.begin(&model);
            let grads = scaler.scale(model.loss(1.0)).backward(&model);
            let grads = grads.with_numbers(Tensor::from_floats([7.0], &device));
            let mut grads = scaler.unscale(grads);
            if clip {
                grads = grads.clip_norm(0.1);
            }
            numbers = Some(grads.take_numbers());
            scaler.step(&mut SgdConfig::new().init(), 0.1, model, grads)
        });
        assert_eq!(count, reads);
        // Clipping has brought the numbers along; else they are read when they are asked for.
        let (numbers, count) = readbacks(|| numbers.expect("they were taken").read());
        assert_eq!((numbers, count), (vec![7.0], 1 - reads));
    }
}

/// Fifty layers: each weight and bias is cast once, the input on its way in and the output on its way
/// into the mean, and the device is waited for once, for the loss as well.
#[test]
fn a_step_of_fifty_layers_casts_each_parameter_once_and_waits_once() {
    let device = device();
    let layers: Vec<Linear> = (0..50)
        .map(|_| LinearConfig::new(8, 8).init(&device))
        .collect();
    let forward = |layers: &Vec<Linear>| {
        let x = Tensor::<2>::ones([4, 8], &device);
        let x = layers.iter().fold(x, |x, layer| nn::linear(layer, x));
        ops::mean(x)
    };
    for policy in runnable([Policy::f16(), Policy::bf16(), Policy::disabled()]) {
        let mut scaler = GradScaler::dynamic(DynamicScale::torch());
        let (grads, count) = readbacks(|| {
            let (grads, report) =
                cast_report(|| scaler.gradients(&policy, &layers, |layers| forward(layers)));
            let casts = if policy.is_enabled() { 2 * 50 + 2 } else { 0 };
            assert_eq!((report.casts, report.cache_hits), (casts, 0));
            grads.clip_norm(1.0)
        });
        assert_eq!(count, 1);
        assert!(grads.loss().is_some_and(f32::is_finite));
        let mut optimizer = SgdConfig::new().init();
        let ((_, outcome), count) =
            readbacks(|| scaler.step(&mut optimizer, 0.1, layers.clone(), grads));
        assert!(outcome.stepped());
        assert_eq!(count, 0);
    }
}
