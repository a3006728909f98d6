#![doc = include_str!("../README.md")]

mod activation;
mod any_tensor;
mod classes;
mod conv;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "cube")]
mod gpu;
#[cfg(test)]
#[path = "../tests/guard_pages/mod.rs"]
mod guard_pages;
mod lists;
mod maps;
mod norm;
mod resize;
mod sgd;
mod sum;
mod with_gradient;

#[cfg(feature = "cube")]
pub use self::gpu::launch::multiplies;
pub use activation::Activation;
pub use any_tensor::AnyTensor;
pub use classes::{CrossEntropyTerms, cross_entropy_terms, most_likely_classes};
pub use conv::{
    Conv2dOptions, conv2d, conv2d_act, rounds_products, rounds_weight, with_rounded_weights,
};
#[cfg(feature = "flex")]
pub use conv::{ConvolutionPass, PackedWeights, TimedConvolution, time_convolutions};
#[cfg(feature = "flex")]
pub use cpu::isa::{InstructionSetError, f32_products, instruction_set};
pub use lists::{SgdParameter, all_finite, handles_lists, measure_list, scale_list, sgd_step_list};
pub use maps::{Between, averages, bins, cat_channels, max_pool2d, plane_sums, resample};
pub use norm::{
    BatchNormOutput, BatchParts, Running, batch_norm_shared, batch_norm_train,
    batch_norm_train_moving,
};
pub use resize::resize_bilinear;
pub use sgd::{SgdStep, sgd_step};
pub use sum::sum;
pub use with_gradient::{takes_gradients, with_gradient};
