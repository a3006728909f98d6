//! One step in f16.
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor};
use halfseg_amp::*;

#[derive(Module, Debug)]
struct Net {
    a: Linear,
    bn: BatchNorm,
    b: Linear,
}
impl Net {
    fn new(d: &Device) -> Self {
        Self {
            a: LinearConfig::new(4, 8).init(d),
            bn: BatchNormConfig::new(8).init(d),
            b: LinearConfig::new(8, 2).init(d),
        }
    }
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = nn::linear(&self.a, x);
        let x = nn::batch_norm(&self.bn, x);
        nn::linear(&self.b, burn::tensor::activation::relu(x))
    }
}

#[test]
fn smoke() {
    let device = Device::flex().autodiff();
    let mut model = Net::new(&device);
    let mut optim = SgdConfig::new().init();
    let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    for inf in [false, true, false] {
        scaler.begin(&model);
        let before = model.bn.running_mean.value().to_data();
        let x = Tensor::<2>::random(
            [16, 4],
            burn::tensor::Distribution::Normal(0.0, 1.0),
            &device,
        );
        let x = if inf { x.mul_scalar(1e30) } else { x };
        let loss = autocast(&Policy::f16(), || ops::mean(model.forward(x)));
        let grads = scaler.scale(loss).backward(&model);
        let grads = scaler.unscale(grads).clip_norm(1.0);
        let (m, outcome) = scaler.step(&mut optim, 0.1, model, grads);
        model = m;
        println!("{outcome} {outcome:?}");
        if inf {
            assert_eq!(before, model.bn.running_mean.value_sync().to_data());
        } else {
            assert!(before != model.bn.running_mean.value_sync().to_data());
        }
        assert_eq!(outcome.stepped(), !inf);
    }
}
