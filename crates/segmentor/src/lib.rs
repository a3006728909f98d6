#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod method;
mod segmentor;

pub use checkpoint::{
    CONFIG_KEY, CheckpointError, LoadReport, Reinitialised, load, read_architecture, read_backbone,
    read_metadata,
};
pub use config::{ConfigError, SegmentorConfig};
pub use halfseg_backbone::{Depth, ResNetConfig, UnknownDepth};
pub use method::{Method, UnknownMethod};
pub use segmentor::{DecodeHead, Losses, Segmentor, TrainLogits};
