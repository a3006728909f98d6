//! What networks do with maps between convolutions, without turning them round where these leave their channels last.
//!
//! Inference in half precision on processors with tiles computes on maps whose channels are neighbours in memory; their
//! shape is `[n, c, h, w]` all the same, and every operation of Burn takes them, some after a copy.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cube")]
mod ops;

use std::ops::Range;

use burn::tensor::Tensor;

/// Joins maps along their channels: `[n, c_i, h, w]` to `[n, sum of c_i, h, w]`. If the channels of one are neighbours in
/// memory, so are those of the result.
///
/// # Panics
/// As [`Tensor::cat`].
pub fn cat_channels(maps: Vec<Tensor<4>>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if maps.iter().any(flex::lies_channels_last) {
        let last = maps.into_iter().map(|map| {
            let map = flex::channels_last(&map).unwrap_or(map);
            map.permute([0, 2, 3, 1])
        });
        return Tensor::cat(last.collect(), 3).permute([0, 3, 1, 2]);
    }
    Tensor::cat(maps, 1)
}

/// The largest value of each window of `kernel x kernel` pixels, `stride` apart, of a map with `padding` pixels around it that
/// are never the largest; NaN if there is one in the window, as PyTorch's `max_pool2d`. Channels
/// are neighbours in memory if those of `map` are. Nothing where `map` is not on the CPU, or part of a graph.
///
/// # Shapes
/// - `map`: `[n, c, h, w]`
/// - output: `[n, c, (h + 2 padding - kernel) / stride + 1, the same of w]`
///
/// # Panics
/// If the window is larger than the padded map, or more than half of it is padding.
pub fn max_pool2d(
    map: &Tensor<4>,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Option<Tensor<4>> {
    #[cfg(feature = "flex")]
    return flex::max_pool2d(map, kernel, stride, padding);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (map, kernel, stride, padding);
        None
    }
}

/// The pixels of each of `bins` parts that cover a side of `size` pixels, as PyTorch's adaptive pooling takes them: part `i`
/// spans `floor(i size / bins)` to `ceil((i + 1) size / bins)`, so that parts may overlap.
pub fn bins(size: usize, bins: usize) -> Vec<Range<usize>> {
    let bin = |i: usize| i * size / bins..((i + 1) * size).div_ceil(bins);
    (0..bins).map(bin).collect()
}

/// Averages a map over `size[0] x size[1]` rectangles that cover it, see [`bins`], with sums in f32: on GPUs, where it is
/// differentiable and keeps nothing, and on the CPU for a map that is not part of a graph. Nothing elsewhere.
///
/// # Shapes
/// - `map`: `[n, c, h, w]`
/// - output: `[n, c, size[0], size[1]]`, in the dtype of `map`
///
/// # Panics
/// If either map is empty.
pub fn averages(map: &Tensor<4>, size: [usize; 2]) -> Option<Tensor<4>> {
    let [n, c, h, w] = map.dims();
    assert!(
        n * c * h * w * size[0] * size[1] > 0,
        "cannot average a map {:?} to {size:?}: one of them is empty",
        map.dims()
    );
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&map.device(), map.dtype()) {
        return Some(ops::averages(map.clone(), size));
    }
    #[cfg(feature = "flex")]
    return flex::averages(map, &bins(h, size[0]), &bins(w, size[1]));
    #[cfg(not(feature = "flex"))]
    None
}

/// The sum of each channel's pixels, in f32 and rounded once, on GPUs. Nothing elsewhere, or where `map` is part of a graph.
///
/// # Shapes
/// - `map`: `[n, c, h, w]`
/// - output: `[n, c, 1, 1]`, in the dtype of `map`
#[cfg_attr(not(feature = "cube"), allow(unused_variables))]
pub fn plane_sums(map: &Tensor<4>) -> Option<Tensor<4>> {
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&map.device(), map.dtype()) && !map.device().is_autodiff() {
        return Some(ops::plane_sums(map.clone()));
    }
    None
}

/// Where a resized line takes a value from: `1 - share` of the value at `low`, and `share` of that at `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    /// The nearer one to the start.
    pub low: usize,
    /// The one after it, or the same.
    pub high: usize,
    /// From 0 to 1.
    pub share: f32,
}

impl Between {
    /// Where each of `outputs` lies between two of `inputs` of a line that is resized bilinearly: pixel centres are at half
    /// integers, or with `align_corners` such that corners fall on corners. In f32, as PyTorch does: at wide maps the
    /// rounding of these positions is visible.
    ///
    /// # Panics
    /// If there are no `inputs`.
    pub fn bilinear(inputs: usize, outputs: usize, align_corners: bool) -> Vec<Self> {
        let last = inputs.checked_sub(1).expect("a line has values");
        let scale = match align_corners {
            true if outputs > 1 => last as f32 / (outputs - 1) as f32,
            true => 0.0,
            false => inputs as f32 / outputs as f32,
        };
        let position = |output: usize| match align_corners {
            true => scale * output as f32,
            false => (scale * (output as f32 + 0.5) - 0.5).max(0.0),
        };
        let between = |position: f32| {
            let low = (position as usize).min(last);
            Self {
                low,
                high: (low + 1).min(last),
                share: position - low as f32,
            }
        };
        (0..outputs).map(position).map(between).collect()
    }
}

/// A map whose rows and columns are taken from those of `map` as these say, with sums in f32; its channels are neighbours
/// in memory if those of `map` are. Nothing where `map` is not on the CPU, or part of a graph.
///
/// # Shapes
/// - `map`: `[n, c, h, w]`
/// - output: `[n, c, rows.len(), columns.len()]`, in the dtype of `map`
///
/// # Panics
/// If a row or a column is none of `map`.
pub fn resample(map: &Tensor<4>, rows: &[Between], columns: &[Between]) -> Option<Tensor<4>> {
    #[cfg(feature = "flex")]
    return flex::resample(map, rows, columns);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (map, rows, columns);
        None
    }
}
