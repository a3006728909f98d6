//! Maps of Burn's Flex backend whose channels are neighbours in memory.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::backend::{BackendTensor, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Between;
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, dispatch};
use crate::cpu::tensor::{handles, shape, tensor, values, with_element};
use crate::cpu::transpose;
use crate::with_gradient;

/// Channels that a task sums, or of which it takes the largest value.
const CHANNELS: usize = 64;

/// What is on the CPU and part of no graph.
fn primitive(map: &Tensor<4>) -> Option<FlexTensor> {
    let ours = handles(map) && !map.device().is_autodiff();
    ours.then(|| with_gradient::primitive::<Flex>(map.clone().into_dispatch()))
}

fn wrapped(map: FlexTensor) -> Tensor<4> {
    let map = BackendTensor::Float(map);
    Tensor::from_dispatch(<DispatchTensor as DispatchKindConversion<Flex>>::from_backend(map))
}

fn if_channels_last(map: &Tensor<4>) -> Option<FlexTensor> {
    primitive(map).filter(transpose::lies_channels_last)
}

pub fn lies_channels_last(map: &Tensor<4>) -> bool {
    if_channels_last(map).is_some()
}

/// With its channels as neighbours in memory.
pub fn channels_last(map: &Tensor<4>) -> Option<Tensor<4>> {
    let last = transpose::channels_last(&primitive(map)?);
    Some(wrapped(last.permute(&[0, 3, 1, 2])))
}

pub fn max_pool2d(
    map: &Tensor<4>,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Option<Tensor<4>> {
    let map = if_channels_last(map)?;
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
    let map = transpose::channels_last(&map);
    let window = move |at: usize, size: usize| {
        let first = at * stride;
        first.saturating_sub(padding)..size.min((first + kernel).saturating_sub(padding))
    };
    let pooled = with_element!(map.dtype(), E => {
        let x = values::<E>(&map);
        let mut output = vec![E::default(); n * rows * columns * c];
        output.par_chunks_mut(columns * c).enumerate().for_each(|(row, output)| {
            let image = &x[row / rows * h * w * c..][..h * w * c];
            let ys = window(row % rows, h);
            let isa = Isa::best();
            let mut largest = vec![0f32; c];
            let mut wide = vec![0f32; c];
            dispatch(isa, #[inline(always)] |isa| {
                for (column, output) in output.chunks_exact_mut(c).enumerate() {
                    largest.fill(f32::NEG_INFINITY);
                    for y in ys.clone() {
                        for x in window(column, w) {
                            E::widen_run(isa, &image[(y * w + x) * c..][..c], &mut wide);
                            for (largest, value) in largest.iter_mut().zip(&wide) {
                                let is_larger = *value > *largest || value.is_nan();
                                *largest = if is_larger { *value } else { *largest };
                            }
                        }
                    }
                    E::narrow_run(isa, &largest, output);
                }
            });
        });
        tensor(output, [n, rows, columns, c])
    });
    Some(wrapped(pooled.permute(&[0, 3, 1, 2])))
}

pub fn averages(
    map: &Tensor<4>,
    rows: &[Range<usize>],
    columns: &[Range<usize>],
) -> Option<Tensor<4>> {
    let map = if_channels_last(map)?;
    let [n, c, h, w] = shape(&map);
    let within =
        |bins: &[Range<usize>], size| bins.iter().all(|bin| !bin.is_empty() && bin.end <= size);
    assert!(
        within(rows, h) && within(columns, w),
        "rectangles are parts of a map of {h}x{w}"
    );
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
    Some(wrapped(pooled.permute(&[0, 3, 1, 2])))
}

pub fn resample(map: &Tensor<4>, rows: &[Between], columns: &[Between]) -> Option<Tensor<4>> {
    let map = if_channels_last(map)?;
    let [n, c, h, w] = shape(&map);
    let within = |lines: &[Between], size| lines.iter().all(|line| line.low.max(line.high) < size);
    assert!(
        within(rows, h) && within(columns, w),
        "rows and columns are those of a map of {h}x{w}"
    );
    let map = transpose::channels_last(&map);
    let resized = with_element!(map.dtype(), E => {
        let x = values::<E>(&map);
        let mut output = vec![E::default(); n * rows.len() * columns.len() * c];
        output.par_chunks_mut((columns.len() * c).max(1)).enumerate().for_each(|(index, output)| {
            let image = &x[index / rows.len() * h * w * c..][..h * w * c];
            let row = rows[index % rows.len()];
            // The row between two of the map, once for all columns.
            let mut line = vec![0f32; w * c];
            let mut other = vec![0f32; w * c];
            let mut pixel = vec![0f32; c];
            dispatch(Isa::best(), #[inline(always)] |isa| {
                E::widen_run(isa, &image[row.low * w * c..][..w * c], &mut line);
                E::widen_run(isa, &image[row.high * w * c..][..w * c], &mut other);
                for (line, other) in line.iter_mut().zip(&other) {
                    *line = *line * (1.0 - row.share) + other * row.share;
                }
                for (column, output) in columns.iter().zip(output.chunks_exact_mut(c)) {
                    let [low, high] = [column.low, column.high].map(|x| &line[x * c..][..c]);
                    for (pixel, (low, high)) in pixel.iter_mut().zip(low.iter().zip(high)) {
                        *pixel = low * (1.0 - column.share) + high * column.share;
                    }
                    E::narrow_run(isa, &pixel, output);
                }
            });
        });
        tensor(output, [n, rows.len(), columns.len(), c])
    });
    Some(wrapped(resized.permute(&[0, 3, 1, 2])))
}
