//! What a segmentor is made of.

use halfseg_backbone::{Depth, ResNetConfig};
use serde::{Deserialize, Serialize};

use crate::Method;

/// Architecture of a [`Segmentor`](crate::Segmentor). Defaults are the published models'
/// (MMSegmentation 1.2, `configs/_base_/models/*_r50-d8.py` and `configs/*/*_r18-d8_*.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SegmentorConfig {
    /// Which head follows the backbone.
    pub method: Method,
    /// Depth of the ResNetV1c-D8 backbone.
    pub backbone: Depth,
    /// Number of classes, 2 to 255.
    #[serde(default = "default_classes")]
    pub num_classes: usize,
    /// Channels that the backbone's stem ends with; even.
    #[serde(default = "default_width")]
    pub stem_channels: usize,
    /// Width of the backbone's first stage.
    #[serde(default = "default_width")]
    pub base_channels: usize,
    /// Channels of the decode head's maps: 512, or 128 for depths 18 and 34.
    pub head_channels: usize,
    /// Channels of the auxiliary head's map: 256, or 64 for depths 18 and 34.
    pub aux_channels: usize,
    /// Channels that DeepLabV3+ reduces its low-level map to: 48, or 12 for depths 18 and 34.
    pub c1_channels: usize,
    /// Whether there is an auxiliary head.
    #[serde(default = "default_true")]
    pub aux_head: bool,
    /// What the auxiliary head's loss is multiplied with.
    #[serde(default = "default_aux_weight")]
    pub aux_weight: f64,
    /// Dilations of the atrous pyramid's branches, in pixels at stride 8.
    #[serde(default = "default_dilations")]
    pub dilations: Vec<usize>,
    /// Share of channels dropped before the classifiers in training, in `0..1`.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
    /// Whether corners are aligned when maps are resized; the published 512x1024 models do not.
    #[serde(default)]
    pub align_corners: bool,
}

/// The most channels of a map's narrowest part, and pixels between taps, so that no size overflows.
const MAX_CHANNELS: usize = 65_536;

fn default_classes() -> usize {
    19
}
fn default_width() -> usize {
    64
}
fn default_true() -> bool {
    true
}
fn default_aux_weight() -> f64 {
    0.4
}
fn default_dilations() -> Vec<usize> {
    vec![1, 12, 24, 36]
}
fn default_dropout() -> f64 {
    0.1
}

/// A value that no segmentor can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{key} = {found} is not possible: expected {expected}")]
#[non_exhaustive]
pub struct ConfigError {
    /// Name of the value.
    pub key: &'static str,
    /// What it may be.
    pub expected: &'static str,
    /// What it is.
    pub found: String,
}

/// Methods that give the same configuration with another value of a field.
macro_rules! setters {
    ($($setter:ident: $field:ident as $type:ty,)*) => {$(
        #[doc = concat!("The same with another [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        pub fn $setter(mut self, $field: $type) -> Self {
            self.$field = $field;
            self
        }
    )*};
}

impl SegmentorConfig {
    /// The published model of this method and depth.
    pub fn new(method: Method, backbone: Depth) -> Self {
        let (head_channels, aux_channels, c1_channels) = match backbone {
            Depth::R18 | Depth::R34 => (128, 64, 12),
            Depth::R50 | Depth::R101 | Depth::R152 => (512, 256, 48),
        };
        Self {
            method,
            backbone,
            num_classes: default_classes(),
            stem_channels: default_width(),
            base_channels: default_width(),
            head_channels,
            aux_channels,
            c1_channels,
            aux_head: true,
            aux_weight: default_aux_weight(),
            dilations: default_dilations(),
            dropout: default_dropout(),
            align_corners: false,
        }
    }

