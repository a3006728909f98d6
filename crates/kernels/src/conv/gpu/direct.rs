//! Any convolution and its gradients, one value a unit: for what has no faster kernel with f32 sums, on a
//! device without tensor cores all of them.

use std::ops::Range;

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Conv2dOptions;
use super::window::{Side, sides, source, vector_size};
use crate::gpu::launch::{buffer, element, elementwise, empty};
use crate::gpu::reduce::{UNITS, add_rows, along, launch_sums};

/// Parts that the pixels of a weight gradient are split into at most.
const SPLITS: usize = 64;
/// Units that fill a large GPU, which a weight gradient is split for.
const UNITS_OF_A_GPU: usize = 1 << 17;

/// Sums over taps and over the channels of a group, one output value a unit. Maps are pixel by pixel, the
/// weight is `[to, kh, kw, depth]`; `from` and `depth` count vectors of channels.
#[cube(launch_unchecked)]
fn correlate<E: Float, N: Size>(
    map: &[Vector<E, N>],
    weight: &[Vector<E, N>],
    output: &mut [E],
    rows: Side,
    columns: Side,
    from: usize,
    to: usize,
    depth: usize,
    to_of_group: usize,
    length: usize,
    #[comptime] adjoint: bool,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let channel = index % to;
    let pixel = index / to;
    let x = pixel % columns.to;
    let line = pixel / columns.to;
    let y = line % rows.to;
    let image = line / rows.to;
    let group = channel / to_of_group;

    let mut sum = Vector::<f32, N>::new(0.0);
    for ky in 0..rows.taps {
        let down = source(y, ky, &rows, adjoint);
        if down.inside {
            let line = (image * rows.from + down.at) * columns.from;
            for kx in 0..columns.taps {
                let across = source(x, kx, &columns, adjoint);
                if across.inside {
                    let start = (line + across.at) * from + group * depth;
                    let taps = ((channel * rows.taps + ky) * columns.taps + kx) * depth;
                    for k in 0..depth {
                        sum += Vector::<f32, N>::cast_from(map[start + k])
                            * Vector::<f32, N>::cast_from(weight[taps + k]);
                    }
                }
            }
        }
    }
    let mut total = sum.extract(0usize);
    #[unroll]
    for lane in 1..N::value() {
        total += sum.extract(lane);
    }
    output[index] = E::cast_from(total);
}

/// Sums over every `splits`-th line of the output's gradient, one value of the weight a unit:
/// `[splits, c_out, kh, kw, depth]`.
#[cube(launch_unchecked)]
fn weight_parts<E: Float>(
    x: &[E],
    gradient: &[E],
    parts: &mut [f32],
    rows: Side,
    columns: Side,
    from: usize,
    to: usize,
    depth: usize,
    to_of_group: usize,
    lines: usize,
    splits: usize,
    length: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length * splits {
        terminate!();
    }
    let split = index / length;
    let value = index % length;
    let k = value % depth;
    let tap = value / depth;
    let kx = tap % columns.taps;
    let ky = tap / columns.taps % rows.taps;
    let channel = tap / columns.taps / rows.taps;
    let source_channel = channel / to_of_group * depth + k;

    let mut sum = 0.0f32.runtime();
    let mut line = split;
    while line < lines {
        let down = source(line % rows.to, ky, &rows, false);
        if down.inside {
            let start = (line / rows.to * rows.from + down.at) * columns.from;
            for x_out in 0..columns.to {
                let across = source(x_out, kx, &columns, false);
                if across.inside {
                    let g = gradient[(line * columns.to + x_out) * to + channel];
                    let value = x[(start + across.at) * from + source_channel];
                    sum += f32::cast_from(g) * f32::cast_from(value);
                }
            }
        }
        line += splits;
    }
    parts[index] = sum;
}

/// Adds up `[splits, length]`, over `rows` units a value. See [`Places`] for where sums go.
#[cube(launch_unchecked)]
fn combine<E: Float>(
    parts: &[f32],
    output: &mut [E],
    places: Places,
    splits: usize,
    length: usize,
    #[comptime] rows: usize,
    #[define(E)] _dtype: ElemType,
) {
    let columns = comptime!(UNITS / rows);
    let (row, column) = (UNIT_POS_Y as usize, UNIT_POS_X as usize);
    let index = CUBE_POS * columns + column;
    let mut sum = 0.0f32.runtime();
    if index < length {
        let mut split = row;
        while split < splits {
            sum += parts[split * length + index];
            split += rows;
        }
    }
    if comptime!(rows > 1) {
        let mut table = Shared::<[f32]>::new_slice(UNITS);
        table[row * columns + column] = sum;
        add_rows(&mut table, row, column, 1usize, UNITS, columns, 1usize);
        sum = table[column];
    }
    if row == 0 && index < length {
        let line = index / places.run;
        let at = places.first
            + index % places.run * places.step
            + line % places.lines * places.line
            + line / places.lines * places.block;
        output[at] = E::cast_from(sum);
    }
}

