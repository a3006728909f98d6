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
use super::super::product::multiply;
use super::super::window::{Pair, pair, vector_size};
use super::{BYTES, cut};
use crate::gpu::launch::{buffer, element, elementwise, empty};

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

/// Where the pixels of a map go among zeros: of each image `positions` pixels, in rows of `width`, of which
/// the map's first is at `before`; then zeros to the end, which is after `length` vectors.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Among {
    size: Pair,
    before: Pair,
    positions: usize,
    channels: usize,
    length: usize,
}

/// The value of `index` among zeros.
#[cube]
fn among<E: Float, N: Size>(
    map: &[Vector<E, N>],
    index: usize,
    place: &Among,
    images: usize,
    width: usize,
) -> Vector<E, N> {
    let position = index / place.channels;
    let image = position / place.positions;
    let y = position % place.positions / width;
    let x = position % place.positions % width;
    let mut value = Vector::<E, N>::new(E::from_int(0));
    if image < images
        && y >= place.before.y
        && y < place.before.y + place.size.y
        && x >= place.before.x
        && x < place.before.x + place.size.x
    {
        let line = (image * place.size.y + y - place.before.y) * place.size.x;
        value = map[(line + x - place.before.x) * place.channels + index % place.channels];
    }
    value
}

/// Two maps of as many images among zeros, one vector of channels a unit: one kernel, since each is short.
#[cube(launch_unchecked)]
fn surround<E: Float, N: Size, M: Size>(
    map: &[Vector<E, N>],
    gradient: &[Vector<E, M>],
    map_output: &mut [Vector<E, N>],
    gradient_output: &mut [Vector<E, M>],
    map_place: Among,
    gradient_place: Among,
    images: usize,
    width: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index < map_place.length {
        map_output[index] = among(map, index, &map_place, images, width);
    } else if index - map_place.length < gradient_place.length {
        let index = index - map_place.length;
        gradient_output[index] = among(gradient, index, &gradient_place, images, width);
    }
}

/// A map as [`surround`] is to leave it, of each image `positions` pixels and `more` after the last.
struct Surrounded {
    map: CubeTensor,
    output: CubeTensor,
    vector: usize,
    length: usize,
    before: [usize; 2],
    positions: usize,
}

impl Surrounded {
    fn new(map: CubeTensor, before: [usize; 2], positions: usize, more: usize) -> Self {
        let [images, _, _, c] = map.meta.shape().dims();
        let rows = images * positions + more;
        let vector = vector_size(&map, c);
        Self {
            output: empty(&map, [rows, c], map.dtype),
            vector,
            length: rows * c / vector,
            before,
            positions,
            map,
        }
    }

    fn place(&self) -> AmongLaunch {
        let [_, h, w, c] = self.map.meta.shape().dims();
        let channels = c / self.vector;
        let (size, before) = (pair([h, w]), pair(self.before));
        AmongLaunch::new(size, before, self.positions, channels, self.length)
    }
}

/// Both maps, `[images * positions + more, c]` each, in rows of `width`.
fn surround_both(map: Surrounded, gradient: Surrounded, width: usize) -> [CubeTensor; 2] {
    let [images, ..] = map.map.meta.shape().dims::<4>();
    let (count, dim) = elementwise(&map.map, map.length + gradient.length);
    let (map_place, gradient_place) = (map.place(), gradient.place());
    // SAFETY: units beyond both lengths write nothing; maps are read where their pixels are.
    unsafe {
        surround::launch_unchecked(
            &map.output.client,
            count,
            dim,
            map.vector,
            gradient.vector,
            buffer(map.map.clone()),
            buffer(gradient.map),
            buffer(map.output.clone()),
            buffer(gradient.output.clone()),
            map_place,
            gradient_place,
            images,
            width,
            element(&map.map),
        );
    }
    [map.output, gradient.output]
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
    let map = Surrounded::new(x.clone(), options.padding, positions, more);
    let gradient = Surrounded::new(gradient, [0, 0], splits * part, 0);
    let [map, gradient] = surround_both(map, gradient, width);
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
