//! Maps of Burn's Flex backend whose channels are neighbours in memory.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Between;
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, dispatch};
use crate::cpu::lines::{Columns, between};
use crate::cpu::tasks;
use crate::cpu::tensor::{floats, primitive, shape, tensor, values, with_element};
use crate::cpu::transpose;

/// Channels that a task sums, or of which it takes the largest value.
const CHANNELS: usize = 64;

/// Lines of planes that a task resizes at least.
const LINES: usize = 8;

fn if_channels_last(map: &Tensor<4>) -> Option<FlexTensor> {
    primitive(map).filter(transpose::lies_channels_last)
}

pub fn lies_channels_last(map: &Tensor<4>) -> bool {
    if_channels_last(map).is_some()
}

/// With its channels as neighbours in memory.
pub fn channels_last(map: &Tensor<4>) -> Option<Tensor<4>> {
    let last = transpose::channels_last(&primitive(map)?);
    Some(floats(last.permute(&[0, 3, 1, 2])))
}

pub fn max_pool2d(
    map: &Tensor<4>,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Option<Tensor<4>> {
    let map = primitive(map)?;
    let [n, c, h, w] = shape(&map);
    assert!(
        kernel > 0 && stride > 0 && 2 * padding <= kernel,
        "a window of {kernel} pixels, {stride} apart, with {padding} around the map"
    );
    let outputs = |size: usize| {
        let room = (size + 2 * padding).checked_sub(kernel);
        room.map(|room| room / stride + 1)
            .unwrap_or_else(|| panic!("a window of {kernel} pixels does not fit a map of {h}x{w}"))
    };
    let [rows, columns] = [outputs(h), outputs(w)];
    let window = move |at: usize, size: usize| {
        let first = at * stride;
        first.saturating_sub(padding)..size.min((first + kernel).saturating_sub(padding))
    };
    if transpose::lies_channels_last(&map) {
        let map = transpose::channels_last(&map);
        let pooled = with_element!(map.dtype(), E => {
            let x = values::<E>(&map);
            let mut output = vec![E::default(); n * rows * columns * c];
            tasks::each_chunk(&mut output, (columns * c).max(1), |row, output| {
                let image = &x[row / rows * h * w * c..][..h * w * c];
                let [mut largest, mut wide] = [vec![0f32; c], vec![0f32; c]];
                dispatch(Isa::best(), #[inline(always)] |isa| {
                    for (column, output) in output.chunks_exact_mut(c).enumerate() {
                        largest.fill(f32::NEG_INFINITY);
                        for y in window(row % rows, h) {
                            for x in window(column, w) {
                                E::widen_run(isa, &image[(y * w + x) * c..][..c], &mut wide);
                                take_larger(&mut largest, &wide);
                            }
                        }
                        E::narrow_run(isa, &largest, output);
                    }
                });
            });
            tensor(output, [n, rows, columns, c])
        });
        return Some(floats(pooled.permute(&[0, 3, 1, 2])));
    }
    let map = map.to_contiguous();
    Some(floats(with_element!(map.dtype(), E => {
        let x = values::<E>(&map);
        let mut output = vec![E::default(); n * c * rows * columns];
        tasks::each_chunk(&mut output, (rows * columns).max(1), |plane, output| {
            let plane = &x[plane * h * w..][..h * w];
            let [mut line, mut wide] = [vec![0f32; w], vec![0f32; w]];
            let mut largest = vec![0f32; columns];
            dispatch(Isa::best(), #[inline(always)] |isa| {
                for (row, output) in output.chunks_exact_mut(columns).enumerate() {
                    line.fill(f32::NEG_INFINITY);
                    for y in window(row, h) {
                        E::widen_run(isa, &plane[y * w..][..w], &mut wide);
                        take_larger(&mut line, &wide);
                    }
                    for (column, largest) in largest.iter_mut().enumerate() {
                        let values = line[window(column, w)].iter();
                        *largest = values.fold(f32::NEG_INFINITY, |a, b| larger(a, *b));
                    }
                    E::narrow_run(isa, &largest, output);
                }
            });
        });
        tensor(output, [n, c, rows, columns])
    })))
}

