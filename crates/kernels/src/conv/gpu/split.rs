//! Weight gradients as matrix products over parts of the pixels.
//!
//! The gradient of a weight is a sum over all pixels of a batch, while there are only as many sums as the
//! weight has values: one product of matrices leaves most of a large GPU idle. So pixels are cut into parts
//! that are multiplied side by side, whose products are f32 and are added in f32.
//!
//! With a stride of 1, what a tap reads of a map with a border of zeros is the same map from a later pixel
//! on: all taps are products side by side too, and nothing is copied for any of them (`shifted`). Elsewhere
//! the pixels that taps read are copied, for as many taps at a time as take little memory.

use std::ops::Range;

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Conv2dOptions;
use super::dense::is_pointwise;
use super::direct::{Sums, add_up};
use super::problem::{Declined, Problem};
use super::product::multiply;
use super::window::{Side, sides, source, vector_size};
use crate::gpu::launch::{buffer, element, elementwise, empty};

mod shifted;

/// Rows and columns that a matrix product gives to a group of units, as a guess.
const TILE: usize = 128;
/// Groups of units that keep a large GPU busy.
const GROUPS: usize = 256;
/// Pixels of a part at least, and what their number is a multiple of.
const PIXELS: usize = 512;
const MULTIPLE: usize = 16;
/// Bytes of products, or of columns, that are in memory at a time.
const BYTES: usize = 1 << 26;

/// The pixels that `taps` taps from `first` on read, one row for each output pixel from `start` on, zeros where they
/// read none and in rows from `rows_used` on: `[parts, taps, part, c]`, a vector of channels a unit.
#[cube(launch_unchecked)]
fn columns_of_taps<E: Float, N: Size>(
    x: &[Vector<E, N>],
    output: &mut [Vector<E, N>],
    rows: Side,
    columns: Side,
    start: usize,
    first: usize,
    taps: usize,
    part: usize,
    channels: usize,
    rows_used: usize,
    length: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let row = index / channels;
    let tap = first + row / part % taps;
    let pixel = start + row / part / taps * part + row % part;
    let line = pixel / columns.to;
    let down = source(line % rows.to, tap / columns.taps, &rows, false);
    let across = source(pixel % columns.to, tap % columns.taps, &columns, false);
    let mut value = Vector::<E, N>::new(E::from_int(0));
    if pixel < rows_used && down.inside && across.inside {
        let start = (line / rows.to * rows.from + down.at) * columns.from;
        value = x[(start + across.at) * channels + index % channels];
    }
    output[index] = value;
}

/// How pixels are cut: the number of parts, and the pixels of each, of `products` side by side.
fn cut(pixels: usize, c_out: usize, c_in: usize, products: usize) -> (usize, usize) {
    let tiles = c_out.div_ceil(TILE) * c_in.div_ceil(TILE) * products;
    let splits = (GROUPS / tiles).min(pixels / PIXELS).max(1);
    let part = pixels.div_ceil(splits).next_multiple_of(MULTIPLE);
    (pixels.div_ceil(part), part)
}

/// See [`super::dense::weight_gradient`].
pub fn weight_gradient(problem: Problem) -> Result<CubeTensor, Declined> {
    match shifted::rows_together(&problem) {
        Some(rows) => shifted::weight_gradient(problem, rows),
        None => by_columns(problem),
    }
}

fn by_columns(problem: Problem) -> Result<CubeTensor, Declined> {
    let Problem {
        map: x,
        other: gradient,
        size: kernel,
        dtype,
        options,
        ..
    } = problem;
    let [n, h_out, w_out, c_out] = gradient.meta.shape().dims();
    let [.., c_in] = x.meta.shape().dims::<4>();
    let (splits, part) = cut(n * h_out * w_out, c_out, c_in, 1);
    let taps = kernel[0] * kernel[1];
    let columns_bytes = splits * part * c_in * x.dtype.size();
    let products_bytes = splits * c_out * c_in * size_of::<f32>();
    let together = (BYTES / columns_bytes.max(products_bytes)).clamp(1, taps);

    let (to, whole) = ([h_out, w_out], Conv2dOptions::default());
    let gradient = columns(&gradient, to, [1, 1], whole, 0..1, 0, [splits, part]);
    let gradient = permute(gradient, &[0, 1, 3, 2]);
    let weight = empty(&x, [c_out, c_in, kernel[0], kernel[1]], dtype);
    for first in (0..taps).step_by(together) {
        let some = first..(first + together).min(taps);
        let columns = columns(&x, to, kernel, options, some.clone(), 0, [splits, part]);
        let products = empty(&x, [splits, some.len(), c_out, c_in], DType::F32);
        let products = multiply(gradient.clone(), columns, products)?;
        add_up(products, &weight, Sums::ByTap(some));
    }
    Ok(weight)
}

