//! Batch normalisation on GPUs.
//!
//! The forward pass is three launches: moments of parts of each channel, their combination, and one
//! that normalises, adds and applies the ReLU. The backward pass is three as well: two sums over
//! parts of each channel, their combination, and the gradient of every map. All arithmetic is f32.
//!
//! Moments are taken about the channel's first value, and within a unit about the first value that
//! the unit reads, so that a mean of many deviations costs no digits although nothing is f64; parts
//! are merged as by Chan, Golub and LeVeque (1979).

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::{into_contiguous, slice};
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::ops::BatchNormalisation;
use super::passes::SharedNormalisation;
use crate::Activation;
use crate::cube::{Layout, Order, element, elementwise, empty};

/// Units that reduce together.
const UNITS: usize = 256;
/// Of these, in a map that lies pixel by pixel, units beside each other in one pixel.
const COLUMNS: usize = 32;
/// Groups of units that a map is split over at most: a few times what large GPUs run at once.
const GROUPS: usize = 1024;
/// Vectors that a unit reads at least before a channel is split.
const READS: usize = 8;

/// Sizes of a reduction over each channel, in vectors.
struct Plan {
    order: Order,
    /// Values of a vector.
    vector: usize,
    /// Channels, or in a map that lies pixel by pixel vectors of a pixel.
    channels: usize,
    /// Vectors from one channel's plane to the next; 1 in a map that lies pixel by pixel.
    inner: usize,
    /// Vectors of one channel, or of one vector of channels.
    length: usize,
    /// Parts that each channel is split into.
    splits: usize,
}

impl Plan {
    fn new(layout: &Layout, map: &CubeTensor) -> Self {
        let [n, c, h, w] = layout.shape;
        let vector = layout.vector_size(map);
        let (channels, inner, length) = match layout.order {
            Order::Planes => (c, h * w / vector, n * h * w / vector),
            Order::Pixels => (c / vector, 1, n * h * w),
        };
        let (across, along) = Self::units(layout.order);
        let groups = channels.div_ceil(across);
        let splits = length
            .div_ceil(along * READS)
            .min(GROUPS.div_ceil(groups))
            .max(1);
        Self {
            order: layout.order,
            vector,
            channels,
            inner,
            length,
            splits,
        }
    }

    /// Units across channels and along a channel.
    const fn units(order: Order) -> (usize, usize) {
        match order {
            Order::Planes => (1, UNITS),
            Order::Pixels => (COLUMNS, UNITS / COLUMNS),
        }
    }

    fn launch(&self) -> (CubeCount, CubeDim) {
        let (across, along) = Self::units(self.order);
        let groups = self.channels.div_ceil(across) as u32;
        (
            CubeCount::Static(groups, self.splits as u32, 1),
            CubeDim::new_2d(across as u32, along as u32),
        )
    }
}

/// Channels that a vector of `lanes` values holds.
const fn columns(order: Order, lanes: usize) -> usize {
    match order {
        Order::Planes => 1,
        Order::Pixels => lanes,
    }
}

/// Columns of the table that a group of units shares: the channels that it works on.
const fn width(order: Order, lanes: usize) -> usize {
    Plan::units(order).0 * columns(order, lanes)
}

/// Number, mean and sum of squared deviations of some values.
#[derive(CubeType, Clone, Copy)]
struct Moments {
    count: f32,
    mean: f32,
    squares: f32,
}

#[cube]
fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let share = b.count / max(count, 1.0);
    let difference = b.mean - a.mean;
    Moments {
        count,
        mean: a.mean + difference * share,
        squares: a.squares + b.squares + difference * difference * (a.count * share),
    }
}

/// Where the `k`-th vector of a channel is.
#[cube]
fn place(
    k: usize,
    channel: usize,
    channels: usize,
    inner: usize,
    #[comptime] order: Order,
) -> usize {
    if comptime!(order == Order::Planes) {
        (k / inner * channels + channel) * inner + k % inner
    } else {
        k * channels + channel
    }
}

/// For each value of a vector the number of its channel from `values`, which hold one each from
/// `start`.
#[cube]
fn per_channel<N: Size>(
    values: &[f32],
    start: usize,
    channel: usize,
    #[comptime] order: Order,
) -> Vector<f32, N> {
    if comptime!(order == Order::Planes) {
        Vector::new(values[start + channel])
    } else {
        let mut vector = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            vector.insert(lane, values[start + channel * N::value() + lane]);
        }
        vector
    }
}

