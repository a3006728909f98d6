//! Weights in the order and the dtype in which convolutions read and leave them.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::window::{Pair, pair};
use crate::gpu::launch::{buffer, element, elementwise, empty};

/// Some rows of taps, or columns: `count` from `first` on, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taps {
    pub first: usize,
    pub step: usize,
    pub count: usize,
}

impl Taps {
    fn all(count: usize) -> Self {
        Self {
            first: 0,
            step: 1,
            count,
        }
    }
}

/// Some taps of `[a, kh, kw, b]` of any strides, in another dtype and without gaps, `turned` around or not;
/// one value a unit.
#[cube(launch_unchecked)]
fn pick<I: Float, E: Float>(
    weight: &Tensor<I>,
    output: &mut [E],
    taps: Pair,
    first: Pair,
    step: Pair,
    length: usize,
    #[comptime] turned: bool,
    #[define(I, E)] _dtypes: [ElemType; 2],
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let inner = weight.shape(3);
    let tap = index / inner;
    let row = tap / taps.x;
    let mut x = tap % taps.x;
    let mut y = row % taps.y;
    if comptime!(turned) {
        x = taps.x - 1 - x;
        y = taps.y - 1 - y;
    }
    let at = row / taps.y * weight.stride(0)
        + (first.y + y * step.y) * weight.stride(1)
        + (first.x + x * step.x) * weight.stride(2)
        + index % inner * weight.stride(3);
    output[index] = E::cast_from(weight[at]);
}

fn picked(
    weight: CubeTensor,
    [rows, columns]: [Taps; 2],
    turned: bool,
    dtype: DType,
) -> CubeTensor {
    let [outer, _, _, inner] = weight.meta.shape().dims();
    let output = empty(&weight, [outer, rows.count, columns.count, inner], dtype);
    let length = output.meta.num_elements();
    let (count, dim) = elementwise(&weight, length);
    let dtypes = [element(&weight), element(&output)];
    // SAFETY: units beyond `length` stop; taps are within the kernel.
    unsafe {
        pick::launch_unchecked(
            &output.client,
            count,
            dim,
            weight.into_tensor_arg(),
            buffer(output.clone()),
            pair([rows.count, columns.count]),
            pair([rows.first, columns.first]),
            pair([rows.step, columns.step]),
            length,
            turned,
            dtypes,
        );
    }
    output
}

/// A weight as a convolution reads it: `[c_out, c_in / groups, kh, kw]` ->
/// `[c_out, kh, kw, c_in / groups]`.
pub fn by_output(weight: CubeTensor, dtype: DType) -> CubeTensor {
    in_order(permute(weight, &[0, 2, 3, 1]), dtype)
}

/// A gradient as Burn wants it: `[c_out, kh, kw, c_in]` -> `[c_out, c_in, kh, kw]`.
pub fn by_channel(weight: CubeTensor, dtype: DType) -> CubeTensor {
    in_order(permute(weight, &[0, 3, 1, 2]), dtype)
}

/// Without gaps.
fn in_order(weight: CubeTensor, dtype: DType) -> CubeTensor {
    if weight.dtype == dtype {
        return into_contiguous(weight);
    }
    let [_, kh, kw, _] = weight.meta.shape().dims();
    picked(weight, [kh, kw].map(Taps::all), false, dtype)
}

/// Some taps of a weight, turned around: `[c_out, c_in, kh, kw]` -> `[c_in, kh', kw', c_out]`.
pub fn turned(weight: CubeTensor, taps: [Taps; 2], dtype: DType) -> CubeTensor {
    picked(permute(weight, &[1, 2, 3, 0]), taps, true, dtype)
}

/// A weight as an input gradient reads it: `[c_out, c_in / groups, kh, kw]` ->
/// `[c_in, kh, kw, c_out / groups]`.
pub fn by_input(weight: CubeTensor, groups: usize, dtype: DType) -> CubeTensor {
    let weight = cast(weight, dtype);
    let [c_out, depth, kh, kw] = weight.meta.shape().dims();
    let grouped = reshape(weight, [groups, c_out / groups, depth, kh, kw].into());
    let weight = into_contiguous(permute(grouped, &[0, 2, 3, 4, 1]));
    reshape(weight, [groups * depth, kh, kw, c_out / groups].into())
}

/// A depthwise weight, tap by tap: `[c, 1, kh, kw]` -> `[kh * kw, c]`.
pub fn by_tap(weight: CubeTensor, dtype: DType) -> CubeTensor {
    let [c, _, kh, kw] = weight.meta.shape().dims();
    let weight = in_order(permute(weight, &[1, 2, 3, 0]), dtype);
    reshape(weight, [kh * kw, c].into())
}
