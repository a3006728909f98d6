//! Statistics: moments of parts of each channel, and their combination.
//!
//! Moments are taken about the channel's first value, and within a unit about the first value that
//! the unit reads, so that a mean of many deviations costs no digits although nothing is f64; parts
//! are merged as by Chan, Golub and LeVeque (1979).

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::plan::{Plan, columns, place};
use crate::gpu::launch::{buffer, element, empty, optional};
use crate::gpu::layout::{Layout, Order};
use crate::gpu::reduce::{UNITS, along, launch_sums};
use crate::norm::forward::Moves;

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

/// Merges the rows of tables of moments, `size` values in rows of `width`, into the first row, pairwise, as
/// [`add_rows`](crate::gpu::reduce::add_rows) adds.
#[cube]
fn merge_rows(
    counts: &mut Shared<[f32]>,
    means: &mut Shared<[f32]>,
    squares: &mut Shared<[f32]>,
    row: usize,
    column: usize,
    #[comptime] size: usize,
    #[comptime] width: usize,
    #[comptime] lanes: usize,
) {
    sync_cube();
    let mut half = comptime!(size / width / 2).runtime();
    while half > 0 {
        if row < half {
            #[unroll]
            for lane in 0..lanes {
                let here = row * width + column + lane;
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
    #[comptime] across: usize,
    #[comptime] order: Order,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = N::value();
    let columns = comptime!(columns(order, lanes));
    let width = comptime!(across * columns);
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
    let column = UNIT_POS_X as usize * columns;
    merge_rows(
        &mut counts,
        &mut means,
        &mut squares,
        row,
        column,
        size,
        width,
        columns,
    );

    if row == 0 && channel < channels {
        let total = channels * columns;
        #[unroll]
        for lane in 0..columns {
            let here = column + lane;
            let at = split * 3 * total + channel * columns + lane;
            parts[at] = counts[here];
            parts[at + total] = means[here];
            parts[at + 2 * total] = squares[here];
        }
    }
}

/// The rows of the statistics from the moments of parts, over `rows` units a channel, and where there are running
/// statistics, those moved.
#[cube(launch_unchecked)]
fn combine_moments<E: Float>(
    x: &[E],
    parts: &[f32],
    running_mean: ComptimeOption<&[f32]>,
    running_variance: ComptimeOption<&[f32]>,
    statistics: &mut [f32],
    moved_mean: ComptimeOption<&mut [f32]>,
    moved_variance: ComptimeOption<&mut [f32]>,
    channels: usize,
    plane: usize,
    splits: usize,
    epsilon: f32,
    keep: f32,
    mean_share: f32,
    variance_share: f32,
    #[comptime] rows: usize,
    #[define(E)] _dtype: ElemType,
) {
    let columns = comptime!(UNITS / rows);
    let mut counts = Shared::<[f32]>::new_slice(UNITS);
    let mut means = Shared::<[f32]>::new_slice(UNITS);
    let mut squares = Shared::<[f32]>::new_slice(UNITS);
    let (row, column) = (UNIT_POS_Y as usize, UNIT_POS_X as usize);
    let channel = CUBE_POS * columns + column;

    let mut count = 0.0f32.runtime();
    let mut offset = 0.0f32.runtime();
    let mut square = 0.0f32.runtime();
    if channel < channels {
        let mut split = row;
        while split < splits {
            let at = split * 3 * channels + channel;
            let all = Moments {
                count,
                mean: offset,
                squares: square,
            };
            let part = Moments {
                count: parts[at],
                mean: parts[at + channels],
                squares: parts[at + 2 * channels],
            };
            let both = merge(all, part);
            count = both.count;
            offset = both.mean;
            square = both.squares;
            split += rows;
        }
    }
    let own = row * columns + column;
    counts[own] = count;
    means[own] = offset;
    squares[own] = square;
    merge_rows(
        &mut counts,
        &mut means,
        &mut squares,
        row,
        column,
        UNITS,
        columns,
        1usize,
    );

    if row == 0 && channel < channels {
        let centre = f32::cast_from(x[channel * plane]);
        let offset = means[column];
        let variance = squares[column] / counts[column];
        // NaN stays NaN.
        let variance = select(variance < 0.0, 0.0, variance);
        let mean = centre + offset;
        statistics[channel] = mean;
        statistics[channels + channel] = variance;
        statistics[2 * channels + channel] = 1.0 / (variance + epsilon).sqrt();
        statistics[3 * channels + channel] = (centre - mean) + offset;
        #[comptime]
        if let (ComptimeOption::Some(running), ComptimeOption::Some(moved)) =
            (running_mean, moved_mean)
        {
            moved[channel] = running[channel] * keep + mean * mean_share;
        }
        #[comptime]
        if let (ComptimeOption::Some(running), ComptimeOption::Some(moved)) =
            (running_variance, moved_variance)
        {
            moved[channel] = running[channel] * keep + variance * variance_share;
        }
    }
}

/// Running mean and variance, without gaps, and where they are to be when they have moved.
pub struct Moving {
    pub from: [CubeTensor; 2],
    pub to: [CubeTensor; 2],
    pub moves: Moves,
}

/// The rows of [`BatchNormalisation`](crate::norm::ops::BatchNormalisation)'s statistics.
pub fn statistics_of(x: CubeTensor, epsilon: f64) -> CubeTensor {
    statistics_moving(x, epsilon, None)
}

/// The same, and running statistics moved on the way: a kernel for each would take as long as this one.
pub fn statistics_moving(x: CubeTensor, epsilon: f64, moving: Option<Moving>) -> CubeTensor {
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
            buffer(x.clone()),
            buffer(parts.clone()),
            plan.channels,
            plan.inner,
            plan.length,
            plan.splits,
            plan.across,
            plan.order,
            element(&x),
        );
    }
    let statistics = empty(&x, [4, c], DType::F32);
    let plane = match plan.order {
        Order::Planes => h * w,
        Order::Pixels => 1,
    };
    let rows = along(plan.splits);
    let (count, dim) = launch_sums(&x, c, rows);
    let moves = moving.as_ref().map(|moving| moving.moves);
    let (from, to) = moving.map(|moving| (moving.from, moving.to)).unzip();
    let [from, to] = [from, to].map(|pair: Option<[CubeTensor; 2]>| match pair {
        Some(pair) => pair.map(Some),
        None => [None, None],
    });
    let ([from_mean, from_variance], [to_mean, to_variance]) = (from, to);
    let moves = moves.unwrap_or(Moves {
        keep: 0.0,
        mean: 0.0,
        variance: 0.0,
    });
    // SAFETY: units beyond the channels read and write nothing; `parts` has all splits of all channels.
    unsafe {
        combine_moments::launch_unchecked(
            &client,
            count,
            dim,
            buffer(x.clone()),
            buffer(parts),
            optional(from_mean),
            optional(from_variance),
            buffer(statistics.clone()),
            optional(to_mean),
            optional(to_variance),
            c,
            plane,
            plan.splits,
            epsilon as f32,
            moves.keep,
            moves.mean,
            moves.variance,
            rows,
            element(&x),
        );
    }
    statistics
}
