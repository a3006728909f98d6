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
        let from = backbone.stage_channels()[self.aux_index];
        let auxiliary = || {
            FcnHeadConfig::auxiliary(from, self.aux_channels, self.outputs())
                .with_convs(self.aux_convs)
                .with_dilation(self.aux_dilation)
                .with_concat_input(self.aux_concat_input)
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
        let stages = self.backbone_config().stage_channels();
        let (c2, from) = (stages[0], stages[self.head_index]);
        let (channels, classes) = (self.head_channels, self.outputs());
        let aspp = AsppConfig::new(from, channels)
            .with_dilations(self.dilations.clone())
            .with_bottleneck_kernel(if self.refine { 1 } else { 3 })
            .with_align_corners(self.align_corners);
        match self.method {
            Method::Fcn => DecodeHead::Fcn(
                FcnHeadConfig::new(from, channels, classes)
                    .with_convs(self.head_convs)
                    .with_dilation(self.head_dilation)
                    .with_concat_input(self.head_concat_input)
                    .with_dropout(self.dropout)
                    .init(device),
            ),
            Method::PspNet => DecodeHead::PspNet(
                PspHeadConfig::new(from, channels, classes)
                    .with_pool_scales(self.pool_scales.clone())
                    .with_dropout(self.dropout)
                    .with_align_corners(self.align_corners)
                    .init(device),
            ),
            Method::DeepLabV3 => DecodeHead::DeepLabV3(
                DeepLabV3HeadConfig::new(aspp, classes)
                    .with_refine(self.refine)
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
