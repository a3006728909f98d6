//! The passes of [`super::cpu`] one by one, for normalisations whose statistics and sums are of more maps than
//! their own.

use rayon::prelude::*;

use super::cpu::{self, BLOCK, Channels, Mask, Sizes, Statistics, Target};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, dispatch};

/// The statistics of each channel.
pub fn statistics<E: Element>(sizes: Sizes, x: &[E], epsilon: f64) -> Vec<Statistics> {
    let isa = Isa::best();
    let channels = (0..sizes.channels).into_par_iter();
    let statistics = channels
        .with_min_len(sizes.channels_per_task())
        .map(|channel| {
            dispatch(
                isa,
                #[inline(always)]
                |isa| {
                    let planes = sizes.planes(x, channel);
                    cpu::statistics::<E>(isa, planes, sizes.per_channel(), epsilon)
                },
            )
        });
    statistics.collect()
}

/// The output by given statistics.
pub fn apply<E: Element>(
    sizes: Sizes,
    x: &[E],
    skip: Option<&[E]>,
    channels: Channels<'_>,
    relu: bool,
) -> Vec<E> {
    let mut output = Vec::with_capacity(x.len());
    let room = &mut output.spare_capacity_mut()[..x.len()];
    let isa = Isa::best();
    sizes
        .planes_mut(room)
        .into_par_iter()
        .enumerate()
        .with_min_len(sizes.channels_per_task())
        .for_each(|(channel, output)| {
            dispatch(
                isa,
                #[inline(always)]
                |isa| {
                    let (mean, scale, shift) = channels.affine(channel);
                    let mut skips = skip.map(|skip| sizes.planes(skip, channel));
                    for (x, output) in sizes.planes(x, channel).zip(output) {
                        let skip = skips.as_mut().and_then(Iterator::next);
                        cpu::apply(isa, x, skip, output, [mean, scale, shift], relu);
                    }
                },
            )
        });
    // SAFETY: every plane of every channel was written.
    unsafe { output.set_len(x.len()) };
    output
}

/// What lets a gradient through a ReLU.
#[inline(always)]
fn masked<E: Element>(
    isa: Isa,
    mask: Mask<'_, E>,
    (x, [mean, scale, shift]): (&[f32], [f32; 3]),
    start: usize,
    gradient: &[E],
    into: &mut [f32],
) {
    let (g_buffer, y_buffer) = (&mut [0f32; BLOCK], &mut [0f32; BLOCK]);
    let g = E::widened(isa, gradient, g_buffer);
    match mask {
        Mask::None => into.copy_from_slice(g),
        Mask::FromInput => {
            for ((into, &g), &x) in into.iter_mut().zip(g).zip(x) {
                let y = (x - mean) * scale + shift;
                *into = if y <= 0.0 { 0.0 } else { g };
            }
        }
        Mask::FromOutput(output) => {
            let output = &output[start..start + g.len()];
            let y = E::widened(isa, output, y_buffer);
            for ((into, &g), &y) in into.iter_mut().zip(g).zip(y) {
                *into = if y <= 0.0 { 0.0 } else { g };
            }
        }
    }
}

