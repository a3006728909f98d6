//! Convolution, batch normalisation, optional addition and activation.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{Activation, BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig};

/// Configuration of a [`ConvBnAct`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct ConvBnActConfig {
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
    /// Whether a ReLU comes last.
    #[config(default = true)]
    pub relu: bool,
    /// Initial scale of the normalisation.
    #[config(default = 1.0)]
    pub scale: f64,
}

/// Convolution without bias, batch normalisation, optional addition of a skip connection, optional
/// ReLU.
///
/// On an autodiff device it trains; elsewhere the normalisation is folded into the convolution's
/// weights, so that inference makes no pass over the map for it.
#[derive(Module, Debug)]
pub struct ConvBnAct {
    /// The convolution.
    pub conv: Conv2d,
    /// The normalisation.
    pub bn: BatchNorm,
    #[module(skip)]
    activation: Activation,
}

impl ConvBnActConfig {
    /// Draws the weights from `device`'s random numbers.
    ///
    /// # Panics
    /// As [`Conv2dConfig::init`].
    pub fn init(&self, device: &Device) -> ConvBnAct {
        ConvBnAct {
            conv: Conv2dConfig::new(self.channels, self.kernel)
                .with_stride(self.stride)
                .with_dilation(self.dilation)
                .with_groups(self.groups)
                .init(device),
            bn: BatchNormConfig::new(self.channels[1])
                .with_scale(self.scale)
                .init(device),
            activation: if self.relu {
                Activation::Relu
            } else {
                Activation::None
            },
        }
    }
}

impl ConvBnAct {
    /// `[n, c_in, h, w]` -> `[n, c_out, ceil(h / stride), ceil(w / stride)]`, in the dtype of the
    /// current autocast policy.
    ///
    /// # Panics
    /// If `x` has another number of channels, or in training one value per channel.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.run(x, None)
    }

    /// As [`forward`](Self::forward), with `skip` (the output's shape) added before the activation.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), or if `skip` has another shape.
    pub fn forward_add(&self, x: Tensor<4>, skip: Tensor<4>) -> Tensor<4> {
        self.run(x, Some(skip))
    }

    pub(crate) fn activation(&self) -> Activation {
        self.activation
    }

    fn run(&self, x: Tensor<4>, skip: Option<Tensor<4>>) -> Tensor<4> {
        if self.bn.trains_on(&x.device()) {
            return self
                .bn
                .forward_train(self.conv.forward(x), skip, self.activation);
        }
        let (scale, shift) = self.bn.affine();
        self.conv
            .forward_affine(x, [scale, shift], skip, self.activation)
    }
}
