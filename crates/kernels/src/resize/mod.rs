//! Bilinear resizing.

#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "cube")]
pub(crate) mod ops;

use burn::tensor::Tensor;

/// From which size to which, and where pixels are.
#[cfg(feature = "cube")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bilinear {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Whether the centres of the corner pixels stay where they are.
    pub align_corners: bool,
}

/// Resizes `x` bilinearly as one operation, if this crate has a kernel for it: on GPUs that Burn
/// reaches through CubeCL, where Burn's own interpolation has no gradient. `None` elsewhere.
/// Differentiable; the backward pass keeps nothing.
///
/// Positions, weights and sums are f32; the result has `x`'s dtype. Pixel centres are at half
/// integers, or with `align_corners` such that corners fall on corners.
///
/// # Shapes
/// - `x`: `[n, c, h, w]`
/// - output: `[n, c, size[0], size[1]]`
///
/// # Panics
/// If either map is empty.
#[cfg_attr(not(feature = "cube"), allow(unused_variables))]
pub fn resize_bilinear(x: &Tensor<4>, size: [usize; 2], align_corners: bool) -> Option<Tensor<4>> {
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&x.device(), x.dtype()) {
        let [n, c, h, w] = x.dims();
        assert!(
            n * c * h * w * size[0] * size[1] > 0,
            "cannot resize a map {:?} to {size:?}: one of them is empty",
            x.dims()
        );
        let resize = Bilinear {
            input: [h, w],
            output: size,
            align_corners,
        };
        return Some(ops::resize(x.clone(), resize));
    }
    None
}