    /// FCN with ResNetV1c-101-D8.
    pub fn fcn_r101_d8() -> Self {
        Self::new(Method::Fcn, Depth::R101)
    }
    /// PSPNet with ResNetV1c-101-D8.
    pub fn pspnet_r101_d8() -> Self {
        Self::new(Method::PspNet, Depth::R101)
    }
    /// DeepLabV3 with ResNetV1c-101-D8.
    pub fn deeplabv3_r101_d8() -> Self {
        Self::new(Method::DeepLabV3, Depth::R101)
    }
    /// DeepLabV3+ with ResNetV1c-101-D8.
    pub fn deeplabv3plus_r101_d8() -> Self {
        Self::new(Method::DeepLabV3Plus, Depth::R101)
    }

    setters! {
        with_num_classes: num_classes as usize,
        with_stem_channels: stem_channels as usize,
        with_base_channels: base_channels as usize,
        with_head_channels: head_channels as usize,
        with_aux_channels: aux_channels as usize,
        with_c1_channels: c1_channels as usize,
        with_aux_head: aux_head as bool,
        with_aux_weight: aux_weight as f64,
        with_dilations: dilations as Vec<usize>,
        with_dropout: dropout as f64,
        with_align_corners: align_corners as bool,
    }

    /// Whether a segmentor can have these values.
    ///
    /// # Errors
    /// The first value that it cannot have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |key, ok: bool, expected, found: String| match ok {
            true => Ok(()),
            false => Err(ConfigError {
                key,
                expected,
                found,
            }),
        };
        let classes = self.num_classes;
        check(
            "num_classes",
            (2..=255).contains(&classes),
            "2 to 255 (with one there is nothing to tell apart)",
            classes.to_string(),
        )?;
        let stem = self.stem_channels;
        let even = (2..=MAX_CHANNELS).contains(&stem) && stem.is_multiple_of(2);
        check(
            "stem_channels",
            even,
            "an even number from 2 to 65536",
            stem.to_string(),
        )?;
        for (key, width) in [
            ("base_channels", self.base_channels),
            ("head_channels", self.head_channels),
            ("aux_channels", self.aux_channels),
            ("c1_channels", self.c1_channels),
        ] {
            let possible = (1..=MAX_CHANNELS).contains(&width);
            check(key, possible, "a number from 1 to 65536", width.to_string())?;
        }
        let possible = |dilation: &usize| (1..=MAX_CHANNELS).contains(dilation);
        let dilations =
            (1..=64).contains(&self.dilations.len()) && self.dilations.iter().all(possible);
        check(
            "dilations",
            dilations,
            "1 to 64 numbers from 1 to 65536",
            format!("{:?}", self.dilations),
        )?;
        let dropout = (0.0..1.0).contains(&self.dropout);
        check(
            "dropout",
            dropout,
            "0 or more, below 1",
            self.dropout.to_string(),
        )?;
        let weight = self.aux_weight.is_finite() && self.aux_weight >= 0.0;
        check(
            "aux_weight",
            weight,
            "0 or more",
            self.aux_weight.to_string(),
        )
    }

    /// The smallest batch that can train on images of this height and width, in pixels: where a map is
    /// one pixel, a normalisation of one image has one value per channel, and one value has no variance.
    /// Three of the methods pool to one pixel; the last maps of the backbone are one pixel where the
    /// image has at most 8x8.
    ///
    /// ```
    /// use halfseg_segmentor::SegmentorConfig;
    ///
    /// assert_eq!(SegmentorConfig::pspnet_r101_d8().min_train_batch([512, 1024]), 2);
    /// assert_eq!(SegmentorConfig::fcn_r101_d8().min_train_batch([512, 1024]), 1);
    /// assert_eq!(SegmentorConfig::fcn_r101_d8().min_train_batch([8, 8]), 2);
    /// ```
    pub fn min_train_batch(&self, size: [usize; 2]) -> usize {
        let one_pixel = size.iter().all(|side| side.div_ceil(8) <= 1);
        match self.method {
            Method::Fcn if !one_pixel => 1,
            Method::Fcn | Method::PspNet | Method::DeepLabV3 | Method::DeepLabV3Plus => 2,
        }
    }

    pub(crate) fn backbone_config(&self) -> ResNetConfig {
        ResNetConfig::new(self.backbone)
            .with_stem_channels(self.stem_channels)
            .with_base_channels(self.base_channels)
    }
}
