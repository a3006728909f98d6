//! Sums of maps.

#[cfg(feature = "flex")]
mod flex;

use burn::tensor::Tensor;

/// `a + b`, rounded once from f32.
///
/// On the CPU all threads add, in place where nothing else holds `a`; elsewhere, and with autodiff, it
/// is Burn's sum.
///
/// # Shapes
/// - `a`, `b`, output: `[n, c, h, w]`, of one dtype
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn sum(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    assert_eq!(a.dims(), b.dims(), "maps that are added have one shape");
    assert_eq!(a.dtype(), b.dtype(), "maps that are added have one dtype");
    #[cfg(feature = "flex")]
    if flex::handles(&a) && flex::handles(&b) {
        return flex::sum(a, b);
    }
    a + b
}