/// Each of `values`, or the other one if that is larger.
#[inline(always)]
fn take_larger(values: &mut [f32], others: &[f32]) {
    for (value, other) in values.iter_mut().zip(others) {
        *value = larger(*value, *other);
    }
}

/// The larger value; NaN if one of them is.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

pub fn averages(
    map: &Tensor<4>,
    rows: &[Range<usize>],
    columns: &[Range<usize>],
) -> Option<Tensor<4>> {
    let map = primitive(map)?;
    let [n, c, h, w] = shape(&map);
    let within =
        |bins: &[Range<usize>], size| bins.iter().all(|bin| !bin.is_empty() && bin.end <= size);
    assert!(
        within(rows, h) && within(columns, w),
        "rectangles are parts of a map of {h}x{w}"
    );
    if !transpose::lies_channels_last(&map) {
        let map = map.to_contiguous();
        return Some(floats(averages_of_planes(&map, rows, columns)));
    }
    let map = transpose::channels_last(&map);
    let bins = rows.len() * columns.len();
    let pooled = with_element!(map.dtype(), E => {
        let x = values::<E>(&map);
        let parts = c.div_ceil(CHANNELS);
        // [image][part of the channels][bin][channel]
        let sums: Vec<Vec<E>> = (0..n * parts).into_par_iter().map(|task| {
            let image = &x[task / parts * h * w * c..][..h * w * c];
            let first = task % parts * CHANNELS;
            let count = CHANNELS.min(c - first);
            let mut output = vec![E::default(); bins * count];
            let isa = Isa::best();
            dispatch(isa, #[inline(always)] |isa| {
                for (index, output) in output.chunks_exact_mut(count).enumerate() {
                    let (ys, xs) = (&rows[index / columns.len()], &columns[index % columns.len()]);
                    let mut sums = [0f32; CHANNELS];
                    for y in ys.clone() {
                        // Row by row: f32 keeps sums of a few hundred values exact enough.
                        let mut row = [0f32; CHANNELS];
                        for x in xs.clone() {
                            let mut wide = [0f32; CHANNELS];
                            let pixel = &image[(y * w + x) * c + first..][..count];
                            E::widen_run(isa, pixel, &mut wide[..count]);
                            for (row, value) in row.iter_mut().zip(&wide) {
                                *row += value;
                            }
                        }
                        for (sum, row) in sums.iter_mut().zip(&row) {
                            *sum += row;
                        }
                    }
                    let share = 1.0 / (ys.len() * xs.len()) as f32;
                    sums.iter_mut().for_each(|sum| *sum *= share);
                    E::narrow_run(isa, &sums[..count], output);
                }
            });
            output
        }).collect();
        let mut output = vec![E::default(); n * bins * c];
        for (task, sums) in sums.iter().enumerate() {
            let first = task % parts * CHANNELS;
            let count = CHANNELS.min(c - first);
            for (index, sums) in sums.chunks_exact(count).enumerate() {
                let at = (task / parts * bins + index) * c + first;
                output[at..at + count].copy_from_slice(sums);
            }
        }
        tensor(output, [n, rows.len(), columns.len(), c])
    });
    Some(floats(pooled.permute(&[0, 3, 1, 2])))
}

