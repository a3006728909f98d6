//! Burn's ndarray backend has no half precision: a policy for one is refused by name, all else works.

#![allow(deprecated, reason = "no other backend that this can be tried on lacks half precision")]

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor, TensorData};
use halfseg_amp::{DynamicScale, GradScaler, Policy, Precision, StepOutcome, autocast, nn, ops};

#[derive(Module, Debug)]
struct Net {
    hidden: Linear,
    norm: BatchNorm,
    output: Linear,
}

fn ramp<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|x| (x as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

impl Net {
    fn new(device: &Device) -> Self {
        let linear = |inputs, outputs| {
            let mut layer = LinearConfig::new(inputs, outputs)
                .with_bias(false)
                .init(device);
            layer.weight = burn::module::Param::from_tensor(ramp([inputs, outputs], device));
            layer
        };
        Self {
            hidden: linear(4, 6),
            norm: BatchNormConfig::new(6).init(device),
            output: linear(6, 3),
        }
    }

    fn loss(&self, scale: f32) -> Tensor<1> {
        let x = ramp([5, 4], &self.hidden.weight.device());
        let x = nn::batch_norm(&self.norm, nn::linear(&self.hidden, x));
        ops::mean(ops::square(nn::linear(&self.output, x))).mul_scalar(scale)
    }
}

#[test]
fn half_precision_is_refused_by_name() {
    let device = Device::ndarray();
    for (policy, name) in [(Policy::f16(), "f16"), (Policy::bf16(), "bf16")] {
        let error = policy.check(&device).unwrap_err().to_string();
        assert!(error.contains("NdArray"), "{error}");
        let expected = format!("does not compute in {name}, only in f32");
        assert!(error.contains(&expected), "{error}");

        // Operations say the same as soon as they would cast.
        let net = Net::new(&device.clone().autodiff());
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            autocast(&policy, || net.loss(1.0))
        }));
        let message = *refused.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(message, error);
    }
    let named = Policy::disabled().with_op(halfseg_amp::Op::Linear, Precision::Bf16);
    assert!(named.check(&device).is_err());
    assert!(Policy::disabled().check(&device).is_ok());
}

#[test]
fn a_disabled_policy_trains_as_on_flex() {
    let run = |device: Device| {
        let device = device.autodiff();
        let mut scaler = GradScaler::dynamic(DynamicScale::torch());
        let (mut net, mut optimizer) = (Net::new(&device), SgdConfig::new().init());
        let mut outcomes = Vec::new();
        for scale in [1.0, f32::INFINITY, 1.0] {
            let (updated, outcome) =
                scaler.train_step(&Policy::disabled(), net, &mut optimizer, 0.1, |net| {
                    net.loss(scale)
                });
            net = updated;
            outcomes.push(outcome);
        }
        let weights = net.output.weight.val().into_data();
        (weights.try_to_vec::<f32>().unwrap(), outcomes)
    };
    let (found, outcomes) = run(Device::ndarray());
    let (expected, _) = run(Device::flex());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
    let stepped: Vec<_> = outcomes.iter().map(StepOutcome::stepped).collect();
    assert_eq!(stepped, [true, false, true]);
    let StepOutcome::Skipped { culprits, .. } = &outcomes[1] else {
        panic!("the second step has an overflow");
    };
    assert!(
        culprits.contains(&"output.weight".to_owned()),
        "{culprits:?}"
    );
}
