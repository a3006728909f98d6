//! Convolutions of each channel by itself: rows are moved along and added, tap by tap.

use super::geometry::{Geometry, inside};
use super::tail::Tail;
use super::weight::{Weight, rounded};
use crate::cpu::element::{Element, convert, uninitialised};
use crate::cpu::isa::{Isa, dispatch};
use crate::cpu::tasks;

pub fn forward<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    output: &mut [E],
) {
    let plane = geometry.output[0] * geometry.output[1];
    tasks::each_chunk(output, plane, |index, output| {
        let channel = index % geometry.c_in;
        let x = widen(isa, part(x, geometry.input, index));
        let scale = weight.scale.map(|scale| scale[channel]);
        let kernel = kernel::<E, W>(geometry, weight.values, scale, channel);
        let mut sums = vec![0f32; plane];
        dispatch(
            isa,
            #[inline(always)]
            |isa| {
                forward_plane(geometry, &x, &kernel, &mut sums);
                // SAFETY: what is stored are values.
                let output = unsafe { uninitialised(output) };
                tail.store(isa, channel, index * plane, &mut sums, output);
            },
        );
    });
}

pub fn input_gradient<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    weight: &[W],
    gradient: &[E],
    result: &mut [E],
) {
    let plane = geometry.input[0] * geometry.input[1];
    tasks::each_chunk(result, plane, |index, result| {
        let gradient = widen(isa, part(gradient, geometry.output, index));
        let weight = kernel::<E, W>(geometry, weight, None, index % geometry.c_in);
        let mut sums = vec![0f32; plane];
        dispatch(
            isa,
            #[inline(always)]
            |_| input_plane(geometry, &weight, &gradient, &mut sums),
        );
        narrow(isa, &sums, result);
    });
}

pub fn weight_gradient<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
    result: &mut [W],
) {
    let kernel = geometry.kernel[0] * geometry.kernel[1];
    tasks::each_chunk(result, kernel, |channel, result| {
        let mut sums = vec![0f64; kernel];
        for image in 0..geometry.batch {
            let index = image * geometry.c_in + channel;
            let x = widen(isa, part(x, geometry.input, index));
            let gradient = widen(isa, part(gradient, geometry.output, index));
            dispatch(
                isa,
                #[inline(always)]
                |_| weight_plane(geometry, &x, &gradient, &mut sums),
            );
        }
        for (result, sum) in result.iter_mut().zip(&sums) {
            *result = convert(E::narrow(*sum as f32));
        }
    });
}

#[inline(always)]
fn forward_plane(geometry: &Geometry, x: &[f32], weight: &[f32], sums: &mut [f32]) {
    let step = geometry.options.stride[1];
    each_tap_row(
        geometry,
        #[inline(always)]
        |tap, input, output, length| {
            let (weight, x) = (weight[tap], &x[input..]);
            let sums = &mut sums[output..output + length];
            if step == 1 {
                for (sum, x) in sums.iter_mut().zip(&x[..length]) {
                    *sum += weight * x;
                }
            } else {
                for (sum, x) in sums.iter_mut().zip(x.iter().step_by(step)) {
                    *sum += weight * x;
                }
            }
        },
    );
}

#[inline(always)]
fn input_plane(geometry: &Geometry, weight: &[f32], gradient: &[f32], sums: &mut [f32]) {
    let step = geometry.options.stride[1];
    each_tap_row(
        geometry,
        #[inline(always)]
        |tap, input, output, length| {
            let (weight, gradient) = (weight[tap], &gradient[output..output + length]);
            let sums = &mut sums[input..];
            if step == 1 {
                for (sum, gradient) in sums[..length].iter_mut().zip(gradient) {
                    *sum += weight * gradient;
                }
            } else {
                for (sum, gradient) in sums.iter_mut().step_by(step).zip(gradient) {
                    *sum += weight * gradient;
                }
            }
        },
    );
}

#[inline(always)]
fn weight_plane(geometry: &Geometry, x: &[f32], gradient: &[f32], sums: &mut [f64]) {
    let step = geometry.options.stride[1];
    each_tap_row(
        geometry,
        #[inline(always)]
        |tap, input, output, length| {
            let (x, gradient) = (&x[input..], &gradient[output..output + length]);
            // Eight sums side by side, so that the compiler may vectorise.
            let mut lanes = [0f32; 8];
            let mut rest = 0f32;
            if step == 1 {
                let (xs, gradients) = (x[..length].chunks_exact(8), gradient.chunks_exact(8));
                for (x, gradient) in xs.remainder().iter().zip(gradients.remainder()) {
                    rest += x * gradient;
                }
                for (x, gradient) in xs.zip(gradients) {
                    for (lane, (x, gradient)) in lanes.iter_mut().zip(x.iter().zip(gradient)) {
                        *lane += x * gradient;
                    }
                }
            } else {
                for (x, gradient) in x.iter().step_by(step).zip(gradient) {
                    rest += x * gradient;
                }
            }
            sums[tap] += f64::from(lanes.iter().sum::<f32>() + rest);
        },
    );
}

/// Calls `body(tap, first input pixel, first output pixel, pixels)` for every tap of every row whose
/// input exists. The closure is to be `#[inline(always)]`, as for [`dispatch`].
#[inline(always)]
fn each_tap_row(geometry: &Geometry, mut body: impl FnMut(usize, usize, usize, usize)) {
    let [kernel_height, kernel_width] = geometry.kernel;
    let [step_y, step_x] = geometry.options.stride;
    for row in 0..geometry.output[0] {
        for tap_y in 0..kernel_height {
            let y = (row * step_y) as isize + geometry.offset(0, tap_y);
            if y < 0 || y >= geometry.input[0] as isize {
                continue;
            }
            for tap_x in 0..kernel_width {
                let offset = geometry.offset(1, tap_x);
                let columns = inside(geometry.output[1], step_x, offset, geometry.input[1]);
                if columns.is_empty() {
                    continue;
                }
                let x = (columns.start * step_x) as isize + offset;
                body(
                    tap_y * kernel_width + tap_x,
                    y as usize * geometry.input[1] + x as usize,
                    row * geometry.output[1] + columns.start,
                    columns.len(),
                );
            }
        }
    }
}

fn kernel<E: Element, W: Element>(
    geometry: &Geometry,
    weight: &[W],
    scale: Option<f32>,
    channel: usize,
) -> Vec<f32> {
    let kernel = part(weight, geometry.kernel, channel).iter();
    kernel
        .map(|&value| rounded::<E, W>(value, scale).widen())
        .collect()
}

fn part<E>(values: &[E], size: [usize; 2], index: usize) -> &[E] {
    let length = size[0] * size[1];
    &values[index * length..][..length]
}

fn widen<E: Element>(isa: Isa, source: &[E]) -> Vec<f32> {
    let mut target = vec![0f32; source.len()];
    dispatch(
        isa,
        #[inline(always)]
        |isa| E::widen_run(isa, source, &mut target),
    );
    target
}

fn narrow<E: Element>(isa: Isa, source: &[f32], target: &mut [E]) {
    dispatch(
        isa,
        #[inline(always)]
        |isa| E::narrow_run(isa, source, target),
    );
}
