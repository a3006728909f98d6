//! The 1x1 convolution to classes that every head ends with.

use burn::tensor::Device;
use halfseg_layers::{Conv2d, Conv2dConfig, Conv2dInit};

/// A 1x1 convolution with bias 0 and weights from N(0, 0.01), as MMSegmentation's `conv_seg`.
pub(crate) fn classifier(channels: usize, classes: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([channels, classes], 1)
        .with_bias(true)
        .with_initializer(Conv2dInit::Normal(0.01))
        .init(device)
}
