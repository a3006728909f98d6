//! What a bias adds, and its gradient: a sum over all pixels, in f32.

use burn::tensor::{DType, Tensor};
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::direct::{Sums, add_up};
use super::ops;
use super::window::pixels;
use crate::gpu::launch::{buffer, element, elementwise, empty};
use crate::{takes_gradients, with_gradient};

/// The most sums that the pixels of a channel are shared out to.
const SPLITS: usize = 1024;

/// `y + bias`, rounded once from f32 to what `y` holds.
pub fn add(y: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    let dtype = y.dtype();
    let [channels] = bias.dims();
    let sum = |y: Tensor<4>, bias: Tensor<1>| {
        let bias = bias.cast(DType::F32).reshape([1, channels, 1, 1]);
        (y.cast(DType::F32) + bias).cast(dtype)
    };
    if !takes_gradients(&y.device()) {
        return sum(y, bias);
    }
    // Burn's gradient is three sums, for each of which its tuner compiles several kernels.
    let output = sum(y.clone().inner(), bias.clone().inner());
    with_gradient(vec![y.into(), bias.into()], output, move |gradient| {
        let of_bias = ops::bias_gradient(gradient.clone()).cast(dtype);
        vec![Some(gradient.into()), Some(of_bias.into())]
    })
}

/// Sums over every `splits`-th pixel, one channel a unit: `[splits, channels]`.
#[cube(launch_unchecked)]
fn channel_parts<E: Float>(
    map: &[E],
    parts: &mut [f32],
    pixels: usize,
    channels: usize,
    splits: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= splits * channels {
        terminate!();
    }
    let mut sum = 0.0f32.runtime();
    let mut pixel = index / channels;
    while pixel < pixels {
        sum += f32::cast_from(map[pixel * channels + index % channels]);
        pixel += splits;
    }
    parts[index] = sum;
}

/// `[n, c, h, w]` -> f32 `[c]`.
pub fn gradient(gradient: CubeTensor) -> CubeTensor {
    let map = pixels(gradient);
    let [n, h, w, channels] = map.meta.shape().dims();
    let all = n * h * w;
    let splits = SPLITS.min(all);
    let parts = empty(&map, [splits, channels], DType::F32);
    let (count, dim) = elementwise(&map, splits * channels);
    let dtype = element(&map);
    let (client, sums) = (
        map.client.clone(),
        empty(&map, [channels, 1, 1, 1], DType::F32),
    );
    // SAFETY: units beyond all parts stop; pixels are within the map.
    unsafe {
        channel_parts::launch_unchecked(
            &client,
            count,
            dim,
            buffer(map),
            buffer(parts.clone()),
            all,
            channels,
            splits,
            dtype,
        );
    }
    add_up(parts, &sums, Sums::ByOutput);
    burn_cubecl::ops::reshape(sums, [channels].into())
}
