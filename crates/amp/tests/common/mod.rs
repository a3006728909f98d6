//! What several test programs share.
#![allow(dead_code, unused_imports, reason = "each test program uses its part")]

mod device;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, activation};
pub use device::{computes_in, device, odd_scale, on_gpu, plain_device, takes_means_of};
use halfseg_amp::{GradScaler, OpClass, Policy, StepOutcome, UnscaledGrads, autocast, nn, ops};

/// The policies among some that the device can run.
pub fn runnable<const N: usize>(policies: [Policy; N]) -> impl Iterator<Item = Policy> {
    let device = plain_device();
    let runs = move |policy: &Policy| policy.check(&device).is_ok();
    policies.into_iter().filter(runs)
}

/// Reproducible values around zero with magnitude up to one.
pub fn values<const D: usize>(shape: [usize; D], seed: u32, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// One weight vector: the gradient of `(weight * x).sum()` is `x`.
#[derive(Module, Debug)]
pub struct Weights {
    pub weight: Param<Tensor<1>>,
}

impl Weights {
    pub fn new<const N: usize>(values: [f32; N], device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::from_floats(values, device)),
        }
    }

    /// A loss whose gradient is `gradient`.
    pub fn loss(&self, gradient: Tensor<1>) -> Tensor<1> {
        self.weight.val().mul(gradient).sum()
    }
}

/// Convolution, batch norm, ReLU and a linear classifier, as a plain Burn program has them.
#[derive(Module, Debug)]
pub struct Net {
    pub conv: Conv2d,
    pub bn: BatchNorm,
    pub head: Linear,
    /// Part of no operation but [`Net::overflowing`].
    pub spare: Param<Tensor<1>>,
}

impl Net {
    /// The same weights each time. They are not drawn from Burn's generator, which all tests of a
    /// process share: seeding it does not keep another test from drawing in between.
    pub fn new(device: &Device) -> Self {
        let mut conv = Conv2dConfig::new([3, 8], [3, 3])
            .with_padding(PaddingConfig2d::Same)
            .init(device);
        conv.weight = Param::from_tensor(values([8, 3, 3, 3], 7, device).mul_scalar(0.1));
        conv.bias = Some(Param::from_tensor(values([8], 8, device).mul_scalar(0.1)));
        let mut head = LinearConfig::new(8, 4).init(device);
        head.weight = Param::from_tensor(values([8, 4], 9, device).mul_scalar(0.35));
        head.bias = Some(Param::from_tensor(values([4], 10, device).mul_scalar(0.35)));
        Self {
            conv,
            bn: BatchNormConfig::new(8).init(device),
            head,
            spare: Param::from_tensor(Tensor::zeros([2], device)),
        }
    }

    /// Images `[n, 3, h, w]` -> class logits `[n, 4]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = activation::relu(nn::batch_norm(&self.bn, nn::conv2d(&self.conv, x)));
        let [n, c, h, w] = x.dims();
        let x = halfseg_amp::ops::mean_dim(x.reshape([n, c, h * w]), 2).reshape([n, c]);
        nn::linear(&self.head, x)
    }

    /// The mean square of the logits of a batch made from `seed`.
    pub fn loss(&self, seed: u32) -> Tensor<1> {
        let x = values([4, 3, 6, 6], seed, &self.conv.weight.device());
        let logits = self.forward(x);
        halfseg_amp::ops::mse(logits.clone(), Tensor::ones_like(&logits))
    }

    /// 0, with a gradient that overflows for `spare` alone at any scale above 4.
    pub fn overflowing(&self) -> Tensor<1> {
        self.spare.val().mul_scalar(1e38).sum()
    }
}

/// The bits of all float parameters and running statistics, with their paths.
pub fn bits<M: Module>(model: &M) -> Vec<(String, Vec<u32>)> {
    #[derive(Default)]
    struct Bits {
        path: Vec<String>,
        found: Vec<(String, Vec<u32>)>,
    }
    impl ModuleVisitor for Bits {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found
                .push((self.path.join("."), floats(param.val(), f32::to_bits)));
        }
    }
    // `valid` brings running statistics up to date.
    let mut bits = Bits::default();
    model.valid().visit(&mut bits);
    bits.found
}

pub fn floats<const D: usize, T>(x: Tensor<D>, map: impl Fn(f32) -> T) -> Vec<T> {
    let data = x.into_data();
    data.as_slice::<f32>()
        .expect("the tensor is f32")
        .iter()
        .map(|value| map(*value))
        .collect()
}

pub fn vec<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    floats(x, |value| value)
}

/// Takes a step and gives back the gradients that the optimizer would have had.
pub fn gradients<M: Module>(scaler: &mut GradScaler, model: M, grads: UnscaledGrads) -> Grads {
    let mut taken = None;
    let (_, outcome) = scaler.step_with(model, grads, |model, grads| {
        taken = Some(grads);
        model
    });
    Grads {
        outcome,
        grads: taken,
    }
}

pub struct Grads {
    pub outcome: StepOutcome,
    /// `None` after a skip.
    pub grads: Option<burn::optim::GradientsParams>,
}

impl Grads {
    pub fn of<const D: usize>(&self, param: &Param<Tensor<D>>) -> Tensor<D> {
        let grads = self.grads.as_ref().expect("the step was taken");
        grads.get(param.id).expect("the parameter has a gradient")
    }
}

