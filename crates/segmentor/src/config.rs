//! What a segmentor is made of.

use halfseg_backbone::{Depth, ResNetConfig, Style};
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
    /// Depth of the ResNet.
    pub backbone: Depth,
    /// Channels of the image.
    #[serde(default = "default_image")]
    pub in_channels: usize,
    /// Number of classes, 2 to 255.
    #[serde(default = "default_classes")]
    pub num_classes: usize,
    /// Whether two classes are told apart by one output, the logit of the second (`out_channels=1` in
    /// MMSegmentation), not by one for each.
    #[serde(default)]
    pub binary: bool,
    /// With it, the probability above which a pixel is of the second class.
    #[serde(default = "default_threshold")]
    pub threshold: f64,
    /// Whether the stem is three 3x3 convolutions (ResNet V1c, V1d), not one 7x7 (V1b).
    #[serde(default = "default_true")]
    pub deep_stem: bool,
    /// Whether skip connections are averaged where a stage has a stride (ResNet V1d).
    #[serde(default)]
    pub avg_down: bool,
    /// Which convolution of a bottleneck has the stride: `pytorch` (the 3x3) or `caffe` (the first 1x1).
    #[serde(default)]
    pub style: Style,
    /// Strides of the backbone's four stages; the stem has 4.
    #[serde(default = "default_strides")]
    pub stage_strides: [usize; 4],
    /// Dilations of the backbone's four stages, in pixels.
    #[serde(default = "default_stage_dilations")]
    pub stage_dilations: [usize; 4],
    /// Whether the first block of a dilated stage has half the stage's dilation.
    #[serde(default = "default_true")]
    pub contract_dilation: bool,
    /// Dilations of the last stage's blocks in the place of the stage's; empty for none.
    #[serde(default)]
    pub multi_grid: Vec<usize>,
    /// Channels that the backbone's stem ends with; even if it is deep.
    #[serde(default = "default_width")]
    pub stem_channels: usize,
    /// Width of the backbone's first stage.
    #[serde(default = "default_width")]
    pub base_channels: usize,
    /// Channels of the decode head's maps: 512, or 128 for depths 18 and 34.
    pub head_channels: usize,
    /// The stage that the decode head reads, 0 to 3.
    #[serde(default = "default_head_index")]
    pub head_index: usize,
    /// Number of 3x3 convolutions of FCN's head.
    #[serde(default = "default_head_convs")]
    pub head_convs: usize,
    /// Distance between their taps, in pixels: 6 in FCN-D6.
    #[serde(default = "default_one")]
    pub head_dilation: usize,
    /// Whether FCN's head joins its input with their output.
    #[serde(default = "default_true")]
    pub head_concat_input: bool,
    /// Bins of PSPNet's levels, in each direction.
    #[serde(default = "default_pool_scales")]
    pub pool_scales: Vec<usize>,
    /// Whether DeepLabV3's branches are joined by a 1x1 convolution that a 3x3 follows, as in torchvision,
    /// not by one 3x3.
    #[serde(default)]
    pub refine: bool,
    /// Channels of the auxiliary head's map: 256, or 64 for depths 18 and 34.
    pub aux_channels: usize,
    /// Channels that DeepLabV3+ reduces its low-level map to: 48, or 12 for depths 18 and 34.
    pub c1_channels: usize,
    /// Whether there is an auxiliary head.
    #[serde(default = "default_true")]
    pub aux_head: bool,
    /// The stage that the auxiliary head reads, 0 to 3.
    #[serde(default = "default_aux_index")]
    pub aux_index: usize,
    /// Number of the auxiliary head's 3x3 convolutions.
    #[serde(default = "default_one")]
    pub aux_convs: usize,
    /// Distance between their taps, in pixels.
    #[serde(default = "default_one")]
    pub aux_dilation: usize,
    /// Whether the auxiliary head joins its input with their output.
    #[serde(default)]
    pub aux_concat_input: bool,
    /// What the auxiliary head's loss is multiplied with.
    #[serde(default = "default_aux_weight")]
    pub aux_weight: f64,
    /// Dilations of the atrous pyramid's branches, in pixels of the map that it reads.
    #[serde(default = "default_dilations")]
    pub dilations: Vec<usize>,
    /// Share of channels dropped before the classifiers in training, in `0..1`; with `refine`, after the
    /// pyramid.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
    /// Whether corners are aligned when maps are resized; the published 512x1024 models do not.
    #[serde(default)]
    pub align_corners: bool,
}

