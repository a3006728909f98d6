//! What the GPU kernels share.
//!
//! Kernels are written in CubeCL and compiled at run time for whichever runtime a tensor's device
//! names (CUDA, Vulkan, Metal, ...).

pub mod launch;
pub mod layout;
pub mod reduce;