/// The channel, or vector of channels, that the vector at `index` belongs to.
#[cube]
fn channel_of(index: usize, channels: usize, inner: usize, #[comptime] order: Order) -> usize {
    if comptime!(order == Order::Planes) {
        index / inner % channels
    } else {
        index % channels
    }
}

/// Moments about each channel's first value, by part of the channel: `[splits, 3, c]`.
#[cube(launch_unchecked)]
fn part_moments<E: Float, N: Size>(
    x: &[Vector<E, N>],
    parts: &mut [f32],
    channels: usize,
    inner: usize,
    length: usize,
    splits: usize,
    #[comptime] order: Order,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = N::value();
    let columns = comptime!(columns(order, lanes));
    let width = comptime!(width(order, lanes));
    let size = comptime!(UNITS * columns);
    let mut counts = Shared::<[f32]>::new_slice(size);
    let mut means = Shared::<[f32]>::new_slice(size);
    let mut squares = Shared::<[f32]>::new_slice(size);

    let row = UNIT_POS_Y as usize;
    let rows = CUBE_DIM_Y as usize;
    let channel = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    let split = CUBE_POS_Y as usize;

    let mut count = 0.0f32;
    let mut first = Vector::<f32, N>::new(0.0);
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut square = Vector::<f32, N>::new(0.0);
    if channel < channels {
        let start = Vector::<f32, N>::cast_from(x[place(0, channel, channels, inner, order)]);
        let centre = if comptime!(order == Order::Planes) {
            Vector::<f32, N>::new(start.extract(0usize))
        } else {
            start
        };
        let mut k = split * rows + row;
        while k < length {
            let value =
                Vector::<f32, N>::cast_from(x[place(k, channel, channels, inner, order)]) - centre;
            if count == 0.0 {
                first = value;
            }
            let difference = value - first;
            sum += difference;
            square += difference * difference;
            count += 1.0;
            k += splits * rows;
        }
    }
    let share = Vector::<f32, N>::new(1.0 / max(count, 1.0));
    let mean = first + sum * share;
    let deviation = square - sum * sum * share;

    if comptime!(order == Order::Planes) {
        counts[row] = count;
        means[row] = mean.extract(0usize);
        squares[row] = deviation.extract(0usize);
        #[unroll]
        for lane in 1..N::value() {
            let all = Moments {
                count: counts[row],
                mean: means[row],
                squares: squares[row],
            };
            let other = Moments {
                count,
                mean: mean.extract(lane),
                squares: deviation.extract(lane),
            };
            let both = merge(all, other);
            counts[row] = both.count;
            means[row] = both.mean;
            squares[row] = both.squares;
        }
    } else {
        #[unroll]
        for lane in 0..N::value() {
            let at = row * width + UNIT_POS_X as usize * lanes + lane;
            counts[at] = count;
            means[at] = mean.extract(lane);
            squares[at] = deviation.extract(lane);
        }
    }
    sync_cube();

    let mut half = rows / 2;
    while half > 0 {
        if row < half {
            #[unroll]
            for lane in 0..columns {
                let here = row * width + UNIT_POS_X as usize * columns + lane;
                let there = here + half * width;
                let a = Moments {
                    count: counts[here],
                    mean: means[here],
                    squares: squares[here],
                };
                let b = Moments {
                    count: counts[there],
                    mean: means[there],
                    squares: squares[there],
                };
                let both = merge(a, b);
                counts[here] = both.count;
                means[here] = both.mean;
                squares[here] = both.squares;
            }
        }
        sync_cube();
        half /= 2;
    }

    if row == 0 && channel < channels {
        let total = channels * columns;
        #[unroll]
        for lane in 0..columns {
            let here = UNIT_POS_X as usize * columns + lane;
            let at = split * 3 * total + channel * columns + lane;
            parts[at] = counts[here];
            parts[at + total] = means[here];
            parts[at + 2 * total] = squares[here];
        }
    }
}

