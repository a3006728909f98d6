//! Batch normalisation on the CPU: one channel at a time, which stays in a core's cache for all
//! passes over it. Maps are contiguous `[n, c, h * w]`.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, dispatch};

/// Values that are widened to f32 at a time, on the stack.
pub const BLOCK: usize = 512;
/// Partial f32 sums of a block: each adds 32 values before f64 takes over.
const LANES: usize = 16;
/// Values that a task of the thread pool works on at least.
const TASK: usize = 1 << 14;

/// The sizes of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Pixels of an image.
    pub pixels: usize,
}

impl Sizes {
    /// Values of a channel.
    pub fn per_channel(self) -> usize {
        self.batch * self.pixels
    }

    /// The planes of one channel.
    pub fn planes<E>(self, map: &[E], channel: usize) -> impl Iterator<Item = &[E]> + Clone {
        (0..self.batch).map(move |image| {
            let start = (image * self.channels + channel) * self.pixels;
            &map[start..start + self.pixels]
        })
    }

    /// The planes of each channel.
    pub fn planes_mut<E>(self, map: &mut [E]) -> Vec<Vec<&mut [E]>> {
        let mut channels: Vec<_> = (0..self.channels)
            .map(|_| Vec::with_capacity(self.batch))
            .collect();
        for (plane, values) in map.chunks_exact_mut(self.pixels).enumerate() {
            channels[plane % self.channels].push(values);
        }
        channels
    }

    /// Channels that a task of the thread pool works on at least.
    pub fn channels_per_task(self) -> usize {
        (TASK / self.per_channel()).max(1)
    }
}

/// What normalises one channel. Kept for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Mean.
    pub mean: f32,
    /// Biased variance.
    pub variance: f32,
    /// `1 / sqrt(variance + epsilon)`.
    pub inverse_deviation: f32,
    /// The true mean less `mean`: where the mean is a thousand deviations, its rounding to f32
    /// would be seen in the output.
    pub remainder: f32,
}

impl Statistics {
    /// Scale and shift of `scale * (x - mean) + shift`.
    fn affine(&self, gamma: f32, beta: f32) -> (f32, f32) {
        let scale = gamma * self.inverse_deviation;
        (scale, beta - self.remainder * scale)
    }

    /// The sum of the gradient times the normalised input, from that of the gradient times `x - mean`.
    pub fn normalised(&self, product: f64, sum: f64) -> f64 {
        (product - f64::from(self.remainder) * sum) * f64::from(self.inverse_deviation)
    }

    /// Slope and constant of the gradient of `x`, from the sums of the gradient times the normalised input and
    /// of the gradient over `count` values:
    /// `dx = scale * (g - sum / count - normalised * product / count)`, which is
    /// `scale * g + slope * (x - mean) + constant`.
    pub fn slope(&self, scale: f32, [product, sum]: [f64; 2], count: f64) -> [f32; 2] {
        let scale = f64::from(scale);
        let slope = -scale * f64::from(self.inverse_deviation) * product / count;
        let constant = -scale * sum / count - slope * f64::from(self.remainder);
        [slope as f32, constant as f32]
    }
}

/// Scale, shift and statistics of all channels.
#[derive(Clone, Copy)]
pub struct Channels<'a> {
    /// Scale.
    pub gamma: &'a [f32],
    /// Shift.
    pub beta: &'a [f32],
    /// Of the batch.
    pub statistics: &'a [Statistics],
}

impl Channels<'_> {
    /// Mean, scale and shift of `scale * (x - mean) + shift`.
    pub fn affine(&self, channel: usize) -> (f32, f32, f32) {
        let statistics = self.statistics[channel];
        let (scale, shift) = statistics.affine(self.gamma[channel], self.beta[channel]);
        (statistics.mean, scale, shift)
    }
}

/// The sums of `term` over the pairs of `a` and `b`, which are as long as each other and no longer
/// than a block.
#[inline(always)]
pub fn sums<const K: usize>(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> [f32; K]) -> [f64; K] {
    let mut lanes = [[0f32; LANES]; K];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            let terms = term(a[lane], b[lane]);
            for k in 0..K {
                lanes[k][lane] += terms[k];
            }
        }
    }
    let mut totals = lanes.map(|lanes| lanes.iter().map(|&sum| f64::from(sum)).sum::<f64>());
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        for (total, term) in totals.iter_mut().zip(term(a, b)) {
            *total += f64::from(term);
        }
    }
    totals
}

