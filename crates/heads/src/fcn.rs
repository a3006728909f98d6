//! The fully convolutional head.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use halfseg_layers::{ChannelDropout, Conv2d, ConvBnAct, ConvBnActConfig, cat_channels};
use rand::Rng;

use crate::classifier::{check_inference, classifier};

/// Configuration of an [`FcnHead`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct FcnHeadConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the head's own maps.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// Number of 3x3 convolutions. With 0, `channels` must be the input's.
    #[config(default = 2)]
    pub convs: usize,
    /// Distance between their taps, in pixels: 6 in the models that are called D6.
    #[config(default = 1)]
    pub dilation: usize,
    /// Whether the input is put beside their output before one more 3x3 convolution.
    #[config(default = true)]
    pub concat_input: bool,
    /// Share of channels dropped before the classifier.
    #[config(default = 0.1)]
    pub dropout: f64,
}

/// 3x3 convolutions and a classifier (arXiv:1411.4038, in MMSegmentation's form).
#[derive(Module, Debug)]
pub struct FcnHead {
    /// 3x3 convolutions.
    pub convs: Vec<ConvBnAct>,
    /// 3x3 over the input beside their output, not dilated.
    pub conv_cat: Option<ConvBnAct>,
    /// 1x1 to classes.
    pub conv_seg: Conv2d,
    dropout: ChannelDropout,
}

impl FcnHeadConfig {
    /// The auxiliary head of all published models: one 3x3 convolution, nothing concatenated.
    pub fn auxiliary(in_channels: usize, channels: usize, classes: usize) -> Self {
        Self::new(in_channels, channels, classes)
            .with_convs(1)
            .with_concat_input(false)
    }

    /// Draws the weights from `device`'s random numbers.
    ///
    /// # Panics
    /// If there are no convolutions between two numbers of channels.
    pub fn init(&self, device: &Device) -> FcnHead {
        assert!(
            self.convs > 0 || self.in_channels == self.channels,
            "an FCN head without convolutions cannot make {} channels of {}",
            self.channels,
            self.in_channels
        );
        let convs = (0..self.convs).map(|index| {
            let in_channels = if index == 0 {
                self.in_channels
            } else {
                self.channels
            };
            ConvBnActConfig::new([in_channels, self.channels], 3)
                .with_dilation(self.dilation)
                .init(device)
        });
        let both = self.in_channels + self.channels;
        FcnHead {
            convs: convs.collect(),
            conv_cat: self
                .concat_input
                .then(|| ConvBnActConfig::new([both, self.channels], 3).init(device)),
            conv_seg: classifier(self.channels, self.classes, device),
            dropout: ChannelDropout::new(self.dropout),
        }
    }
}

impl FcnHead {
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
    pub fn forward_train(&self, x: Tensor<4>, rng: &mut impl Rng) -> Tensor<4> {
        self.conv_seg
            .forward(self.dropout.forward(self.features(x), rng))
    }

    fn features(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.convs.iter().fold(x.clone(), |y, conv| conv.forward(y));
        match &self.conv_cat {
            Some(conv) => {
                let x = x.cast(y.dtype());
                conv.forward(cat_channels(vec![x, y]))
            }
            None => y,
        }
    }
}
