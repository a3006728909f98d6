//! Gradients: sums over parts of each channel, their combination, and those of the maps.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::normalise::Affine;
use super::plan::{Plan, columns, per_channel, place};
use crate::Activation;
use crate::gpu::launch::{buffer, element, empty, optional};
use crate::gpu::layout::{Layout, Order};
use crate::gpu::reduce::{UNITS, add_rows, along, launch_sums};

/// Where a ReLU let the gradient through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// There is no ReLU.
    None,
    /// The normalised input is computed again: nothing was added to it.
    FromInput,
    /// Of the output.
    FromOutput,
}

#[cube]
fn masked<N: Size>(
    gradient: Vector<f32, N>,
    decisive: Vector<f32, N>,
    #[comptime] mask: Mask,
) -> Vector<f32, N> {
    if comptime!(mask == Mask::None) {
        gradient
    } else {
        let zero = Vector::new(0.0);
        select_many(decisive.less_equal(&zero), zero, gradient)
    }
}

/// A value of the input, and the gradient of the output that a ReLU let through.
#[derive(CubeType, Clone, Copy)]
struct Read<N: Size> {
    value: Vector<f32, N>,
    gradient: Vector<f32, N>,
}

#[cube]
fn read<E: Float, N: Size>(
    gradient: &[Vector<E, N>],
    x: &[Vector<E, N>],
    output: &ComptimeOption<&[Vector<E, N>]>,
    index: usize,
    affine: &Affine<N>,
    #[comptime] mask: Mask,
) -> Read<N> {
    let value = Vector::<f32, N>::cast_from(x[index]);
    #[comptime]
    let decisive = match output {
        ComptimeOption::Some(output) => Vector::<f32, N>::cast_from(output[index]),
        ComptimeOption::None => affine.apply(value),
    };
    let gradient = masked::<N>(Vector::cast_from(gradient[index]), decisive, mask);
    Read::<N> { value, gradient }
}

/// Sums of the masked gradient and of its products with `x - mean`, by part of the channel:
/// `[splits, 2, c]`.
#[cube(launch_unchecked)]
fn part_sums<E: Float, N: Size, M: Size>(
    gradient: &[Vector<E, N>],
    x: &[Vector<E, N>],
    output: ComptimeOption<&[Vector<E, N>]>,
    gamma: &[Vector<f32, M>],
    beta: &[Vector<f32, M>],
    statistics: &[Vector<f32, M>],
    parts: &mut [f32],
    channels: usize,
    inner: usize,
    length: usize,
    splits: usize,
    #[comptime] across: usize,
    #[comptime] order: Order,
    #[comptime] mask: Mask,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = N::value();
    let columns = comptime!(columns(order, lanes));
    let width = comptime!(across * columns);
    let size = comptime!(UNITS * columns);
    // Sums, then products.
    let mut tables = Shared::<[f32]>::new_slice(comptime!(2 * size));

    let row = UNIT_POS_Y as usize;
    let rows = CUBE_DIM_Y as usize;
    let channel = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    let split = CUBE_POS_Y as usize;

    let mut sum = Vector::<f32, N>::new(0.0);
    let mut product = Vector::<f32, N>::new(0.0);
    if channel < channels {
        let affine = Affine::<N>::of::<M>(gamma, beta, statistics, channel, channels, order);
        let mut k = split * rows + row;
        while k < length {
            let index = place(k, channel, channels, inner, order);
            let read = read::<E, N>(gradient, x, &output, index, &affine, mask);
            sum += read.gradient;
            product += read.gradient * (read.value - affine.mean);
            k += splits * rows;
        }
    }

    let column = UNIT_POS_X as usize * columns;
    let own = row * width + column;
    if comptime!(order == Order::Planes) {
        let mut all = sum.extract(0usize);
        let mut all_products = product.extract(0usize);
        #[unroll]
        for lane in 1..N::value() {
            all += sum.extract(lane);
            all_products += product.extract(lane);
        }
        tables[own] = all;
        tables[own + size] = all_products;
    } else {
        #[unroll]
        for lane in 0..N::value() {
            tables[own + lane] = sum.extract(lane);
            tables[own + size + lane] = product.extract(lane);
        }
    }
    add_rows(&mut tables, row, column, 2usize, size, width, columns);

    if row == 0 && channel < channels {
        let total = channels * columns;
        #[unroll]
        for lane in 0..columns {
            let at = split * 2 * total + channel * columns + lane;
            parts[at] = tables[column + lane];
            parts[at + total] = tables[size + column + lane];
        }
    }
}

