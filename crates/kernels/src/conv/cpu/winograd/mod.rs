//! 3x3 convolutions of stride 1 with fewer products: Winograd's minimal filtering (arXiv:1509.09308).
//!
//! `TILE x TILE` outputs come from `WINDOW x WINDOW` products of transformed inputs and transformed
//! kernels, with `WINDOW = TILE + 2`: 16 instead of 36 for F(2x2, 3x3), 36 instead of 144 for
//! F(4x4, 3x3). The first loses no more than direct sums do and serves all passes; the transforms of
//! the second lose about a digit (results stay within 1e-4, 2-norm), so only inference uses it. A
//! dilation `d` is `d * d` interleaved maps of dilation 1.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod forward;
mod multiply;
mod plan;
mod scheme;
mod transform;
mod weight_gradient;

pub use forward::forward;
pub use plan::{Kernels, pays, pays_with_kernels};
#[cfg(test)]
pub use scheme::{Minimal, Scheme};
pub use weight_gradient::weight_gradient;
