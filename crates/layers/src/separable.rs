//! Depthwise separable convolution.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{ConvBnAct, ConvBnActConfig};

/// Configuration of a [`DepthwiseSeparable`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct DepthwiseSeparableConfig {
    /// Channels of the input and of the output.
    pub channels: [usize; 2],
    /// Distance between neighbouring taps of the 3x3 kernel, in pixels.
    #[config(default = 1)]
    pub dilation: usize,
}

/// A 3x3 convolution of each channel alone, then a 1x1 convolution across channels, **both** with
/// batch normalisation and ReLU (arXiv:1802.02611, section 3.1).
#[derive(Module, Debug)]
pub struct DepthwiseSeparable {
    /// 3x3, one group per channel.
    pub depthwise_conv: ConvBnAct,
    /// 1x1.
    pub pointwise_conv: ConvBnAct,
}

impl DepthwiseSeparableConfig {
    /// Draws the weights from `device`'s random numbers.
    pub fn init(&self, device: &Device) -> DepthwiseSeparable {
        let [c_in, c_out] = self.channels;
        DepthwiseSeparable {
            depthwise_conv: ConvBnActConfig::new([c_in, c_in], 3)
                .with_dilation(self.dilation)
                .with_groups(c_in)
                .init(device),
            pointwise_conv: ConvBnActConfig::new([c_in, c_out], 1).init(device),
        }
    }
}

impl DepthwiseSeparable {
    /// `[n, c_in, h, w]` -> `[n, c_out, h, w]`.
    ///
    /// # Panics
    /// As [`ConvBnAct::forward`].
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.pointwise_conv.forward(self.depthwise_conv.forward(x))
    }
}
