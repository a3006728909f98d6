//! What the CPU kernels share.

pub mod element;
pub mod isa;
pub mod lines;
pub mod scratch;
pub mod tasks;
pub mod tensor;
#[cfg(target_arch = "x86_64")]
pub mod tile_registers;
pub mod transpose;
