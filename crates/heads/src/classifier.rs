//! What every head ends with, and what it must not be asked for.

use burn::tensor::{Device, Tensor};
use halfseg_layers::{Conv2d, Conv2dConfig, Conv2dInit};

/// A 1x1 convolution with bias 0 and weights from N(0, 0.01), as MMSegmentation's `conv_seg`.
pub(crate) fn classifier(channels: usize, classes: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([channels, classes], 1)
        .with_bias(true)
        .with_initializer(Conv2dInit::Normal(0.01))
        .init(device)
}

/// That `x` is not on a device where normalisations take the batch's statistics and move their own.
///
/// # Panics
/// If it is.
pub(crate) fn check_inference(x: &Tensor<4>) {
    assert!(
        !x.device().is_autodiff(),
        "inference on an autodiff device would train the normalisations: use forward_train, or \
         head.valid() and a map without autodiff"
    );
}
