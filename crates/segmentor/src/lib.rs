#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod cost;
mod init;
mod method;
mod segmentor;
mod validate;

pub use checkpoint::{
    CONFIG_KEY, CheckpointError, ClassTable, LoadReport, MMSEG_CONFIG_HEAD, MmsegExport, Naming,
    Reinitialised, TensorFile, load, read_architecture, read_backbone, read_classes, read_metadata,
};
pub use config::SegmentorConfig;
pub use cost::{
    Cost, MemoryPlan, PartCost, TrainingStep, count_parameters, inference_memory, training_memory,
};
pub use halfseg_backbone::{Depth, ResNet, ResNetConfig, Style, UnknownDepth};
pub use halfseg_heads::{DeepLabV3Head, DeepLabV3PlusHead, FcnHead, PspHead};
pub use method::{Method, UnknownMethod};
pub use rand::Rng;
pub use segmentor::{DecodeHead, Losses, Segmentor, TrainLogits};
pub use validate::ConfigError;
