#![doc = include_str!("../README.md")]

mod classes;
mod conv;
#[cfg(feature = "cube")]
mod cube;
mod memory;
mod norm;
mod resize;
mod sgd;

pub use classes::{CrossEntropyTerms, cross_entropy_terms, most_likely_classes};
pub use conv::{Conv2dOptions, conv2d, conv2d_act};
pub use memory::keep_freed_memory;
pub use norm::{Activation, BatchNormOutput, batch_norm_train};
pub use resize::resize_bilinear;
pub use sgd::{SgdStep, sgd_step};
