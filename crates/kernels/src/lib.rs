#![doc = include_str!("../README.md")]

mod conv;
mod memory;
mod norm;

pub use conv::{Conv2dOptions, conv2d, conv2d_act};
pub use memory::keep_freed_memory;
pub use norm::{Activation, BatchNormOutput, batch_norm_train};
