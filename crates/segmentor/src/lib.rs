#![doc = include_str!("../README.md")]

mod config;
mod method;
mod segmentor;

pub use config::{ConfigError, SegmentorConfig};
pub use halfseg_backbone::{Depth, UnknownDepth};
pub use method::{Method, UnknownMethod};
pub use segmentor::{DecodeHead, Losses, Segmentor, TrainLogits};