fn default_classes() -> usize {
    19
}
/// `BaseDecodeHead` of MMSegmentation 1.2.
pub(crate) fn default_threshold() -> f64 {
    0.3
}
fn default_image() -> usize {
    3
}
fn default_width() -> usize {
    64
}
fn default_one() -> usize {
    1
}
fn default_true() -> bool {
    true
}
fn default_strides() -> [usize; 4] {
    [1, 2, 1, 1]
}
fn default_stage_dilations() -> [usize; 4] {
    [1, 1, 2, 4]
}
fn default_head_index() -> usize {
    3
}
fn default_aux_index() -> usize {
    2
}
fn default_head_convs() -> usize {
    2
}
fn default_pool_scales() -> Vec<usize> {
    vec![1, 2, 3, 6]
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
            binary: false,
            threshold: default_threshold(),
            in_channels: default_image(),
            deep_stem: true,
            avg_down: false,
            style: Style::default(),
            stage_strides: default_strides(),
            stage_dilations: default_stage_dilations(),
            contract_dilation: true,
            multi_grid: Vec::new(),
            stem_channels: default_width(),
            base_channels: default_width(),
            head_channels,
            head_index: default_head_index(),
            head_convs: default_head_convs(),
            head_dilation: default_one(),
            head_concat_input: true,
            pool_scales: default_pool_scales(),
            refine: false,
            aux_channels,
            c1_channels,
            aux_head: true,
            aux_index: default_aux_index(),
            aux_convs: default_one(),
            aux_dilation: default_one(),
            aux_concat_input: false,
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
        with_binary: binary as bool,
        with_threshold: threshold as f64,
        with_in_channels: in_channels as usize,
        with_deep_stem: deep_stem as bool,
        with_avg_down: avg_down as bool,
        with_style: style as Style,
        with_stage_strides: stage_strides as [usize; 4],
        with_stage_dilations: stage_dilations as [usize; 4],
        with_contract_dilation: contract_dilation as bool,
        with_multi_grid: multi_grid as Vec<usize>,
        with_head_index: head_index as usize,
        with_head_convs: head_convs as usize,
        with_head_dilation: head_dilation as usize,
        with_head_concat_input: head_concat_input as bool,
        with_pool_scales: pool_scales as Vec<usize>,
        with_refine: refine as bool,
        with_aux_index: aux_index as usize,
        with_aux_convs: aux_convs as usize,
        with_aux_dilation: aux_dilation as usize,
        with_aux_concat_input: aux_concat_input as bool,
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

    /// The logit of [`threshold`](Self::threshold): a pixel whose one output is above it is of the second class.
    pub fn logit_threshold(&self) -> f64 {
        (self.threshold / (1.0 - self.threshold)).ln()
    }

    /// Channels of the logits: the number of classes, or 1.
    pub fn outputs(&self) -> usize {
        match self.binary {
            true => 1,
            false => self.num_classes,
        }
    }

    /// The smallest batch that can train on images of this height and width, in pixels: where a map is
    /// one pixel, a normalisation of one image has one value per channel, and one value has no variance.
    /// Three of the methods pool to one pixel; the last maps of the backbone are one pixel where the
    /// image has at most 8x8, at output stride 8.
    ///
    /// ```
    /// use halfseg_segmentor::SegmentorConfig;
    ///
    /// assert_eq!(SegmentorConfig::pspnet_r101_d8().min_train_batch([512, 1024]), 2);
    /// assert_eq!(SegmentorConfig::fcn_r101_d8().min_train_batch([512, 1024]), 1);
    /// assert_eq!(SegmentorConfig::fcn_r101_d8().min_train_batch([8, 8]), 2);
    /// ```
    pub fn min_train_batch(&self, size: [usize; 2]) -> usize {
        let pools_to_one = match self.method {
            Method::Fcn => false,
            Method::PspNet => self.pool_scales.contains(&1),
            Method::DeepLabV3 | Method::DeepLabV3Plus => true,
        };
        let stride = self.output_stride();
        let one_pixel = size.iter().all(|side| side.div_ceil(stride) <= 1);
        match pools_to_one || one_pixel {
            true => 2,
            false => 1,
        }
    }

    /// By what the backbone's last maps are smaller than the image: 8 in the published models.
    ///
    /// ```
    /// use halfseg_segmentor::SegmentorConfig;
    ///
    /// let model = SegmentorConfig::deeplabv3_r101_d8();
    /// assert_eq!(model.output_stride(), 8);
    /// assert_eq!(model.with_stage_strides([1, 2, 2, 1]).output_stride(), 16);
    /// ```
    pub fn output_stride(&self) -> usize {
        self.backbone_config().output_strides()[3]
    }

    /// By what the decode head's logits are smaller than the image.
    pub fn logits_stride(&self) -> usize {
        let strides = self.backbone_config().output_strides();
        match self.method {
            Method::DeepLabV3Plus => strides[0],
            _ => strides[self.head_index.min(3)],
        }
    }

    pub(crate) fn backbone_config(&self) -> ResNetConfig {
        ResNetConfig::new(self.backbone)
            .with_in_channels(self.in_channels)
            .with_stem_channels(self.stem_channels)
            .with_base_channels(self.base_channels)
            .with_deep_stem(self.deep_stem)
            .with_avg_down(self.avg_down)
            .with_style(self.style)
            .with_strides(self.stage_strides)
            .with_dilations(self.stage_dilations)
            .with_contract_dilation(self.contract_dilation)
            .with_multi_grid(self.multi_grid.clone())
    }
}
