//! Depthwise convolutions: each channel by a kernel of its own. Their cost is reading maps, so a unit
//! works on as many channels beside each other as it can read at a time, and sums in f32.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Conv2dOptions;
use super::direct::{Sums, add_up};
use super::window::{Side, sides, source, vector_size};
use crate::gpu::launch::{buffer, element, elementwise, empty};
use crate::gpu::reduce::{UNITS, across, add_rows};

/// Groups of units that a weight gradient is split over at most: a few times what large GPUs run at once.
const GROUPS: usize = 1024;
/// Pixels that a unit reads at least before channels are split.
const READS: usize = 8;
/// Taps at most that a unit of the weight gradient sums at a time: each takes registers.
pub const TAPS: usize = 25;

/// One vector of channels of one output pixel a unit. The weight is `[kh * kw, c]`.
#[cube(launch_unchecked)]
fn correlate<E: Float, N: Size>(
    map: &[Vector<E, N>],
    weight: &[Vector<E, N>],
    output: &mut [Vector<E, N>],
    rows: Side,
    columns: Side,
    channels: usize,
    length: usize,
    #[comptime] adjoint: bool,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let channel = index % channels;
    let pixel = index / channels;
    let x = pixel % columns.to;
    let line = pixel / columns.to;
    let y = line % rows.to;
    let image = line / rows.to;
    let mut sum = Vector::<f32, N>::new(0.0);
    for ky in 0..rows.taps {
        let down = source(y, ky, &rows, adjoint);
        if down.inside {
            let line = (image * rows.from + down.at) * columns.from;
            for kx in 0..columns.taps {
                let across = source(x, kx, &columns, adjoint);
                if across.inside {
                    let value = map[(line + across.at) * channels + channel];
                    let tap = weight[(ky * columns.taps + kx) * channels + channel];
                    sum += Vector::<f32, N>::cast_from(value) * Vector::<f32, N>::cast_from(tap);
                }
            }
        }
    }
    output[index] = Vector::cast_from(sum);
}

/// The weight gradient by parts of the pixels: `[splits, kh * kw, c]`. Groups are numbered by channels in
/// x and by parts in y.
#[cube(launch_unchecked)]
fn weight_parts<E: Float, N: Size>(
    x: &[Vector<E, N>],
    gradient: &[Vector<E, N>],
    parts: &mut [f32],
    rows: Side,
    columns: Side,
    channels: usize,
    pixels: usize,
    splits: usize,
    #[comptime] across: usize,
    #[comptime] kernel: [usize; 2],
    #[define(E)] _dtype: ElemType,
) {
    let lanes = N::value();
    let taps = comptime!(kernel[0] * kernel[1]);
    let size = comptime!(UNITS * lanes);
    let group_rows = comptime!(UNITS / across);
    let mut table = Shared::<[f32]>::new_slice(size);
    let row = UNIT_POS_Y as usize;
    let channel = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    let split = CUBE_POS_Y as usize;

    let mut sums = Array::<Vector<f32, N>>::new(taps);
    #[unroll]
    for tap in 0..taps {
        sums[tap] = Vector::new(0.0);
    }
    if channel < channels {
        let mut pixel = split * group_rows + row;
        while pixel < pixels {
            let line = pixel / columns.to;
            let g = Vector::<f32, N>::cast_from(gradient[pixel * channels + channel]);
            #[unroll]
            for ky in 0..comptime!(kernel[0]) {
                let down = source(line % rows.to, ky, &rows, false);
                let start = (line / rows.to * rows.from + down.at) * columns.from;
                #[unroll]
                for kx in 0..comptime!(kernel[1]) {
                    let across = source(pixel % columns.to, kx, &columns, false);
                    if down.inside && across.inside {
                        let value = x[(start + across.at) * channels + channel];
                        sums[comptime!(ky * kernel[1] + kx)] +=
                            g * Vector::<f32, N>::cast_from(value);
                    }
                }
            }
            pixel += splits * group_rows;
        }
    }

    let width = comptime!(across * lanes);
    let column = UNIT_POS_X as usize * lanes;
    #[unroll]
    for tap in 0..taps {
        #[unroll]
        for lane in 0..lanes {
            table[row * width + column + lane] = sums[tap].extract(lane);
        }
        add_rows(&mut table, row, column, 1usize, size, width, lanes);
        if row == 0 && channel < channels {
            #[unroll]
            for lane in 0..lanes {
                let at = ((split * taps + tap) * channels + channel) * lanes + lane;
                parts[at] = table[column + lane];
            }
        }
        sync_cube();
    }
}

/// `map` `[n, *from, c]` by `weight` `[kh * kw, c]` -> `[n, *to, c]`; with `adjoint` as an input gradient,
/// of which `map` is the output's gradient.
pub fn convolve(
    map: CubeTensor,
    weight: CubeTensor,
    kernel: [usize; 2],
    to: [usize; 2],
    options: Conv2dOptions,
    adjoint: bool,
) -> CubeTensor {
    let [n, from_h, from_w, channels] = map.meta.shape().dims();
    let output = empty(&map, [n, to[0], to[1], channels], map.dtype);
    let vector = vector_size(&map, channels);
    let length = n * to[0] * to[1] * channels / vector;
    let (count, dim) = elementwise(&map, length);
    let [rows, columns] = sides([from_h, from_w], to, kernel, options);
    let dtype = element(&map);
    // SAFETY: units beyond `length` stop; sources are within the map, taps within the weight.
    unsafe {
        correlate::launch_unchecked(
            &output.client,
            count,
            dim,
            vector,
            buffer(map),
            buffer(weight),
            buffer(output.clone()),
            rows,
            columns,
            channels / vector,
            length,
            adjoint,
            dtype,
        );
    }
    output
}

/// The gradient of the weight, `[c, 1, kh, kw]`, of maps that lie pixel by pixel. For kernels of up to
/// [`TAPS`] taps.
pub fn weight_gradient(
    x: CubeTensor,
    gradient: CubeTensor,
    kernel: [usize; 2],
    dtype: DType,
    options: Conv2dOptions,
) -> CubeTensor {
    let [n, from_h, from_w, channels] = x.meta.shape().dims();
    let [_, to_h, to_w, _] = gradient.meta.shape().dims();
    let vector = vector_size(&x, channels);
    let pixels = n * to_h * to_w;
    let across = across(channels / vector);
    let group_rows = UNITS / across;
    let groups = (channels / vector).div_ceil(across);
    let splits = pixels
        .div_ceil(group_rows * READS)
        .min(GROUPS.div_ceil(groups))
        .max(1);
    let taps = kernel[0] * kernel[1];
    let parts = empty(&x, [splits, taps, channels], DType::F32);
    let [rows, columns] = sides([from_h, from_w], [to_h, to_w], kernel, options);
    let weight = empty(&x, [channels, 1, kernel[0], kernel[1]], dtype);
    let element = element(&x);
    // SAFETY: units beyond the channels read and write nothing, others stay within their maps.
    unsafe {
        weight_parts::launch_unchecked(
            &parts.client,
            CubeCount::Static(groups as u32, splits as u32, 1),
            CubeDim::new_2d(across as u32, group_rows as u32),
            vector,
            buffer(x),
            buffer(gradient),
            buffer(parts.clone()),
            rows,
            columns,
            channels / vector,
            pixels,
            splits,
            across,
            kernel,
            element,
        );
    }
    add_up(parts, &weight, Sums::Depthwise);
    weight
}