/// The gradients of gamma and beta of this map alone.
pub fn sums<E: Element>(
    sizes: Sizes,
    x: &[E],
    channels: Channels<'_>,
    mask: Mask<'_, E>,
    gradient: &[E],
) -> (Vec<f32>, Vec<f32>) {
    let isa = Isa::best();
    let all = (0..sizes.channels).into_par_iter();
    let sums = all.with_min_len(sizes.channels_per_task()).map(|channel| {
        dispatch(
            isa,
            #[inline(always)]
            |isa| {
                let statistics = channels.statistics[channel];
                let (mean, scale, shift) = channels.affine(channel);
                let (x_buffer, buffer) = (&mut [0f32; BLOCK], &mut [0f32; BLOCK]);
                let (mut sum, mut product) = (0f64, 0f64);
                let planes = sizes
                    .planes(x, channel)
                    .zip(sizes.planes(gradient, channel));
                for (image, (x, gradient)) in planes.enumerate() {
                    let plane = (image * sizes.channels + channel) * sizes.pixels;
                    for start in (0..x.len()).step_by(BLOCK) {
                        let range = start..(start + BLOCK).min(x.len());
                        let x = E::widened(isa, &x[range.clone()], x_buffer);
                        let g = &mut buffer[..x.len()];
                        let place = (x, [mean, scale, shift]);
                        masked(isa, mask, place, plane + start, &gradient[range], g);
                        let parts = cpu::sums(x, g, |x, g| [g, g * (x - mean)]);
                        sum += parts[0];
                        product += parts[1];
                    }
                }
                (statistics.normalised(product, sum) as f32, sum as f32)
            },
        )
    });
    sums.unzip()
}

/// The gradient of `x` in place of the output's `gradient`; where that is wanted `apart`, it is returned, and
/// `gradient` becomes that of the skip connection. `totals` are the gradients of gamma and beta over all
/// `count` values of a channel.
pub fn gradient<E: Element>(
    sizes: Sizes,
    x: &[E],
    channels: Channels<'_>,
    mask: Mask<'_, E>,
    (totals, count): ([&[f32]; 2], f64),
    gradient: &mut [E],
    apart: bool,
) -> Option<Vec<E>> {
    let length = gradient.len();
    let mut result = apart.then(|| Vec::with_capacity(length));
    let targets = cpu::targets(sizes, &mut result, length);
    let isa = Isa::best();
    sizes
        .planes_mut(gradient)
        .into_par_iter()
        .zip(targets)
        .enumerate()
        .with_min_len(sizes.channels_per_task())
        .for_each(|(channel, planes)| {
            let totals = totals.map(|totals| f64::from(totals[channel]));
            dispatch(
                isa,
                #[inline(always)]
                |isa| {
                    let all = (totals, count);
                    gradient_of_channel(isa, sizes, x, channels, mask, all, channel, planes)
                },
            );
        });
    if let Some(result) = &mut result {
        // SAFETY: every plane of every channel was written.
        unsafe { result.set_len(length) };
    }
    result
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one loop over all of them")]
fn gradient_of_channel<E: Element>(
    isa: Isa,
    sizes: Sizes,
    x: &[E],
    channels: Channels<'_>,
    mask: Mask<'_, E>,
    (totals, count): ([f64; 2], f64),
    channel: usize,
    (gradient, mut target): (Vec<&mut [E]>, Target<'_, E>),
) {
    let statistics = channels.statistics[channel];
    let (mean, scale, shift) = channels.affine(channel);
    let [slope, constant] = statistics.slope(scale, totals, count);
    let (x_buffer, buffer) = (&mut [0f32; BLOCK], &mut [0f32; BLOCK]);
    let result = &mut [0f32; BLOCK];
    for (image, (x, gradient)) in sizes.planes(x, channel).zip(gradient).enumerate() {
        let plane = (image * sizes.channels + channel) * sizes.pixels;
        for start in (0..x.len()).step_by(BLOCK) {
            let range = start..(start + BLOCK).min(x.len());
            let x = E::widened(isa, &x[range.clone()], x_buffer);
            let g = &mut buffer[..x.len()];
            let place = (x, [mean, scale, shift]);
            masked(isa, mask, place, plane + start, &gradient[range.clone()], g);
            let dx = &mut result[..x.len()];
            for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(&*g) {
                *dx = scale * g + (slope * (x - mean) + constant);
            }
            match &mut target {
                Some(target) => {
                    E::narrow_run(isa, g, &mut gradient[range.clone()]);
                    E::write_run(isa, dx, &mut target[image][range]);
                }
                None => E::narrow_run(isa, dx, &mut gradient[range]),
            }
        }
    }
}