/// Two passes, the second about the first one's mean and corrected for its error.
#[inline(always)]
pub fn statistics<'a, E: Element>(
    isa: Isa,
    planes: impl Iterator<Item = &'a [E]> + Clone,
    count: usize,
    epsilon: f64,
) -> Statistics {
    let buffer = &mut [0f32; BLOCK];
    let count = count as f64;
    let mut sum = 0f64;
    for block in planes.clone().flat_map(|plane| plane.chunks(BLOCK)) {
        let x = E::widened(isa, block, buffer);
        let [part] = sums(x, x, |x, _| [x]);
        sum += part;
    }
    let centre = (sum / count) as f32;
    let (mut first, mut second) = (0f64, 0f64);
    for block in planes.flat_map(|plane| plane.chunks(BLOCK)) {
        let x = E::widened(isa, block, buffer);
        let [part, square] = sums(x, x, |x, _| [x - centre, (x - centre) * (x - centre)]);
        first += part;
        second += square;
    }
    let error = first / count;
    // Written so that NaN stays NaN.
    let variance = second / count - error * error;
    let variance = if variance < 0.0 { 0.0 } else { variance };
    let exact = f64::from(centre) + error;
    let mean = exact as f32;
    Statistics {
        mean,
        variance: variance as f32,
        inverse_deviation: (variance + epsilon).sqrt().recip() as f32,
        remainder: (exact - f64::from(mean)) as f32,
    }
}

/// `act(gamma * (x - mean) / sqrt(variance + epsilon) + beta + skip)`, and the statistics of each
/// channel.
pub fn forward<E: Element>(
    sizes: Sizes,
    x: &[E],
    skip: Option<&[E]>,
    [gamma, beta]: [&[f32]; 2],
    epsilon: f64,
    relu: bool,
) -> (Vec<E>, Vec<Statistics>) {
    assert_eq!(x.len(), sizes.channels * sizes.per_channel());
    // Not cleared first: that would be a pass over the memory by one thread.
    let mut output = Vec::with_capacity(x.len());
    let room = &mut output.spare_capacity_mut()[..x.len()];
    let isa = Isa::best();
    let statistics = sizes
        .planes_mut(room)
        .into_par_iter()
        .enumerate()
        .with_min_len(sizes.channels_per_task())
        .map(|(channel, output)| {
            dispatch(
                isa,
                #[inline(always)]
                |isa| {
                    let planes = sizes.planes(x, channel);
                    let statistics =
                        statistics::<E>(isa, planes.clone(), sizes.per_channel(), epsilon);
                    let (scale, shift) = statistics.affine(gamma[channel], beta[channel]);
                    let mut skips = skip.map(|skip| sizes.planes(skip, channel));
                    for (x, output) in planes.zip(output) {
                        let skip = skips.as_mut().and_then(Iterator::next);
                        apply(isa, x, skip, output, [statistics.mean, scale, shift], relu);
                    }
                    statistics
                },
            )
        })
        .collect();
    // SAFETY: every plane of every channel was written.
    unsafe { output.set_len(x.len()) };
    (output, statistics)
}

/// One plane of the output.
#[inline(always)]
pub fn apply<E: Element>(
    isa: Isa,
    x: &[E],
    skip: Option<&[E]>,
    output: &mut [MaybeUninit<E>],
    [mean, scale, shift]: [f32; 3],
    relu: bool,
) {
    let (x_buffer, skip_buffer) = (&mut [0f32; BLOCK], &mut [0f32; BLOCK]);
    let y_buffer = &mut [0f32; BLOCK];
    for (block, output) in output.chunks_mut(BLOCK).enumerate() {
        let range = block * BLOCK..block * BLOCK + output.len();
        let x = E::widened(isa, &x[range.clone()], x_buffer);
        let y = &mut y_buffer[..output.len()];
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - mean) * scale + shift;
        }
        if let Some(skip) = skip {
            for (y, &skip) in y.iter_mut().zip(E::widened(isa, &skip[range], skip_buffer)) {
                *y += skip;
            }
        }
        if relu {
            // Not `max`, which turns NaN into 0 and hides an overflow from the gradient scaler.
            for y in y.iter_mut() {
                *y = if *y < 0.0 { 0.0 } else { *y };
            }
        }
        E::write_run(isa, y, output);
    }
}

/// Where a ReLU let the gradient through.
#[derive(Clone, Copy)]
pub enum Mask<'a, E> {
    /// There is no ReLU.
    None,
    /// The normalised input is computed again: nothing was added to it.
    FromInput,
    /// Of this output.
    FromOutput(&'a [E]),
}

