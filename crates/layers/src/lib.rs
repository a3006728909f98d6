#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch_norm;
mod conv;
mod conv_bn_act;
mod dropout;
mod fork;
mod joined;
mod loss;
mod objective;
mod pool;
mod recompute;
mod resize;
mod separable;

pub use batch_norm::{BatchNorm, BatchNormConfig};
pub use conv::{Conv2d, Conv2dConfig, Conv2dInit, with_rounded_weights};
pub use conv_bn_act::{ConvBnAct, ConvBnActConfig};
pub use dropout::ChannelDropout;
pub use fork::fork;
pub use halfseg_kernels::{Activation, Conv2dOptions, all_finite, most_likely_classes};
pub use joined::cat_channels;
pub use loss::{
    IGNORED_LABEL, SegmentationLoss, binary_logits, cross_entropy, pixel_accuracy,
    segmentation_loss,
};
pub use objective::Objective;
pub use pool::{adaptive_avg_pool2d, averaging_weights, avg_pool_to, stem_max_pool};
pub use rand::Rng;
pub use recompute::{branch, recomputed};
pub use resize::{resize, resize_memory, resize_with};
pub use separable::{DepthwiseSeparable, DepthwiseSeparableConfig};
