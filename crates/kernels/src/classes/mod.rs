//! What follows the class logits of a segmentation network, pixel by pixel: cross-entropy in
//! training, the most likely class in inference.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cube")]
mod ops;

use burn::tensor::{Int, Tensor};

/// The result of [`cross_entropy_terms`]; all tensors f32, without autodiff.
#[derive(Clone, Debug)]
pub struct CrossEntropyTerms {
    /// Sum of the pixels' cross-entropies, `[1]`.
    pub sum: Tensor<1>,
    /// Number of pixels whose largest logit is the label's, `[1]`.
    pub right: Tensor<1>,
    /// Number of pixels that are not ignored, `[1]`.
    pub counted: Tensor<1>,
    /// Gradient of `sum` with respect to the logits, `[n, c, h', w']`, if it was asked for.
    pub gradient: Option<Tensor<4>>,
}

/// Resizes `logits` bilinearly to the labels' size and takes the softmax cross-entropy, in kernels
/// that make no map of all classes at the labels' size. `None` where this crate has none (see
/// [`resize_bilinear`](crate::resize_bilinear)).
///
/// Arithmetic is f32 whatever the logits' dtype is. Pixels labelled `ignored` count nowhere. The
/// result does not carry gradients: multiply `gradient` into the logits to have one. Where a label is
/// neither a class nor `ignored`, the sum is NaN, and so is the gradient of the logits it was read with.
///
/// # Shapes
/// - `logits`: `[n, c, h', w']`, on a device without autodiff
/// - `labels`: `[n, h, w]`, each `0..c` or `ignored`
///
/// # Panics
/// If the batches differ, a map is empty, or `ignored` is no `i32`.
#[cfg_attr(not(feature = "cube"), allow(unused_variables))]
pub fn cross_entropy_terms(
    logits: &Tensor<4>,
    labels: &Tensor<3, Int>,
    ignored: i64,
    align_corners: bool,
    with_gradient: bool,
) -> Option<CrossEntropyTerms> {
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&logits.device(), logits.dtype()) {
        let ([n, c, low_h, low_w], [label_n, h, w]) = (logits.dims(), labels.dims());
        assert!(
            n == label_n && n * c * low_h * low_w * h * w > 0,
            "logits {:?} and labels {:?} do not fit, or are empty",
            logits.dims(),
            labels.dims()
        );
        let resize = crate::resize::Bilinear {
            input: [low_h, low_w],
            output: [h, w],
            align_corners,
        };
        return Some(ops::cross_entropy_terms(
            logits.clone(),
            labels.clone(),
            ignored,
            resize,
            with_gradient,
        ));
    }
    None
}

/// The class with the largest logit of each pixel after `logits` were resized bilinearly to `size`,
/// the lowest such class in a tie, without a map of all classes at that size. Arithmetic is f32. `None`
/// where this crate has no kernel: it has them on the CPU, and where [`resize_bilinear`](crate::resize_bilinear) has.
/// Which class a pixel has that a NaN reaches is not said.
///
/// # Shapes
/// - `logits`: `[n, c, h, w]`, on a device without autodiff
/// - output: `[n, size[0], size[1]]`; u8 where the device has it and `c` is at most 256, else i32
///
/// # Panics
/// If a map is empty.
pub fn most_likely_classes(
    logits: &Tensor<4>,
    size: [usize; 2],
    align_corners: bool,
) -> Option<Tensor<3, Int>> {
    let [n, c, h, w] = logits.dims();
    assert!(
        n * c * h * w * size[0] * size[1] > 0,
        "cannot resize logits {:?} to {size:?}: one of them is empty",
        logits.dims()
    );
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&logits.device(), logits.dtype()) {
        let resize = crate::resize::Bilinear {
            input: [h, w],
            output: size,
            align_corners,
        };
        return Some(ops::most_likely_classes(logits.clone(), resize));
    }
    #[cfg(feature = "flex")]
    {
        let lines = |from, to| crate::Between::bilinear(from, to, align_corners);
        flex::most_likely_classes(logits, &lines(h, size[0]), &lines(w, size[1]))
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = align_corners;
        None
    }
}
