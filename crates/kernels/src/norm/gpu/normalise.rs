//! The output: normalised, added to, and a ReLU applied.

use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::plan::{Plan, channel_of, columns, per_channel};
use crate::Activation;
use crate::gpu::launch::{buffer, element, elementwise, optional};
use crate::gpu::layout::{Layout, Order};

/// `act(gamma * (x - mean) / sqrt(variance + epsilon) + beta + skip)`, one vector a unit.
#[cube(launch_unchecked)]
fn normalise<E: Float, N: Size>(
    x: &[Vector<E, N>],
    skip: ComptimeOption<&[Vector<E, N>]>,
    gamma: &[f32],
    beta: &[f32],
    statistics: &[f32],
    output: &mut [Vector<E, N>],
    channels: usize,
    inner: usize,
    length: usize,
    #[comptime] order: Order,
    #[comptime] relu: bool,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let channel = channel_of(index, channels, inner, order);
    let affine = Affine::<N>::of(gamma, beta, statistics, channel, channels, order);
    let mut y = affine.apply(Vector::cast_from(x[index]));
    #[comptime]
    if let ComptimeOption::Some(skip) = skip {
        y += Vector::cast_from(skip[index]);
    }
    if comptime!(relu) {
        // Not `max`, which turns NaN into 0 and hides an overflow from the gradient scaler.
        let zero = Vector::new(0.0);
        y = select_many(y.less_than(&zero), zero, y);
    }
    output[index] = Vector::cast_from(y);
}

/// `scale * (x - mean) + shift` of a vector's channels.
#[derive(CubeType, Clone, Copy)]
pub struct Affine<N: Size> {
    pub mean: Vector<f32, N>,
    pub scale: Vector<f32, N>,
    pub shift: Vector<f32, N>,
}

#[cube]
impl<N: Size> Affine<N> {
    /// Of a channel, or of a vector of them.
    pub fn of(
        gamma: &[f32],
        beta: &[f32],
        statistics: &[f32],
        channel: usize,
        channels: usize,
        #[comptime] order: Order,
    ) -> Self {
        let lanes = N::value();
        let total = channels * comptime!(columns(order, lanes));
        let inverse = per_channel::<N>(statistics, 2 * total, channel, order);
        let scale = per_channel::<N>(gamma, 0, channel, order) * inverse;
        let remainder = per_channel::<N>(statistics, 3 * total, channel, order);
        Affine::<N> {
            mean: per_channel::<N>(statistics, 0, channel, order),
            scale,
            shift: per_channel::<N>(beta, 0, channel, order) - remainder * scale,
        }
    }

    /// Of one vector.
    pub fn apply(&self, x: Vector<f32, N>) -> Vector<f32, N> {
        (x - self.mean) * self.scale + self.shift
    }
}

/// `act(gamma * (x - mean) / sqrt(variance + epsilon) + beta + skip)`.
pub fn apply(
    x: CubeTensor,
    [gamma, beta]: [CubeTensor; 2],
    statistics: CubeTensor,
    skip: Option<CubeTensor>,
    activation: Activation,
) -> CubeTensor {
    let (x, layout) = Layout::of(x);
    let (gamma, beta) = (into_contiguous(gamma), into_contiguous(beta));
    let statistics = into_contiguous(statistics);
    let skip = skip.map(|skip| layout.arrange(skip));
    let plan = Plan::new(&layout, &x);
    let output = layout.empty(&x);
    let length = plan.channels * plan.length;
    let (count, dim) = elementwise(&x, length);
    // SAFETY: units beyond `length` stop; all maps have as many vectors.
    unsafe {
        normalise::launch_unchecked(
            &output.client,
            count,
            dim,
            plan.vector,
            buffer(x.clone()),
            optional(skip),
            buffer(gamma),
            buffer(beta),
            buffer(statistics),
            buffer(output.clone()),
            plan.channels,
            plan.inner,
            length,
            plan.order,
            activation == Activation::Relu,
            element(&x),
        );
    }
    layout.view(output)
}