/// The rows of [`BatchNormalisation`]'s statistics from the moments of parts. One unit a channel.
#[cube(launch_unchecked)]
fn combine_moments<E: Float>(
    x: &[E],
    parts: &[f32],
    statistics: &mut [f32],
    channels: usize,
    plane: usize,
    splits: usize,
    epsilon: f32,
    #[define(E)] _dtype: ElemType,
) {
    let channel = ABSOLUTE_POS;
    if channel >= channels {
        terminate!();
    }
    let mut count = 0.0f32.runtime();
    let mut offset = 0.0f32.runtime();
    let mut squares = 0.0f32.runtime();
    for split in 0..splits {
        let at = split * 3 * channels + channel;
        let all = Moments {
            count,
            mean: offset,
            squares,
        };
        let part = Moments {
            count: parts[at],
            mean: parts[at + channels],
            squares: parts[at + 2 * channels],
        };
        let both = merge(all, part);
        count = both.count;
        offset = both.mean;
        squares = both.squares;
    }
    let centre = f32::cast_from(x[channel * plane]);
    let variance = squares / count;
    // NaN stays NaN.
    let variance = select(variance < 0.0, 0.0, variance);
    let mean = centre + offset;
    statistics[channel] = mean;
    statistics[channels + channel] = variance;
    statistics[2 * channels + channel] = 1.0 / (variance + epsilon).sqrt();
    statistics[3 * channels + channel] = (centre - mean) + offset;
}

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
struct Affine<N: Size> {
    mean: Vector<f32, N>,
    scale: Vector<f32, N>,
    shift: Vector<f32, N>,
}