/// A convolution as products of matrices of what all taps read, for as many pixels at a time as take little memory.
pub fn correlate(problem: Problem) -> Result<CubeTensor, Declined> {
    let Problem {
        map: x,
        other: weight,
        size: to,
        options,
        ..
    } = problem;
    let [n, _, _, c] = x.meta.shape().dims();
    let [c_out, kh, kw, _] = weight.meta.shape().dims();
    let (taps, pixels) = (kh * kw, n * to[0] * to[1]);
    let weight = permute(reshape(weight, [c_out, taps * c].into()), &[1, 0]);
    let output = empty(&x, [pixels, c_out], x.dtype);
    // A multiple, so that each part of the output begins where a device can bind it.
    let together = (BYTES / (taps * c * x.dtype.size())).max(1);
    let together = together.next_multiple_of(PIXELS).min(pixels);
    for start in (0..pixels).step_by(together) {
        let count = together.min(pixels - start);
        let columns = columns(&x, to, [kh, kw], options, 0..taps, start, [count, 1]);
        let columns = reshape(columns, [count, taps * c].into());
        let mut part = reshape(output.clone(), [pixels, c_out].into());
        part.meta.remove(0);
        part.meta.insert(0, count, c_out);
        let bytes = start * c_out * x.dtype.size();
        part.handle = part.handle.offset_start(bytes as u64);
        multiply(columns, weight.clone(), part)?;
    }
    Ok(reshape(output, [n, to[0], to[1], c_out].into()))
}

/// What some taps read of `x` for the pixels from `start` on, `[splits, taps, part, c]`: the map itself where that is
/// the same.
fn columns(
    x: &CubeTensor,
    to: [usize; 2],
    kernel: [usize; 2],
    options: Conv2dOptions,
    taps: Range<usize>,
    start: usize,
    [splits, part]: [usize; 2],
) -> CubeTensor {
    let [n, h, w, c] = x.meta.shape().dims();
    let pixels = n * to[0] * to[1];
    let shape = [splits, taps.len(), part, c];
    if is_pointwise(kernel, options) && to == [h, w] && (start, splits * part) == (0, pixels) {
        return reshape(x.clone(), shape.into());
    }
    let output = empty(x, shape, x.dtype);
    let vector = vector_size(x, c);
    let length = shape.iter().product::<usize>() / vector;
    let (count, dim) = elementwise(x, length);
    let [down, across] = sides([h, w], to, kernel, options);
    // SAFETY: units beyond `length` stop; sources are within the map.
    unsafe {
        columns_of_taps::launch_unchecked(
            &output.client,
            count,
            dim,
            vector,
            buffer(x.clone()),
            buffer(output.clone()),
            down,
            across,
            start,
            taps.start,
            taps.len(),
            part,
            c / vector,
            pixels,
            length,
            element(x),
        );
    }
    output
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn parts_cover_all_pixels_and_none_is_empty() {
        for pixels in [1, 15, 512, 4095, 16_384, 97 * 97 * 2] {
            for (c_out, c_in) in [(1, 1), (64, 3), (512, 2048), (4096, 4096)] {
                let (splits, part) = cut(pixels, c_out, c_in, 1);
                assert!(splits * part >= pixels && (splits - 1) * part < pixels);
            }
        }
        assert_eq!(cut(16_384, 512, 512, 1), (16, 1024));
        assert_eq!(cut(8320, 512, 512, 18), (1, 8320));
    }
}