/// One step of one optimizer on a loss that `forward` computes.
pub fn step<M: Module>(
    scaler: &mut GradScaler,
    optimizer: &mut ModuleOptimizer,
    lr: f64,
    model: M,
    forward: impl FnOnce(&M) -> Tensor<1>,
) -> (M, StepOutcome) {
    scaler.begin(&model);
    let grads = scaler.scale(forward(&model)).backward(&model);
    let grads = scaler.unscale(grads);
    scaler.step(optimizer, lr, model, grads)
}

/// The scales after each step of a pattern, `x` marking steps with an overflow, and the outcomes.
pub fn trajectory(scaler: &mut GradScaler, pattern: &str) -> (Vec<f32>, Vec<StepOutcome>) {
    let device = device();
    let mut model = Weights::new([1.0], &device);
    let mut optimizer = burn::optim::SgdConfig::new().init();
    pattern
        .chars()
        .map(|step_kind| {
            let gradient = if step_kind == 'x' {
                f32::INFINITY
            } else {
                1e-30
            };
            let gradient = Tensor::from_floats([gradient], &device);
            let before = bits(&model);
            let taken = model.clone();
            let (updated, outcome) = step(scaler, &mut optimizer, 1e-3, taken, |model| {
                model.loss(gradient)
            });
            assert_eq!(outcome.stepped(), step_kind == '.');
            if step_kind == 'x' {
                assert_eq!(bits(&updated), before);
            }
            model = updated;
            (scaler.current_scale(), outcome)
        })
        .unzip()
}

/// The dtype and bits of a tensor.
pub fn exact<const D: usize>(x: Tensor<D>) -> (DType, Vec<u32>) {
    // f16 and bf16 go to f32 without rounding.
    (x.dtype(), floats(x.cast(FloatDType::F32), f32::to_bits))
}

/// What `run` gives once its kernels are chosen: a device that tunes makes the first result with other
/// kernels than all later ones. `run` has to read what it computes, as [`exact`] does.
pub fn again<T>(run: impl Fn() -> T) -> T {
    run();
    run()
}

/// What `run` gives, bit for bit, once its kernels are chosen.
pub fn settled<const D: usize>(run: impl Fn() -> Tensor<D>) -> (DType, Vec<u32>) {
    again(|| exact(run()))
}

/// The half precisions that the device computes in, with their policies.
pub fn policies() -> Vec<(FloatDType, Policy)> {
    let both = [
        (FloatDType::F16, Policy::f16()),
        (FloatDType::BF16, Policy::bf16()),
    ];
    let found = both.into_iter().filter(|(half, _)| computes_in(*half));
    found.collect()
}

/// Checks a function of one input: under autocast, from an f32 and from a half-precision input, it
/// gives what `manual` gives for the input cast to the dtype of its class, in that dtype; without
/// autocast, what `manual` gives for the input itself.
pub fn check_unary<const D: usize, const E: usize>(
    name: &str,
    class: OpClass,
    x: Tensor<D>,
    auto: impl Fn(Tensor<D>) -> Tensor<E>,
    manual: impl Fn(Tensor<D>) -> Tensor<E>,
) {
    for (half, policy) in policies() {
        for input in [x.clone(), x.clone().cast(half)] {
            let dtype = match class {
                OpClass::Compute => half,
                OpClass::Full => FloatDType::F32,
                _ => FloatDType::from(input.dtype()),
            };
            let expected = settled(|| manual(input.clone().cast(dtype)));
            let found = exact(autocast(&policy, || auto(input.clone())));
            assert_eq!(found.0, DType::from(dtype), "{name} of {:?}", input.dtype());
            assert_eq!(found, expected, "{name} of {:?} in {half:?}", input.dtype());
        }
    }
    let plain = settled(|| manual(x.clone()));
    assert_eq!(exact(auto(x.clone())), plain, "{name} without a scope");
    assert_eq!(
        exact(autocast(&Policy::disabled(), || auto(x))),
        plain,
        "{name} disabled"
    );
}

/// The same for a layer with parameters, which are cast by hand for `manual`; and the gradients of
/// its parameters are f32.
pub fn check_layer<M: Module, const D: usize, const E: usize>(
    name: &str,
    class: OpClass,
    layer: &M,
    x: Tensor<D>,
    auto: impl Fn(&M, Tensor<D>) -> Tensor<E>,
    manual: impl Fn(&M, Tensor<D>) -> Tensor<E>,
) {
    struct Caster(FloatDType);
    impl ModuleMapper for Caster {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            Param::initialized(param.id, param.val().cast(self.0))
        }
    }
    struct AssertF32<'a>(&'a GradientsParams);
    impl ModuleVisitor for AssertF32<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let grad = self
                .0
                .get::<D>(param.id)
                .expect("every parameter has a gradient");
            assert_eq!(grad.dtype(), DType::F32);
        }
    }
    let manual = |x: Tensor<D>| match x.dtype() {
        DType::F32 => manual(layer, x),
        dtype => manual(&layer.clone().map(&mut Caster(dtype.into())), x),
    };
    check_unary(name, class, x.clone(), |x| auto(layer, x), manual);
    for (_, policy) in policies() {
        let loss = autocast(&policy, || ops::mean(auto(layer, x.clone())));
        let grads = GradientsParams::from_grads(loss.backward(), layer);
        layer.visit(&mut AssertF32(&grads));
    }
}