#[cube]
impl<N: Size> Affine<N> {
    fn of(
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

    fn apply(&self, x: Vector<f32, N>) -> Vector<f32, N> {
        (x - self.mean) * self.scale + self.shift
    }
}

/// Where a ReLU let the gradient through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mask {
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

/// Sums of the masked gradient and of its products with `x - mean`, by part of the channel:
/// `[splits, 2, c]`.
#[cube(launch_unchecked)]
fn part_sums<E: Float, N: Size>(
    gradient: &[Vector<E, N>],
    x: &[Vector<E, N>],
    output: ComptimeOption<&[Vector<E, N>]>,
    gamma: &[f32],
    beta: &[f32],
    statistics: &[f32],
    parts: &mut [f32],
    channels: usize,
    inner: usize,
    length: usize,
    splits: usize,
    #[comptime] order: Order,
    #[comptime] mask: Mask,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = N::value();
    let columns = comptime!(columns(order, lanes));
    let width = comptime!(width(order, lanes));
    let size = comptime!(UNITS * columns);
    let mut sums = Shared::<[f32]>::new_slice(size);
    let mut products = Shared::<[f32]>::new_slice(size);

    let row = UNIT_POS_Y as usize;
    let rows = CUBE_DIM_Y as usize;
    let channel = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    let split = CUBE_POS_Y as usize;

    let mut sum = Vector::<f32, N>::new(0.0);
    let mut product = Vector::<f32, N>::new(0.0);
    if channel < channels {
        let affine = Affine::<N>::of(gamma, beta, statistics, channel, channels, order);
        let mut k = split * rows + row;
        while k < length {
            let index = place(k, channel, channels, inner, order);
            let value = Vector::<f32, N>::cast_from(x[index]);
            #[comptime]
            let decisive = match &output {
                ComptimeOption::Some(output) => Vector::<f32, N>::cast_from(output[index]),
                ComptimeOption::None => affine.apply(value),
            };
            let g = masked::<N>(Vector::cast_from(gradient[index]), decisive, mask);
            sum += g;
            product += g * (value - affine.mean);
            k += splits * rows;
        }
    }

    if comptime!(order == Order::Planes) {
        let mut all = sum.extract(0usize);
        let mut all_products = product.extract(0usize);
        #[unroll]
        for lane in 1..N::value() {
            all += sum.extract(lane);
            all_products += product.extract(lane);
        }
        sums[row] = all;
        products[row] = all_products;
    } else {
        #[unroll]
        for lane in 0..N::value() {
            let at = row * width + UNIT_POS_X as usize * lanes + lane;
            sums[at] = sum.extract(lane);
            products[at] = product.extract(lane);
        }
    }
    sync_cube();

    let mut half = rows / 2;
    while half > 0 {
        if row < half {
            #[unroll]
            for lane in 0..columns {
                let here = row * width + UNIT_POS_X as usize * columns + lane;
                let there = here + half * width;
                let (sum, product) = (sums[there], products[there]);
                sums[here] += sum;
                products[here] += product;
            }
        }
        sync_cube();
        half /= 2;
    }

    if row == 0 && channel < channels {
        let total = channels * columns;
        #[unroll]
        for lane in 0..columns {
            let here = UNIT_POS_X as usize * columns + lane;
            let at = split * 2 * total + channel * columns + lane;
            parts[at] = sums[here];
            parts[at + total] = products[here];
        }
    }
}

/// The gradients of gamma and beta from the sums of parts. One unit a channel.
#[cube(launch_unchecked)]
fn combine_sums(
    parts: &[f32],
    statistics: &[f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    channels: usize,
    splits: usize,
) {
    let channel = ABSOLUTE_POS;
    if channel >= channels {
        terminate!();
    }
    let mut sum = 0.0f32.runtime();
    let mut product = 0.0f32.runtime();
    for split in 0..splits {
        let at = split * 2 * channels + channel;
        sum += parts[at];
        product += parts[at + channels];
    }
    let inverse = statistics[2 * channels + channel];
    let remainder = statistics[3 * channels + channel];
    dgamma[channel] = (product - remainder * sum) * inverse;
    dbeta[channel] = sum;
}

/// The gradient of `x`, and of the skip connection, one vector a unit:
/// `scale * (g - sum(g) / count - normalised * sum(g * normalised) / count)`.
#[cube(launch_unchecked)]
fn gradients<E: Float, N: Size>(
    gradient: &[Vector<E, N>],
    x: &[Vector<E, N>],
    output: ComptimeOption<&[Vector<E, N>]>,
    gamma: &[f32],
    beta: &[f32],
    statistics: &[f32],
    dgamma: &[f32],
    dbeta: &[f32],
    dx: &mut [Vector<E, N>],
    dskip: ComptimeOption<&mut [Vector<E, N>]>,
    channels: usize,
    inner: usize,
    length: usize,
    share: f32,
    #[comptime] order: Order,
    #[comptime] mask: Mask,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let channel = channel_of(index, channels, inner, order);
    let lanes = N::value();
    let total = channels * comptime!(columns(order, lanes));
    let affine = Affine::<N>::of(gamma, beta, statistics, channel, channels, order);
    let inverse = per_channel::<N>(statistics, 2 * total, channel, order);
    let remainder = per_channel::<N>(statistics, 3 * total, channel, order);
    let share = Vector::<f32, N>::new(share);
    let product = per_channel::<N>(dgamma, 0, channel, order);
    let sum = per_channel::<N>(dbeta, 0, channel, order);
    let zero = Vector::<f32, N>::new(0.0);
    let slope = zero - affine.scale * inverse * product * share;
    let constant = zero - affine.scale * sum * share - slope * remainder;

    let value = Vector::<f32, N>::cast_from(x[index]);
    #[comptime]
    let decisive = match &output {
        ComptimeOption::Some(output) => Vector::<f32, N>::cast_from(output[index]),
        ComptimeOption::None => affine.apply(value),
    };
    let g = masked::<N>(Vector::cast_from(gradient[index]), decisive, mask);
    dx[index] = Vector::cast_from(affine.scale * g + (slope * (value - affine.mean) + constant));
    #[comptime]
    if let ComptimeOption::Some(dskip) = dskip {
        dskip[index] = Vector::cast_from(g);
    }
}

fn statistics_of(x: CubeTensor, epsilon: f64) -> CubeTensor {
    let (x, layout) = Layout::of(x);
    let plan = Plan::new(&layout, &x);
    let [_, c, h, w] = layout.shape;
    let client = x.client.clone();

    let parts = empty(&x, [plan.splits, 3, c], DType::F32);
    let (count, dim) = plan.launch();
    // SAFETY: units beyond the channels read and write nothing, others stay within `length`.
    unsafe {
        part_moments::launch_unchecked(
            &client,
            count,
            dim,
            plan.vector,
            x.clone().into_buffer_arg(),
            parts.clone().into_buffer_arg(),
            plan.channels,
            plan.inner,
            plan.length,
            plan.splits,
            plan.order,
            element(&x),
        );
    }
    let statistics = empty(&x, [4, c], DType::F32);
    let plane = match plan.order {
        Order::Planes => h * w,
        Order::Pixels => 1,
    };
    let (count, dim) = elementwise(&x, c);
    // SAFETY: units beyond the channels stop; `parts` has all splits of all channels.
    unsafe {
        combine_moments::launch_unchecked(
            &client,
            count,
            dim,
            x.clone().into_buffer_arg(),
            parts.into_buffer_arg(),
            statistics.clone().into_buffer_arg(),
            c,
            plane,
            plan.splits,
            epsilon as f32,
            element(&x),
        );
    }
    statistics
}

fn apply(
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
            x.clone().into_buffer_arg(),
            optional(skip),
            gamma.into_buffer_arg(),
            beta.into_buffer_arg(),
            statistics.into_buffer_arg(),
            output.clone().into_buffer_arg(),
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

fn forward(
    x: CubeTensor,
    parameters: [CubeTensor; 2],
    skip: Option<CubeTensor>,
    epsilon: f64,
    activation: Activation,
) -> (CubeTensor, CubeTensor) {
    // Once, where it has gaps.
    let (x, layout) = Layout::of(x);
    let x = layout.view(x);
    let statistics = statistics_of(x.clone(), epsilon);
    let output = apply(x, parameters, statistics.clone(), skip, activation);
    (output, statistics)
}

/// What a backward pass reads, all maps in one order.
struct Backward {
    layout: Layout,
    plan: Plan,
    x: CubeTensor,
    gamma: CubeTensor,
    beta: CubeTensor,
    statistics: CubeTensor,
    output: Option<CubeTensor>,
    mask: Mask,
}

impl Backward {
    fn new(
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
    fn sums(&self, gradient: &CubeTensor) -> [CubeTensor; 2] {
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
                gradient.clone().into_buffer_arg(),
                x.clone().into_buffer_arg(),
                optional(self.output.clone()),
                self.gamma.clone().into_buffer_arg(),
                self.beta.clone().into_buffer_arg(),
                self.statistics.clone().into_buffer_arg(),
                parts.clone().into_buffer_arg(),
                plan.channels,
                plan.inner,
                plan.length,
                plan.splits,
                plan.order,
                self.mask,
                element(x),
            );
        }
        let [dgamma, dbeta] = [(); 2].map(|()| empty(x, [c], DType::F32));
        let (count, dim) = elementwise(x, c);
        // SAFETY: units beyond the channels stop; `parts` has all splits of all channels.
        unsafe {
            combine_sums::launch_unchecked(
                &x.client,
                count,
                dim,
                parts.into_buffer_arg(),
                self.statistics.clone().into_buffer_arg(),
                dgamma.clone().into_buffer_arg(),
                dbeta.clone().into_buffer_arg(),
                c,
                plan.splits,
            );
        }
        [dgamma, dbeta]
    }

    /// The gradients of the input and, with the output, of the skip connection. `sums` are over all
    /// `count` values of a channel that the statistics are of.
    fn gradients(
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
            (dx.clone(), dx.into_buffer_arg())
        };
        let dskip = self.output.as_ref().map(|_| layout.empty(&x));
        let length = plan.channels * plan.length;
        let (count, dim) = elementwise(&x, length);
        // SAFETY: units beyond `length` stop; all maps have as many vectors. Where `dx` is the
        // gradient's memory, each unit writes only what it alone has read.
        unsafe {
            gradients::launch_unchecked(
                &x.client,
                count,
                dim,
                plan.vector,
                gradient.into_buffer_arg(),
                x.clone().into_buffer_arg(),
                optional(self.output),
                self.gamma.into_buffer_arg(),
                self.beta.into_buffer_arg(),
                self.statistics.into_buffer_arg(),
                into_contiguous(dgamma).into_buffer_arg(),
                into_contiguous(dbeta).into_buffer_arg(),
                dx_argument,
                optional(dskip.clone()),
                plan.channels,
                plan.inner,
                length,
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

/// The gradients of the input, gamma, beta and, with `output`, the skip connection.
fn backward(
    x: CubeTensor,
    parameters: [CubeTensor; 2],
    statistics: CubeTensor,
    output: Option<CubeTensor>,
    gradient: CubeTensor,
    activation: Activation,
) -> (CubeTensor, CubeTensor, CubeTensor, Option<CubeTensor>) {
    let pass = Backward::new(x, parameters, statistics, output, activation);
    let gradient = pass.layout.arrange(gradient);
    let [n, _, h, w] = pass.layout.shape;
    let sums = pass.sums(&gradient);
    let (dx, dskip) = pass.gradients(gradient, sums.clone(), (n * h * w) as f32);
    let [dgamma, dbeta] = sums;
    (dx, dgamma, dbeta, dskip)
}

/// A buffer that a kernel may do without.
fn optional<A: From<Option<BufferArg>>>(tensor: Option<CubeTensor>) -> A {
    tensor.map(|tensor| tensor.into_buffer_arg()).into()
}

impl BatchNormalisation for CubeBackend {
    fn halfseg_batch_norm(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        epsilon: f64,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor) {
        forward(x, [gamma, beta], None, epsilon, activation)
    }

    fn halfseg_batch_norm_skip(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        skip: CubeTensor,
        epsilon: f64,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor) {
        forward(x, [gamma, beta], Some(skip), epsilon, activation)
    }

    fn halfseg_batch_norm_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        gradient: CubeTensor,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let parameters = [gamma, beta];
        let (dx, dgamma, dbeta, _) =
            backward(x, parameters, statistics, None, gradient, activation);
        (dx, dgamma, dbeta)
    }

    fn halfseg_batch_norm_skip_relu_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        statistics: CubeTensor,
        output: CubeTensor,
        gradient: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        // The shift is not read where the mask comes from the output.
        let parameters = [gamma.clone(), gamma];
        let (output, relu) = (Some(output), Activation::Relu);
        let (dx, dgamma, dbeta, dskip) =
            backward(x, parameters, statistics, output, gradient, relu);
        let dskip = dskip.expect("with the output comes the skip connection's gradient");
        (dx, dgamma, dbeta, dskip)
    }
}

impl SharedNormalisation for CubeBackend {
    fn halfseg_norm_statistics(x: CubeTensor, epsilon: f64) -> CubeTensor {
        statistics_of(x, epsilon)
    }

    fn halfseg_norm_apply(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        activation: Activation,
    ) -> CubeTensor {
        apply(x, [gamma, beta], statistics, None, activation)
    }

    fn halfseg_norm_apply_skip(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        skip: CubeTensor,
        activation: Activation,
    ) -> CubeTensor {
        apply(x, [gamma, beta], statistics, Some(skip), activation)
    }

    fn halfseg_norm_sums(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        gradient: CubeTensor,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor) {
        let pass = Backward::new(x, [gamma, beta], statistics, None, activation);
        let gradient = pass.layout.arrange(gradient);
        let [dgamma, dbeta] = pass.sums(&gradient);
        (dgamma, dbeta)
    }

    fn halfseg_norm_skip_relu_sums(
        x: CubeTensor,
        gamma: CubeTensor,
        statistics: CubeTensor,
        output: CubeTensor,
        gradient: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        // The shift is not read where the mask comes from the output.
        let parameters = [gamma.clone(), gamma];
        let pass = Backward::new(x, parameters, statistics, Some(output), Activation::Relu);
        let gradient = pass.layout.arrange(gradient);
        let [dgamma, dbeta] = pass.sums(&gradient);
        (dgamma, dbeta)
    }

    fn halfseg_norm_gradient(
        x: CubeTensor,
        parameters: CubeTensor,
        statistics: CubeTensor,
        sums: CubeTensor,
        gradient: CubeTensor,
        count: f64,
        activation: Activation,
    ) -> CubeTensor {
        let pass = Backward::new(x, rows(parameters), statistics, None, activation);
        let gradient = pass.layout.arrange(gradient);
        pass.gradients(gradient, rows(sums), count as f32).0
    }

    fn halfseg_norm_skip_relu_gradient(
        x: CubeTensor,
        gamma: CubeTensor,
        statistics: CubeTensor,
        output: CubeTensor,
        sums: CubeTensor,
        gradient: CubeTensor,
        count: f64,
    ) -> (CubeTensor, CubeTensor) {
        let parameters = [gamma.clone(), gamma];
        let pass = Backward::new(x, parameters, statistics, Some(output), Activation::Relu);
        let gradient = pass.layout.arrange(gradient);
        let (dx, dskip) = pass.gradients(gradient, rows(sums), count as f32);
        (
            dx,
            dskip.expect("with the output comes the skip connection's gradient"),
        )
    }
}

/// The two rows of `[2, c]`.
fn rows(pair: CubeTensor) -> [CubeTensor; 2] {
    let [_, c] = pair.meta.shape().dims();
    [0, 1].map(|row| {
        let row = slice(pair.clone(), &[row..row + 1, 0..c]);
        reshape(row, [c].into())
    })
}
