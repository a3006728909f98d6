//! The pyramid pooling head.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use halfseg_layers::{ChannelDropout, Conv2d, ConvBnAct, ConvBnActConfig, adaptive_avg_pool2d};
use rand::Rng;

use crate::classifier::{check_inference, classifier};

/// Configuration of a [`PspHead`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct PspHeadConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the head's own maps.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// Bins of the pyramid's levels, in each direction.
    #[config(default = "vec![1, 2, 3, 6]")]
    pub pool_scales: Vec<usize>,
    /// Share of channels dropped before the classifier.
    #[config(default = 0.1)]
    pub dropout: f64,
    /// Whether corners are aligned when the pooled maps are resized.
    #[config(default = false)]
    pub align_corners: bool,
}

/// Pools the input to a few bins, convolves each, and convolves all of them together with
/// the input (arXiv:1612.01105).
#[derive(Module, Debug)]
pub struct PspHead {
    /// 1x1 convolutions of the pooled maps.
    pub psp_modules: Vec<ConvBnAct>,
    /// 3x3 over the input and the resized levels.
    pub bottleneck: ConvBnAct,
    /// 1x1 to classes.
    pub conv_seg: Conv2d,
    dropout: ChannelDropout,
    #[module(skip)]
    pool_scales: Vec<usize>,
    align_corners: bool,
}

impl PspHeadConfig {
    /// Draws the weights from `device`'s random numbers.
    pub fn init(&self, device: &Device) -> PspHead {
        let Self {
            in_channels,
            channels,
            classes,
            ..
        } = *self;
        let level = |_| ConvBnActConfig::new([in_channels, channels], 1).init(device);
        let all = in_channels + self.pool_scales.len() * channels;
        PspHead {
            psp_modules: self.pool_scales.iter().map(level).collect(),
            bottleneck: ConvBnActConfig::new([all, channels], 3).init(device),
            conv_seg: classifier(channels, classes, device),
            dropout: ChannelDropout::new(self.dropout),
            pool_scales: self.pool_scales.clone(),
            align_corners: self.align_corners,
        }
    }
}

impl PspHead {
    /// `[n, in_channels, h, w]` -> class logits `[n, classes, h, w]`, for inference.
    ///
    /// # Panics
    /// If `x` is on an autodiff device, where the normalisations would train: use
    /// [`forward_train`](Self::forward_train) there.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        check_inference(&x);
        self.conv_seg.forward(self.features(x))
    }

    /// As [`forward`](Self::forward), with dropout drawn from `rng` on an autodiff device.
    ///
    /// # Panics
    /// If a batch of 1 trains with a level of one bin, which has one value per channel.
    pub fn forward_train(&self, x: Tensor<4>, rng: &mut impl Rng) -> Tensor<4> {
        self.conv_seg
            .forward(self.dropout.forward(self.features(x), rng))
    }

    fn features(&self, x: Tensor<4>) -> Tensor<4> {
        let levels = self.pool_scales.iter().zip(&self.psp_modules);
        let levels = levels.map(|(&bins, conv)| {
            let pooled = adaptive_avg_pool2d(x.clone(), [bins; 2]);
            conv.forward(pooled).cast(x.dtype())
        });
        let levels = levels.collect();
        self.bottleneck
            .forward_joined(vec![], vec![x], levels, self.align_corners)
    }
}
