//! Any convolution and its gradients, one value a unit: for what has no faster kernel with f32 sums, on a
//! device without tensor cores all of them.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Conv2dOptions;
use super::window::{Side, sides, source, vector_size};
use crate::gpu::launch::{buffer, element, elementwise, empty};

/// Parts that the pixels of a weight gradient are split into at most.
const SPLITS: usize = 64;
/// Units that a weight gradient is split for.
const UNITS: usize = 1 << 17;

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

/// Adds up `[splits, length]`, one value a unit. Runs of `run` values go to every `every`-th run of the
/// output, from its run `first` on.
#[cube(launch_unchecked)]
fn combine<E: Float>(
    parts: &[f32],
    output: &mut [E],
    run: usize,
    every: usize,
    first: usize,
    splits: usize,
    length: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let mut sum = 0.0f32.runtime();
    for split in 0..splits {
        sum += parts[split * length + index];
    }
    output[(index / run * every + first) * run + index % run] = E::cast_from(sum);
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

/// The gradient of the weight, `[c_out, kh, kw, c_in / groups]`, of maps that lie pixel by pixel.
pub fn weight_gradient(
    x: CubeTensor,
    gradient: CubeTensor,
    kernel: [usize; 2],
    options: Conv2dOptions,
) -> CubeTensor {
    let [n, from_h, from_w, from] = x.meta.shape().dims();
    let [_, to_h, to_w, to] = gradient.meta.shape().dims();
    let depth = from / options.groups;
    let shape = [to, kernel[0], kernel[1], depth];
    let length = shape.iter().product::<usize>();
    let lines = n * to_h;
    let splits = UNITS.div_ceil(length).clamp(1, SPLITS.min(lines));
    let parts = empty(&x, [splits, length], DType::F32);
    let (count, dim) = elementwise(&x, splits * length);
    let [rows, columns] = sides([from_h, from_w], [to_h, to_w], kernel, options);
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
    sum_of_parts(parts, shape, x.dtype)
}

/// f32 `[splits, ..]` -> `shape`, in `dtype`.
pub fn sum_of_parts<const D: usize>(
    parts: CubeTensor,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor {
    let output = empty(&parts, shape, dtype);
    let length = output.meta.num_elements();
    add_up(parts, &output, length, [length, 1, 0]);
    output
}

/// Adds up `length` values of all `parts` into a part of `output`: runs of so many values, into every so
/// many runs, from one on.
pub fn add_up(
    parts: CubeTensor,
    output: &CubeTensor,
    length: usize,
    [run, every, first]: [usize; 3],
) {
    let splits = parts.meta.num_elements() / length;
    let (count, dim) = elementwise(output, length);
    // SAFETY: units beyond `length` stop; `parts` has all splits of all values, and the output has room
    // for all runs.
    unsafe {
        combine::launch_unchecked(
            &output.client,
            count,
            dim,
            buffer(into_contiguous(parts)),
            buffer(output.clone()),
            run,
            every,
            first,
            splits,
            length,
            element(output),
        );
    }
}
