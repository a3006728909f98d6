//! Batch normalisation on GPUs.
//!
//! The forward pass is three launches: moments of parts of each channel, their combination, and one
//! that normalises, adds and applies the ReLU. The backward pass is three as well: two sums over
//! parts of each channel, their combination, and the gradient of every map. All arithmetic is f32.

pub mod gradients;
pub mod moments;
pub mod normalise;
mod plan;