/// The gradients of gamma and beta from the sums of parts, over `rows` units a channel.
#[cube(launch_unchecked)]
fn combine_sums(
    parts: &[f32],
    statistics: &[f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    channels: usize,
    splits: usize,
    #[comptime] rows: usize,
) {
    let columns = comptime!(UNITS / rows);
    let (row, column) = (UNIT_POS_Y as usize, UNIT_POS_X as usize);
    let channel = CUBE_POS * columns + column;
    // Sums, then products.
    let mut tables = Shared::<[f32]>::new_slice(comptime!(2 * UNITS));
    let mut sum = 0.0f32.runtime();
    let mut product = 0.0f32.runtime();
    if channel < channels {
        let mut split = row;
        while split < splits {
            let at = split * 2 * channels + channel;
            sum += parts[at];
            product += parts[at + channels];
            split += rows;
        }
    }
    let own = row * columns + column;
    tables[own] = sum;
    tables[UNITS + own] = product;
    add_rows(&mut tables, row, column, 2usize, UNITS, columns, 1usize);
    if row == 0 && channel < channels {
        let inverse = statistics[2 * channels + channel];
        let remainder = statistics[3 * channels + channel];
        let sum = tables[column];
        dgamma[channel] = (tables[UNITS + column] - remainder * sum) * inverse;
        dbeta[channel] = sum;
    }
}

/// The gradient of `x`, and of the skip connection, some vectors of a channel a unit:
/// `scale * (g - sum(g) / count - normalised * sum(g * normalised) / count)`.
#[cube(launch_unchecked)]
fn gradients<E: Float, N: Size, M: Size>(
    gradient: &[Vector<E, N>],
    x: &[Vector<E, N>],
    output: ComptimeOption<&[Vector<E, N>]>,
    gamma: &[Vector<f32, M>],
    beta: &[Vector<f32, M>],
    statistics: &[Vector<f32, M>],
    dgamma: &[Vector<f32, M>],
    dbeta: &[Vector<f32, M>],
    dx: &mut [Vector<E, N>],
    mut dskip: ComptimeOption<&mut [Vector<E, N>]>,
    channels: usize,
    inner: usize,
    length: usize,
    splits: usize,
    share: f32,
    #[comptime] order: Order,
    #[comptime] mask: Mask,
    #[define(E)] _dtype: ElemType,
) {
    let rows = CUBE_DIM_Y as usize;
    let channel = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if channel >= channels {
        terminate!();
    }
    let affine = Affine::<N>::of::<M>(gamma, beta, statistics, channel, channels, order);
    let inverse = per_channel::<N, M>(statistics, 2 * channels, channel, order);
    let remainder = per_channel::<N, M>(statistics, 3 * channels, channel, order);
    let share = Vector::<f32, N>::new(share);
    let product = per_channel::<N, M>(dgamma, 0, channel, order);
    let sum = per_channel::<N, M>(dbeta, 0, channel, order);
    let zero = Vector::<f32, N>::new(0.0);
    let slope = zero - affine.scale * inverse * product * share;
    let constant = zero - affine.scale * sum * share - slope * remainder;

    let mut k = CUBE_POS_Y as usize * rows + UNIT_POS_Y as usize;
    while k < length {
        let index = place(k, channel, channels, inner, order);
        let read = read::<E, N>(gradient, x, &output, index, &affine, mask);
        let along = slope * (read.value - affine.mean) + constant;
        dx[index] = Vector::cast_from(affine.scale * read.gradient + along);
        #[comptime]
        if let ComptimeOption::Some(dskip) = &mut dskip {
            dskip[index] = Vector::cast_from(read.gradient);
        }
        k += splits * rows;
    }
}

/// What a backward pass reads, all maps in one order.
pub struct Backward {
    /// How the maps lie.
    pub layout: Layout,
    plan: Plan,
    x: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    statistics: CubeTensor,
    output: Option<CubeTensor>,
    mask: Mask,
}

impl Backward {
    /// The mask is read from `output` where there is one.
    pub fn new(
        x: CubeTensor,
        [gamma, beta]: [CubeTensor; 2],
        statistics: CubeTensor,
        output: Option<CubeTensor>,
        activation: Activation,
    ) -> Self {
        let (x, layout) = Layout::of(x);
        let mask = match (activation, &output) {
            (Activation::None, _) => Mask::None,
            (Activation::Relu, None) => Mask::FromInput,
            (Activation::Relu, Some(_)) => Mask::FromOutput,
        };
        Self {
            plan: Plan::new(&layout, &x),
            gamma: into_contiguous(gamma),
            beta: into_contiguous(beta),
            statistics: into_contiguous(statistics),
            output: output.map(|output| layout.arrange(output)),
            layout,
            x,
            mask,
        }
    }

    /// The gradients of gamma and beta; `gradient` is in the order of the maps.
    pub fn sums(&self, gradient: &CubeTensor) -> [CubeTensor; 2] {
        let (x, plan) = (&self.x, &self.plan);
        let [_, c, ..] = self.layout.shape;
        let parts = empty(x, [plan.splits, 2, c], DType::F32);
        let (count, dim) = plan.launch();
        // SAFETY: units beyond the channels read and write nothing, others stay within `length`.
        unsafe {
            part_sums::launch_unchecked(
                &x.client,
                count,
                dim,
                plan.vector,
                plan.numbers(),
                buffer(gradient.clone()),
                buffer(x.clone()),
                optional(self.output.clone()),
                buffer(self.gamma.clone()),
                buffer(self.beta.clone()),
                buffer(self.statistics.clone()),
                buffer(parts.clone()),
                plan.channels,
                plan.inner,
                plan.length,
                plan.splits,
                plan.across,
                plan.order,
                self.mask,
                element(x),
            );
        }
        let [dgamma, dbeta] = [(); 2].map(|()| empty(x, [c], DType::F32));
        let rows = along(plan.splits);
        let (count, dim) = launch_sums(x, c, rows);
        // SAFETY: units beyond the channels read and write nothing; `parts` has all splits of all
        // channels.
        unsafe {
            combine_sums::launch_unchecked(
                &x.client,
                count,
                dim,
                buffer(parts),
                buffer(self.statistics.clone()),
                buffer(dgamma.clone()),
                buffer(dbeta.clone()),
                c,
                plan.splits,
                rows,
            );
        }
        [dgamma, dbeta]
    }

    /// The gradients of the input and, with the output, of the skip connection. `sums` are over all
    /// `count` values of a channel that the statistics are of.
    pub fn gradients(
        self,
        gradient: CubeTensor,
        [dgamma, dbeta]: [CubeTensor; 2],
        count_of_channel: f32,
    ) -> (CubeTensor, Option<CubeTensor>) {
        let (layout, plan, x) = (self.layout, self.plan, self.x);
        // The gradient's own memory, if nothing else holds it.
        let (dx, dx_argument) = if gradient.can_mut() {
            let argument = BufferArg::alias(0, gradient.meta.num_elements());
            (gradient.clone(), argument)
        } else {
            let dx = layout.empty(&x);
            (dx.clone(), buffer(dx))
        };
        let dskip = self.output.as_ref().map(|_| layout.empty(&x));
        let (count, dim) = plan.launch();
        // SAFETY: units beyond the channels stop, others stay within `length`; all maps have as many vectors.
        // Where `dx` is the gradient's memory, each unit writes only what it alone has read.
        unsafe {
            gradients::launch_unchecked(
                &x.client,
                count,
                dim,
                plan.vector,
                plan.numbers(),
                buffer(gradient),
                buffer(x.clone()),
                optional(self.output),
                buffer(self.gamma),
                buffer(self.beta),
                buffer(self.statistics),
                buffer(into_contiguous(dgamma)),
                buffer(into_contiguous(dbeta)),
                dx_argument,
                optional(dskip.clone()),
                plan.channels,
                plan.inner,
                plan.length,
                plan.splits,
                1.0 / count_of_channel,
                plan.order,
                self.mask,
                element(&x),
            );
        }
        let dskip = dskip.map(|dskip| layout.view(dskip));
        (layout.view(dx), dskip)
    }
}