/// Turns the output's `gradient` into that of `x`; where that is wanted `apart`, it is returned, and
/// `gradient` becomes that of the skip connection. Returns the gradients of gamma and beta as well.
pub fn backward<E: Element>(
    sizes: Sizes,
    x: &[E],
    channels: Channels<'_>,
    mask: Mask<'_, E>,
    gradient: &mut [E],
    apart: bool,
) -> (Option<Vec<E>>, Vec<f32>, Vec<f32>) {
    let length = gradient.len();
    let mut result = apart.then(|| Vec::with_capacity(length));
    let targets = targets(sizes, &mut result, length);
    let isa = Isa::best();
    let (dgamma, dbeta) = sizes
        .planes_mut(gradient)
        .into_par_iter()
        .zip(targets)
        .enumerate()
        .with_min_len(sizes.channels_per_task())
        .map(|(channel, planes)| {
            dispatch(
                isa,
                #[inline(always)]
                |isa| backward_channel(isa, sizes, x, channels, mask, channel, planes),
            )
        })
        .unzip();
    if let Some(result) = &mut result {
        // SAFETY: every plane of every channel was written.
        unsafe { result.set_len(length) };
    }
    (result, dgamma, dbeta)
}

/// The planes of a channel that its gradient goes to, if it does not replace the output's.
pub type Target<'a, E> = Option<Vec<&'a mut [MaybeUninit<E>]>>;

/// The planes of each channel in the room of `result`, if there is one.
pub fn targets<E>(sizes: Sizes, result: &mut Option<Vec<E>>, length: usize) -> Vec<Target<'_, E>> {
    match result {
        Some(result) => {
            let room: &mut [MaybeUninit<E>] = Vec::spare_capacity_mut(result);
            let planes = sizes.planes_mut(&mut room[..length]);
            planes.into_iter().map(Some).collect()
        }
        None => (0..sizes.channels).map(|_| None).collect(),
    }
}

#[inline(always)]
fn backward_channel<E: Element>(
    isa: Isa,
    sizes: Sizes,
    x: &[E],
    channels: Channels<'_>,
    mask: Mask<'_, E>,
    channel: usize,
    (mut gradient, mut target): (Vec<&mut [E]>, Target<'_, E>),
) -> (f32, f32) {
    let statistics = channels.statistics[channel];
    let (mean, scale, shift) = channels.affine(channel);
    let (x_buffer, g_buffer) = (&mut [0f32; BLOCK], &mut [0f32; BLOCK]);
    let (y_buffer, result) = (&mut [0f32; BLOCK], &mut [0f32; BLOCK]);

    let (mut sum, mut product) = (0f64, 0f64);
    for (image, (x, gradient)) in sizes.planes(x, channel).zip(&mut gradient).enumerate() {
        for (block, gradient) in gradient.chunks_mut(BLOCK).enumerate() {
            let range = block * BLOCK..block * BLOCK + gradient.len();
            let x = E::widened(isa, &x[range.clone()], x_buffer);
            let parts = match mask {
                Mask::None => sums(x, E::widened(isa, gradient, g_buffer), |x, g| {
                    [g, g * (x - mean)]
                }),
                Mask::FromInput => sums(x, E::widened(isa, gradient, g_buffer), |x, g| {
                    let d = x - mean;
                    let g = if d * scale + shift <= 0.0 { 0.0 } else { g };
                    [g, g * d]
                }),
                Mask::FromOutput(output) => {
                    let start = (image * sizes.channels + channel) * sizes.pixels;
                    let output = &output[start + range.start..start + range.end];
                    let y = E::widened(isa, output, y_buffer);
                    let g = E::widened(isa, gradient, g_buffer);
                    let masked = &mut result[..g.len()];
                    for ((masked, &g), &y) in masked.iter_mut().zip(g).zip(y) {
                        *masked = if y <= 0.0 { 0.0 } else { g };
                    }
                    E::narrow_run(isa, masked, gradient);
                    sums(x, masked, |x, g| [g, g * (x - mean)])
                }
            };
            sum += parts[0];
            product += parts[1];
        }
    }

    let product = statistics.normalised(product, sum);
    let count = sizes.per_channel() as f64;
    let [slope, constant] = statistics.slope(scale, [product, sum], count);

    let recompute = matches!(mask, Mask::FromInput);
    for (image, (x, gradient)) in sizes.planes(x, channel).zip(gradient).enumerate() {
        for start in (0..x.len()).step_by(BLOCK) {
            let range = start..(start + BLOCK).min(x.len());
            let x = E::widened(isa, &x[range.clone()], x_buffer);
            let g = E::widened(isa, &gradient[range.clone()], g_buffer);
            let dx = &mut result[..x.len()];
            if recompute {
                for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
                    let d = x - mean;
                    let g = if d * scale + shift <= 0.0 { 0.0 } else { g };
                    *dx = scale * g + (slope * d + constant);
                }
            } else {
                for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
                    *dx = scale * g + (slope * (x - mean) + constant);
                }
            }
            match &mut target {
                Some(target) => E::write_run(isa, dx, &mut target[image][range]),
                None => E::narrow_run(isa, dx, &mut gradient[range]),
            }
        }
    }
    (product as f32, sum as f32)
}