/// Of `[n, c, h, w]`.
fn averages_of_planes(
    map: &FlexTensor,
    rows: &[Range<usize>],
    columns: &[Range<usize>],
) -> FlexTensor {
    let [n, c, h, w] = shape(map);
    let bins = rows.len() * columns.len();
    with_element!(map.dtype(), E => {
        let x = values::<E>(map);
        let mut output = vec![E::default(); n * c * bins];
        tasks::each_chunk(&mut output, bins.max(1), |plane, output| {
            let plane = &x[plane * h * w..][..h * w];
            let [mut line, mut sums] = [vec![0f32; w], vec![0f32; bins]];
            dispatch(Isa::best(), #[inline(always)] |isa| {
                for (y, row) in plane.chunks_exact(w).enumerate() {
                    E::widen_run(isa, row, &mut line);
                    // Row by row: f32 keeps sums of a few hundred values exact enough.
                    for (sums, ys) in sums.chunks_exact_mut(columns.len()).zip(rows) {
                        if ys.contains(&y) {
                            for (total, xs) in sums.iter_mut().zip(columns) {
                                *total += sum(&line[xs.clone()]);
                            }
                        }
                    }
                }
                for (sums, ys) in sums.chunks_exact_mut(columns.len()).zip(rows) {
                    for (sum, xs) in sums.iter_mut().zip(columns) {
                        *sum *= 1.0 / (ys.len() * xs.len()) as f32;
                    }
                }
                E::narrow_run(isa, &sums, output);
            });
        });
        tensor(output, [n, c, rows.len(), columns.len()])
    })
}

/// In an order that the compiler can take several at a time.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, v)| *sum += v);
    }
    sums.iter().chain(rest).sum()
}

pub fn resample(map: &Tensor<4>, rows: &[Between], columns: &[Between]) -> Option<Tensor<4>> {
    let map = primitive(map)?;
    let [n, c, h, w] = shape(&map);
    let within = |lines: &[Between], size| lines.iter().all(|line| line.low.max(line.high) < size);
    assert!(
        within(rows, h) && within(columns, w),
        "rows and columns are those of a map of {h}x{w}"
    );
    if transpose::lies_channels_last(&map) {
        let map = resample_pixels(&transpose::channels_last(&map), rows, columns);
        return Some(floats(map.permute(&[0, 3, 1, 2])));
    }
    let map = map.to_contiguous();
    let size = [n, c, rows.len(), columns.len()];
    let columns = Columns::new(columns);
    Some(floats(with_element!(map.dtype(), E => {
        let x = values::<E>(&map);
        let mut output = vec![E::default(); size.iter().product()];
        let lines = output.par_chunks_mut(columns.count().max(1)).enumerate();
        lines.with_min_len(LINES).for_each_init(
            || [vec![0f32; w], vec![0f32; w], vec![0f32; columns.count()]],
            |[line, other, wide], (index, output)| {
                let plane = &x[index / rows.len() * h * w..][..h * w];
                let row = rows[index % rows.len()];
                let lines = [row.low, row.high].map(|y| &plane[y * w..][..w]);
                dispatch(Isa::best(), #[inline(always)] |isa| {
                    between(isa, lines, row.share, line, other);
                    columns.resize(line, wide);
                    E::narrow_run(isa, wide, output);
                });
            },
        );
        tensor(output, size)
    })))
}

/// Of `[n, h, w, c]`.
fn resample_pixels(map: &FlexTensor, rows: &[Between], columns: &[Between]) -> FlexTensor {
    let [n, h, w, c] = shape(map);
    with_element!(map.dtype(), E => {
        let x = values::<E>(map);
        let mut output = vec![E::default(); n * rows.len() * columns.len() * c];
        output.par_chunks_mut((columns.len() * c).max(1)).enumerate().for_each_init(
            || [vec![0f32; w * c], vec![0f32; w * c], vec![0f32; c]],
            |[line, other, pixel], (index, output)| {
                let image = &x[index / rows.len() * h * w * c..][..h * w * c];
                let row = rows[index % rows.len()];
                let lines = [row.low, row.high].map(|y| &image[y * w * c..][..w * c]);
                dispatch(Isa::best(), #[inline(always)] |isa| {
                    // The row between two of the map, once for all columns.
                    between(isa, lines, row.share, line, other);
                    for (column, output) in columns.iter().zip(output.chunks_exact_mut(c)) {
                        let [low, high] = [column.low, column.high].map(|x| &line[x * c..][..c]);
                        for (pixel, (low, high)) in pixel.iter_mut().zip(low.iter().zip(high)) {
                            *pixel = low * (1.0 - column.share) + high * column.share;
                        }
                        E::narrow_run(isa, pixel, output);
                    }
                });
            },
        );
        tensor(output, [n, rows.len(), columns.len(), c])
    })
}
