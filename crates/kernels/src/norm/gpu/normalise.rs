//! The output: normalised, added to, and a ReLU applied.

use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::plan::{Plan, per_channel, place};
use crate::Activation;
use crate::gpu::launch::{buffer, element, optional};
use crate::gpu::layout::{Layout, Order};

/// `act(gamma * (x - mean) / sqrt(variance + epsilon) + beta + skip)`, some vectors of a channel a unit: what belongs to the
/// channel takes more reads than a vector.
#[cube(launch_unchecked)]
fn normalise<E: Float, N: Size, M: Size>(
    x: &[Vector<E, N>],
    skip: ComptimeOption<&[Vector<E, N>]>,
    gamma: &[Vector<f32, M>],
    beta: &[Vector<f32, M>],
    statistics: ComptimeOption<&[Vector<f32, M>]>,
    output: &mut [Vector<E, N>],
    channels: usize,
    inner: usize,
    length: usize,
    splits: usize,
    #[comptime] order: Order,
    #[comptime] relu: bool,
    // CubeCL 0.11.3 gives a kernel with statistics the name and the hash of one with a skip connection instead, by which
    // compiled kernels are kept from run to run.
    #[comptime] _has_statistics: bool,
    #[define(E)] _dtype: ElemType,
) {
    let rows = CUBE_DIM_Y as usize;
    let channel = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if channel >= channels {
        terminate!();
    }
    #[comptime]
    let affine = match statistics {
        ComptimeOption::Some(statistics) => {
            Affine::<N>::of::<M>(gamma, beta, statistics, channel, channels, order)
        }
        ComptimeOption::None => Affine::<N>::plain::<M>(gamma, beta, channel, order),
    };
    let mut k = CUBE_POS_Y as usize * rows + UNIT_POS_Y as usize;
    while k < length {
        let index = place(k, channel, channels, inner, order);
        let mut y = affine.apply(Vector::cast_from(x[index]));
        #[comptime]
        if let ComptimeOption::Some(skip) = &skip {
            y += Vector::cast_from(skip[index]);
        }
        if comptime!(relu) {
            // Not `max`, which turns NaN into 0 and hides an overflow from the gradient scaler.
            let zero = Vector::new(0.0);
            y = select_many(y.less_than(&zero), zero, y);
        }
        output[index] = Vector::cast_from(y);
        k += splits * rows;
    }
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
    pub fn of<M: Size>(
        gamma: &[Vector<f32, M>],
        beta: &[Vector<f32, M>],
        statistics: &[Vector<f32, M>],
        channel: usize,
        channels: usize,
        #[comptime] order: Order,
    ) -> Self {
        let inverse = per_channel::<N, M>(statistics, 2 * channels, channel, order);
        let scale = per_channel::<N, M>(gamma, 0, channel, order) * inverse;
        let remainder = per_channel::<N, M>(statistics, 3 * channels, channel, order);
        Affine::<N> {
            mean: per_channel::<N, M>(statistics, 0, channel, order),
            scale,
            shift: per_channel::<N, M>(beta, 0, channel, order) - remainder * scale,
        }
    }

    /// Where nothing is subtracted, and the scale and the shift are given.
    pub fn plain<M: Size>(
        scale: &[Vector<f32, M>],
        shift: &[Vector<f32, M>],
        channel: usize,
        #[comptime] order: Order,
    ) -> Self {
        Affine::<N> {
            mean: Vector::new(0.0),
            scale: per_channel::<N, M>(scale, 0, channel, order),
            shift: per_channel::<N, M>(shift, 0, channel, order),
        }
    }

    /// Of one vector.
    pub fn apply(&self, x: Vector<f32, N>) -> Vector<f32, N> {
        (x - self.mean) * self.scale + self.shift
    }
}

/// `act(gamma * (x - mean) / sqrt(variance + epsilon) + beta + skip)`, or without statistics `act(gamma * x + beta + skip)`.
pub fn apply(
    x: CubeTensor,
    [gamma, beta]: [CubeTensor; 2],
    statistics: Option<CubeTensor>,
    skip: Option<CubeTensor>,
    activation: Activation,
) -> CubeTensor {
    let (x, layout) = Layout::of(x);
    let (gamma, beta) = (into_contiguous(gamma), into_contiguous(beta));
    let statistics = statistics.map(into_contiguous);
    let has_statistics = statistics.is_some();
    let skip = skip.map(|skip| layout.arrange(skip));
    let plan = Plan::new(&layout, &x);
    let output = layout.empty(&x);
    let (count, dim) = plan.launch();
    // SAFETY: units beyond the channels stop, others stay within `length`; all maps have as many vectors.
    unsafe {
        normalise::launch_unchecked(
            &output.client,
            count,
            dim,
            plan.vector,
            plan.numbers(),
            buffer(x.clone()),
            optional(skip),
            buffer(gamma),
            buffer(beta),
            optional(statistics),
            buffer(output.clone()),
            plan.channels,
            plan.inner,
            plan.length,
            plan.splits,
            plan.order,
            activation == Activation::Relu,
            has_statistics,
            element(&x),
        );
    }
    layout.view(output)
}
