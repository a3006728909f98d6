//! All taps of a convolution of stride 1 as products side by side, of one map with a border of zeros.
//!
//! Rows of the bordered map are as long as the output's and the last tap's distance from the first, and
//! those of the gradient are filled up with zeros to the same length. Then both are one row of pixels for
//! each image, in which each tap is a distance.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::direct::{Sums, add_up};
use super::super::problem::{Declined, Problem};
use super::super::window::{Pair, pair, vector_size};
use super::{cut, multiply};
use crate::gpu::launch::{buffer, element, elementwise, empty};

/// Bytes of products that are in memory at a time: of all taps, or of one row of the kernel.
const BYTES: usize = 1 << 26;
/// Channels that rows of pixels are a multiple of, so that every pixel begins where vectors do.
const CHANNELS: usize = 8;

/// Rows of the kernel whose products are in memory at a time, `None` where this is not for a problem.
pub fn rows_together(problem: &Problem) -> Option<usize> {
    let [images, .., w_out, c_out] = problem.other.meta.shape().dims::<4>();
    let [.., c_in] = problem.map.meta.shape().dims::<4>();
    let ([kh, kw], options) = (problem.size, problem.options);
    if options.stride != [1, 1] || kh * kw == 1 || !c_in.is_multiple_of(CHANNELS) {
        return None;
    }
    if images * kh * kw * c_out * c_in * size_of::<f32>() <= BYTES {
        return Some(kh);
    }
    // Where the second row begins.
    let [down, across] = options.dilation;
    let start = down * (w_out + (kw - 1) * across) * c_in * problem.map.dtype.size();
    let alignment = problem.map.client.properties().memory.alignment as usize;
    start.is_multiple_of(alignment).then_some(1)
}

/// A map among zeros, one vector of channels a unit: of each image `positions` pixels, in rows of `width`,
/// of which the map's first is at `before`; then zeros to the end.
#[cube(launch_unchecked)]
fn surround<E: Float, N: Size>(
    map: &[Vector<E, N>],
    output: &mut [Vector<E, N>],
    size: Pair,
    before: Pair,
    images: usize,
    positions: usize,
    width: usize,
    channels: usize,
    length: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let position = index / channels;
    let image = position / positions;
    let y = position % positions / width;
    let x = position % positions % width;
    let mut value = Vector::<E, N>::new(E::from_int(0));
    if image < images
        && y >= before.y
        && y < before.y + size.y
        && x >= before.x
        && x < before.x + size.x
    {
        let line = (image * size.y + y - before.y) * size.x;
        value = map[(line + x - before.x) * channels + index % channels];
    }
    output[index] = value;
}

/// `[images * positions + more, c]`.
fn surrounded(
    map: &CubeTensor,
    before: [usize; 2],
    positions: usize,
    width: usize,
    more: usize,
) -> CubeTensor {
    let [images, h, w, c] = map.meta.shape().dims();
    let rows = images * positions + more;
    let output = empty(map, [rows, c], map.dtype);
    let vector = vector_size(map, c);
    let length = rows * c / vector;
    let (count, dim) = elementwise(map, length);
    // SAFETY: units beyond `length` stop; the map is read where its pixels are.
    unsafe {
        surround::launch_unchecked(
            &output.client,
            count,
            dim,
            vector,
            buffer(map.clone()),
            buffer(output.clone()),
            pair([h, w]),
            pair(before),
            images,
            positions,
            width,
            c / vector,
            length,
            element(map),
        );
    }
    output
}

/// See [`super::super::dense::weight_gradient`]; `rows` are [`rows_together`].
pub fn weight_gradient(problem: Problem, rows: usize) -> Result<CubeTensor, Declined> {
    let Problem {
        map: x,
        other: gradient,
        size: [kh, kw],
        dtype,
        options,
        ..
    } = problem;
    let [images, h_out, w_out, c_out] = gradient.meta.shape().dims();
    let [.., c_in] = x.meta.shape().dims::<4>();
    let [down, across] = options.dilation;
    let width = w_out + (kw - 1) * across;
    let positions = (h_out + (kh - 1) * down) * width;
    let (splits, part) = cut(h_out * width, c_out, c_in, images * rows * kw);

    // The last tap's part of the last image goes on behind its pixels.
    let more = (kw - 1) * across + splits * part - h_out * width;
    let map = surrounded(&x, options.padding, positions, width, more);
    let gradient = surrounded(&gradient, [0, 0], splits * part, width, 0);
    let gradient = reshape(gradient, [images, splits, 1, 1, part, c_out].into());
    let gradient = permute(gradient, &[0, 1, 2, 3, 5, 4]);

    let weight = empty(&x, [c_out, c_in, kh, kw], dtype);
    for first in (0..kh).step_by(rows) {
        let strides = [
            (images, positions),
            (splits, part),
            (rows, down * width),
            (kw, across),
            (part, 1),
        ];
        let start = first * down * width;
        let taps = view(&map, start, &strides);
        let products = empty(&x, [images, splits, rows, kw, c_out, c_in], DType::F32);
        let products = multiply(gradient.clone(), taps, products)?;
        add_up(
            products,
            &weight,
            Sums::ByTap(first * kw..(first + rows) * kw),
        );
    }
    Ok(weight)
}

/// Pixels of `[pixels, c]` from one on, with these numbers of them and distances between them.
fn view(pixels: &CubeTensor, start: usize, dimensions: &[(usize, usize)]) -> CubeTensor {
    let mut view = pixels.clone();
    let (_, stride) = view.meta.remove(0);
    for (index, (count, distance)) in dimensions.iter().enumerate() {
        view.meta.insert(index, *count, distance * stride);
    }
    let bytes = start * stride * pixels.dtype.size();
    view.handle = view.handle.offset_start(bytes as u64);
    view
}
