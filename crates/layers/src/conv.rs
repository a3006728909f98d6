//! A convolution with its weight.

use std::any::Any;
use std::ops::Range;

use burn::config::Config;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Distribution, Tensor};
use halfseg_amp::{Op, cast, cast_param, observe, operands, param_dtype, promote};
use halfseg_kernels::{Activation, Conv2dOptions, conv2d, conv2d_act, rounds_weight};

/// How the initial weights of a [`Conv2d`] are drawn.
#[derive(Config, Debug, PartialEq)]
#[non_exhaustive]
pub enum Conv2dInit {
    /// Normal with variance `2 / (c_out * kernel^2)`: Kaiming's `fan_out` mode, which MMSegmentation
    /// uses for every convolution before a normalisation (arXiv:1502.01852). PyTorch does not
    /// divide the fan by the number of groups, and neither does this.
    KaimingFanOut,
    /// Normal with this standard deviation; biases are 0.
    Normal(f64),
}

/// Configuration of a [`Conv2d`] with a square kernel, padded so that stride 1 keeps the size.
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct Conv2dConfig {
    /// Channels of the input and of the output.
    pub channels: [usize; 2],
    /// Height and width of the kernel, in taps; odd.
    pub kernel: usize,
    /// Step between neighbouring outputs, in pixels.
    #[config(default = 1)]
    pub stride: usize,
    /// Distance between neighbouring taps, in pixels.
    #[config(default = 1)]
    pub dilation: usize,
    /// Groups that channels are split into.
    #[config(default = 1)]
    pub groups: usize,
    /// Whether a bias is added.
    #[config(default = false)]
    pub bias: bool,
    /// How weights are drawn.
    #[config(default = "Conv2dInit::KaimingFanOut")]
    pub initializer: Conv2dInit,
}

/// A convolution that computes in the dtype that the current autocast policy prescribes and keeps
/// its weights in f32.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[c_out, c_in / groups, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[c_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    options: Conv2dOptions,
}

impl Conv2dConfig {
    /// Draws the weights from `device`'s random numbers.
    ///
    /// # Panics
    /// If the kernel is even, or the groups do not divide both numbers of channels.
    pub fn init(&self, device: &Device) -> Conv2d {
        let Self {
            channels: [c_in, c_out],
            kernel,
            stride,
            dilation,
            groups,
            ..
        } = *self;
        assert!(
            kernel % 2 == 1,
            "a convolution's kernel must be odd, not {kernel}"
        );
        assert!(
            groups > 0 && c_in % groups == 0 && c_out % groups == 0,
            "{groups} groups do not divide {c_in} input and {c_out} output channels"
        );
        let deviation = match self.initializer {
            Conv2dInit::KaimingFanOut => (2.0 / (c_out * kernel * kernel) as f64).sqrt(),
            Conv2dInit::Normal(deviation) => deviation,
        };
        let weight = Tensor::random(
            [c_out, c_in / groups, kernel, kernel],
            Distribution::Normal(0.0, deviation),
            device,
        );
        let padding = dilation * (kernel / 2);
        Conv2d {
            weight: Param::from_tensor(weight),
            bias: self
                .bias
                .then(|| Param::from_tensor(Tensor::zeros([c_out], device))),
            options: Conv2dOptions {
                stride: [stride; 2],
                padding: [padding; 2],
                dilation: [dilation; 2],
                groups,
            },
        }
    }
}

/// Runs `body`, a forward pass of training of `module`, with the weights rounded before it that convolutions of one
/// tap round anyway under the current autocast policy; on GPUs many of them share a kernel. See
/// [`halfseg_kernels::with_rounded_weights`].
pub fn with_rounded_weights<M: Module, R>(module: &M, body: impl FnOnce() -> R) -> R {
    #[derive(Default)]
    struct Weights(Vec<(Tensor<4>, DType)>);
    impl ModuleVisitor for Weights {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let (value, dtype) = (param.val(), param_dtype(Op::Conv2d, param));
            if let Some(weight) = (&value as &dyn Any).downcast_ref::<Tensor<4>>() {
                self.0.push((weight.clone(), dtype));
            }
        }
    }
    let mut weights = Weights::default();
    module.visit(&mut weights);
    halfseg_kernels::with_rounded_weights(weights.0, body)
}

impl Conv2d {
    /// `[n, c_in, h, w]` -> `[n, c_out, ceil(h / stride), ceil(w / stride)]`, in the dtype of the
    /// current autocast policy.
    ///
    /// # Panics
    /// If `x` has another number of channels.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.check(&x);
        observe(Op::Conv2d, &self.weight, x, |x| {
            let (x, weight) = self.operands(x);
            let bias = self.bias.as_ref();
            let bias = bias.map(|bias| cast_param(Op::Conv2d, bias).cast(x.dtype()));
            conv2d(x, weight, bias, self.options)
        })
    }

    /// The same convolution with each output channel multiplied by `scale` and moved by `shift`
    /// (both f32 `[c_out]`), at no cost beyond scaling the weights; then `skip` (the output's shape)
    /// is added, and `activation` applied.
    ///
    /// # Panics
    /// If `x` has another number of channels, or this convolution has a bias of its own.
    pub fn forward_affine(
        &self,
        x: Tensor<4>,
        affine: [Tensor<1>; 2],
        skip: Option<Tensor<4>>,
        activation: Activation,
    ) -> Tensor<4> {
        self.check(&x);
        let [_, channels, ..] = self.weight.dims();
        self.forward_affine_of(x, 0..channels, affine, skip, activation)
    }

    /// As [`forward_affine`](Self::forward_affine), of a map that has these of the weight's input channels
    /// only.
    pub(crate) fn forward_affine_of(
        &self,
        x: Tensor<4>,
        channels: Range<usize>,
        [scale, shift]: [Tensor<1>; 2],
        skip: Option<Tensor<4>>,
        activation: Activation,
    ) -> Tensor<4> {
        assert!(
            self.bias.is_none(),
            "a convolution with a bias cannot take a second one"
        );
        observe(
            Op::Conv2d,
            &self.weight,
            (x, self.weight.val(), scale, shift, skip),
            |(x, weight, scale, shift, skip)| {
                let [c_out, all, ..] = weight.dims();
                let weight = match channels.len() == all {
                    true => weight,
                    false => weight.slice([0..c_out, channels.clone()]),
                };
                // As the weight would be cast, which the kernel does while it scales; the scale has
                // the weight's dtype.
                let (x, _) = promote(cast(Op::Conv2d, x), cast(Op::Conv2d, scale.clone()));
                let skip = skip.map(|skip| skip.cast(x.dtype()));
                conv2d_act(x, weight, [scale, shift], skip, activation, self.options)
            },
        )
    }

    /// In one dtype also where an override leaves an f16 map as it is; but the weight as it is where the
    /// kernel rounds it.
    fn operands(&self, x: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let x = cast(Op::Conv2d, x);
        let rounds = rounds_weight(&x) && self.weight.dtype() == DType::F32;
        if rounds && x.dtype() == param_dtype(Op::Conv2d, &self.weight) {
            return (x, self.weight.val());
        }
        operands(Op::Conv2d, x, &self.weight)
    }

    /// How the window moves.
    pub fn options(&self) -> Conv2dOptions {
        self.options
    }

    fn check(&self, x: &Tensor<4>) {
        let [_, found, ..] = x.dims();
        let [_, per_group, ..] = self.weight.dims();
        let expected = per_group * self.options.groups;
        assert_eq!(
            found, expected,
            "a convolution of {expected} channels was given a map of {found} channels"
        );
    }
}
