//! From a configuration to a network with random weights.

use burn::tensor::Device;
use halfseg_heads::{
    AsppConfig, DeepLabV3HeadConfig, DeepLabV3PlusHeadConfig, FcnHeadConfig, PspHeadConfig,
};

use crate::{DecodeHead, Method, Segmentor, SegmentorConfig};

impl SegmentorConfig {
    /// Draws the weights from `device`'s random numbers (`device.seed(..)` makes them repeat), as
    /// MMSegmentation does when it trains from scratch: Kaiming normal by fan-out for convolutions,
    /// N(0, 0.01) for classifiers, scale 0 for the last normalisation of each residual block.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) refuses the values.
    pub fn init(&self, device: &Device) -> Segmentor {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let backbone = self.backbone_config();
        let [_, _, c4, _] = backbone.stage_channels();
        let auxiliary = || {
            FcnHeadConfig::auxiliary(c4, self.aux_channels, self.num_classes)
                .with_dropout(self.dropout)
                .init(device)
        };
        Segmentor::new(
            backbone.init(device),
            self.decode_head(device),
            self.aux_head.then(auxiliary),
            self.clone(),
        )
    }

    fn decode_head(&self, device: &Device) -> DecodeHead {
        let [c2, _, _, c5] = self.backbone_config().stage_channels();
        let (channels, classes) = (self.head_channels, self.num_classes);
        let aspp = AsppConfig::new(c5, channels)
            .with_dilations(self.dilations.clone())
            .with_align_corners(self.align_corners);
        match self.method {
            Method::Fcn => DecodeHead::Fcn(
                FcnHeadConfig::new(c5, channels, classes)
                    .with_dropout(self.dropout)
                    .init(device),
            ),
            Method::PspNet => DecodeHead::PspNet(
                PspHeadConfig::new(c5, channels, classes)
                    .with_dropout(self.dropout)
                    .with_align_corners(self.align_corners)
                    .init(device),
            ),
            Method::DeepLabV3 => DecodeHead::DeepLabV3(
                DeepLabV3HeadConfig::new(aspp, classes)
                    .with_dropout(self.dropout)
                    .init(device),
            ),
            Method::DeepLabV3Plus => DecodeHead::DeepLabV3Plus(
                DeepLabV3PlusHeadConfig::new(
                    aspp.with_separable(true),
                    c2,
                    self.c1_channels,
                    classes,
                )
                .with_dropout(self.dropout)
                .init(device),
            ),
        }
    }
}
