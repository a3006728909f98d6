//! The head of DeepLabV3+.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use halfseg_layers::{
    ChannelDropout, Conv2d, ConvBnAct, ConvBnActConfig, DepthwiseSeparable,
    DepthwiseSeparableConfig, cat_channels, resize_with,
};
use rand::Rng;

use crate::classifier::{check_inference, classifier};
use crate::{Aspp, AsppConfig};

/// Configuration of a [`DeepLabV3PlusHead`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct DeepLabV3PlusHeadConfig {
    /// The pyramid, with separable branches.
    pub aspp: AsppConfig,
    /// Channels of the low-level map (c2).
    pub c1_in_channels: usize,
    /// Channels that it is reduced to.
    pub c1_channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// Share of channels dropped before the classifier.
    #[config(default = 0.1)]
    pub dropout: f64,
}

/// Separable atrous pyramid, refined with a low-level map at twice its size (arXiv:1802.02611).
///
/// "c1" in MMSegmentation's names is the first stage's map, c2 in the usual numbering.
#[derive(Module, Debug)]
pub struct DeepLabV3PlusHead {
    /// The pyramid.
    pub aspp: Aspp,
    /// 1x1 convolution of the low-level map.
    pub c1_bottleneck: ConvBnAct,
    /// Two separable 3x3 convolutions over both.
    pub sep_bottleneck: Vec<DepthwiseSeparable>,
    /// 1x1 to classes.
    pub conv_seg: Conv2d,
    dropout: ChannelDropout,
    align_corners: bool,
}

impl DeepLabV3PlusHeadConfig {
    /// Draws the weights from `device`'s random numbers.
    pub fn init(&self, device: &Device) -> DeepLabV3PlusHead {
        let channels = self.aspp.channels;
        let shapes = [
            [channels + self.c1_channels, channels],
            [channels, channels],
        ];
        DeepLabV3PlusHead {
            aspp: self.aspp.init(device),
            c1_bottleneck: ConvBnActConfig::new([self.c1_in_channels, self.c1_channels], 1)
                .init(device),
            sep_bottleneck: shapes
                .map(|shape| DepthwiseSeparableConfig::new(shape).init(device))
                .into(),
            conv_seg: classifier(channels, self.classes, device),
            dropout: ChannelDropout::new(self.dropout),
            align_corners: self.aspp.align_corners,
        }
    }
}

impl DeepLabV3PlusHead {
    /// c5 `[n, in_channels, h, w]` and c2 `[n, c1_in_channels, h', w']` -> class logits
    /// `[n, classes, h', w']`, for inference.
    ///
    /// # Panics
    /// If `x` is on an autodiff device, where the normalisations would train: use
    /// [`forward_train`](Self::forward_train) there.
    pub fn forward(&self, x: Tensor<4>, low_level: Tensor<4>) -> Tensor<4> {
        check_inference(&x);
        self.conv_seg.forward(self.features(x, low_level))
    }

    /// As [`forward`](Self::forward), with dropout drawn from `rng` on an autodiff device.
    ///
    /// # Panics
    /// As [`Aspp::forward`].
    pub fn forward_train(
        &self,
        x: Tensor<4>,
        low_level: Tensor<4>,
        rng: &mut impl Rng,
    ) -> Tensor<4> {
        self.conv_seg
            .forward(self.dropout.forward(self.features(x, low_level), rng))
    }

    fn features(&self, x: Tensor<4>, low_level: Tensor<4>) -> Tensor<4> {
        let [_, _, h, w] = low_level.dims();
        let low_level = self.c1_bottleneck.forward(low_level);
        let context = resize_with(self.aspp.forward(x), [h, w], self.align_corners);
        // A policy may give the two another dtype.
        let both = cat_channels(vec![context, low_level]);
        self.sep_bottleneck
            .iter()
            .fold(both, |y, conv| conv.forward(y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, TensorData};
    use halfseg_amp::{Policy, Precision, autocast};
    use rand::SeedableRng;

    /// Branches of another dtype than their neighbours meet in concatenations.
    #[test]
    fn a_policy_may_give_any_branch_another_precision() {
        let device = Device::flex().autodiff();
        let aspp = AsppConfig::new(8, 4)
            .with_dilations(vec![1, 2])
            .with_separable(true);
        let head = DeepLabV3PlusHeadConfig::new(aspp, 6, 2, 3).init(&device);
        let map = |shape| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let (x, low_level) = (map([2, 8, 4, 6]), map([2, 6, 8, 12]));
        let logits = |policy: &Policy| -> TensorData {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
            let logits = autocast(policy, || {
                head.forward_train(x.clone(), low_level.clone(), &mut rng)
            });
            logits.inner().into_data().convert::<f32>()
        };
        let exact = logits(&Policy::disabled());
        for path in [
            "aspp.image_pool",
            "aspp.aspp_modules.0",
            "aspp.aspp_modules.1",
            "aspp",
            "c1_bottleneck",
            "sep_bottleneck.0",
        ] {
            let mut policy = Policy::f16().with_module(path, Precision::F32);
            assert_eq!(policy.bind(&head), []);
            let found = logits(&policy);
            exact.assert_approx_eq::<f32>(&found, burn::tensor::Tolerance::absolute(0.05));
        }
    }
}
