//! The head of DeepLabV3.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use halfseg_layers::{ChannelDropout, Conv2d, ConvBnAct, ConvBnActConfig};
use rand::Rng;

use crate::classifier::{check_inference, classifier};
use crate::{Aspp, AsppConfig};

/// Configuration of a [`DeepLabV3Head`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct DeepLabV3HeadConfig {
    /// The pyramid.
    pub aspp: AsppConfig,
    /// Number of classes.
    pub classes: usize,
    /// Share of channels dropped after the pyramid.
    #[config(default = 0.1)]
    pub dropout: f64,
    /// Whether a 3x3 convolution follows the pyramid, as in torchvision's models.
    #[config(default = false)]
    pub refine: bool,
}

/// Atrous spatial pyramid pooling and a classifier (arXiv:1706.05587).
#[derive(Module, Debug)]
pub struct DeepLabV3Head {
    /// The pyramid.
    pub aspp: Aspp,
    /// 3x3 between the pyramid and the classifier, in torchvision's models.
    pub refine: Option<ConvBnAct>,
    /// 1x1 to classes.
    pub conv_seg: Conv2d,
    dropout: ChannelDropout,
}

impl DeepLabV3HeadConfig {
    /// Draws the weights from `device`'s random numbers.
    pub fn init(&self, device: &Device) -> DeepLabV3Head {
        let channels = self.aspp.channels;
        DeepLabV3Head {
            aspp: self.aspp.init(device),
            refine: self
                .refine
                .then(|| ConvBnActConfig::new([channels; 2], 3).init(device)),
            conv_seg: classifier(channels, self.classes, device),
            dropout: ChannelDropout::new(self.dropout),
        }
    }
}

impl DeepLabV3Head {
    /// `[n, in_channels, h, w]` -> class logits `[n, classes, h, w]`, for inference.
    ///
    /// # Panics
    /// If `x` is on an autodiff device, where the normalisations would train: use
    /// [`forward_train`](Self::forward_train) there.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        check_inference(&x);
        self.classify(self.aspp.forward(x))
    }

    /// As [`forward`](Self::forward), with dropout drawn from `rng` on an autodiff device.
    ///
    /// # Panics
    /// As [`Aspp::forward`].
    pub fn forward_train(&self, x: Tensor<4>, rng: &mut impl Rng) -> Tensor<4> {
        self.classify(self.dropout.forward(self.aspp.forward(x), rng))
    }

    fn classify(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv_seg.forward(match &self.refine {
            Some(conv) => conv.forward(x),
            None => x,
        })
    }
}