/// Where sums go, which lie in blocks of `lines` lines of `run` values: to `first` on, with these distances
/// between values, lines and blocks.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Places {
    first: usize,
    run: usize,
    step: usize,
    lines: usize,
    line: usize,
    block: usize,
}

/// The order of sums of a weight's values.
#[derive(Clone, Debug)]
pub enum Sums {
    /// `[taps, c]` of a depthwise weight.
    Depthwise,
    /// `[c_out, taps, c_in]`, as maps have it that lie pixel by pixel.
    ByOutput,
    /// `[taps, c_out, c_in]`, of some of the taps.
    ByTap(Range<usize>),
}

/// `map` `[n, *from, c]` by `weight` `[c_out, kh, kw, c / groups]` -> `[n, *to, c_out]`; with `adjoint` as
/// an input gradient, of which `map` is the output's gradient.
pub fn convolve(
    map: CubeTensor,
    weight: CubeTensor,
    to: [usize; 2],
    options: Conv2dOptions,
    adjoint: bool,
) -> CubeTensor {
    let [n, from_h, from_w, from] = map.meta.shape().dims();
    let [c_out, kh, kw, depth] = weight.meta.shape().dims();
    let output = empty(&map, [n, to[0], to[1], c_out], map.dtype);
    let length = n * to[0] * to[1] * c_out;
    let (count, dim) = elementwise(&map, length);
    let vector = vector_size(&map, depth);
    let [rows, columns] = sides([from_h, from_w], to, [kh, kw], options);
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
            from / vector,
            c_out,
            depth / vector,
            c_out / options.groups,
            length,
            adjoint,
            dtype,
        );
    }
    output
}

/// The gradient of the weight, `[c_out, c_in / groups, kh, kw]`, of maps that lie pixel by pixel.
pub fn weight_gradient(
    x: CubeTensor,
    gradient: CubeTensor,
    kernel: [usize; 2],
    dtype: DType,
    options: Conv2dOptions,
) -> CubeTensor {
    let [n, from_h, from_w, from] = x.meta.shape().dims();
    let [_, to_h, to_w, to] = gradient.meta.shape().dims();
    let depth = from / options.groups;
    let shape = [to, depth, kernel[0], kernel[1]];
    let length = shape.iter().product::<usize>();
    let lines = n * to_h;
    let splits = UNITS_OF_A_GPU.div_ceil(length).clamp(1, SPLITS.min(lines));
    let parts = empty(&x, [splits, length], DType::F32);
    let (count, dim) = elementwise(&x, splits * length);
    let [rows, columns] = sides([from_h, from_w], [to_h, to_w], kernel, options);
    let weight = empty(&x, shape, dtype);
    let dtype = element(&x);
    // SAFETY: units beyond all parts stop; sources are within the maps.
    unsafe {
        weight_parts::launch_unchecked(
            &parts.client,
            count,
            dim,
            buffer(x.clone()),
            buffer(gradient),
            buffer(parts.clone()),
            rows,
            columns,
            from,
            to,
            depth,
            to / options.groups,
            lines,
            splits,
            length,
            dtype,
        );
    }
    add_up(parts, &weight, Sums::ByOutput);
    weight
}

/// Adds up the values of all `parts`, in the order of `sums`, into `weight`, `[c_out, c_in, kh, kw]`.
pub fn add_up(parts: CubeTensor, weight: &CubeTensor, sums: Sums) {
    let [c_out, c_in, kh, kw] = weight.meta.shape().dims();
    let taps = kh * kw;
    let places = match &sums {
        Sums::Depthwise => PlacesLaunch::new(0, c_out, taps, 1, 0, 1),
        Sums::ByOutput => PlacesLaunch::new(0, c_in, taps, taps, 1, c_in * taps),
        Sums::ByTap(some) => PlacesLaunch::new(some.start, c_in, taps, c_out, c_in * taps, 1),
    };
    let length = match sums {
        Sums::ByTap(some) => some.len() * c_out * c_in,
        _ => weight.meta.num_elements(),
    };
    let splits = parts.meta.num_elements() / length;
    // One unit a value, where there are enough of them to fill a large GPU.
    let rows = match length > UNITS_OF_A_GPU {
        true => 1,
        false => along(splits),
    };
    let (count, dim) = launch_sums(weight, length, rows);
    // SAFETY: units beyond `length` read and write nothing; `parts` has all splits of all values, and the
    // weight a place for each.
    unsafe {
        combine::launch_unchecked(
            &weight.client,
            count,
            dim,
            buffer(into_contiguous(parts)),
            buffer(weight.clone()),
            places,
            splits,
            length,
            rows,
            element(weight),
        );
    }
}
