//! Convolution on the CPU: products of small blocks, read straight from `[n, c, h, w]` maps.
//!
//! No column buffer is made. Forward and input gradient gather a strip of pixels, tap by tap, into a
//! buffer that fits a core's cache ([`taps`]); taps that lie in the padding of a whole strip are
//! skipped. The weight gradient takes pixels as the inner dimension ([`weights`]). Depthwise
//! convolutions move along rows ([`depthwise`]). Where an error of 1e-4 will do, 3x3 kernels take a
//! quarter of the products ([`winograd`]). All sums are f32, whatever the maps hold.

mod depthwise;
mod element;
mod micro;
mod taps;
mod weights;
mod winograd;

pub use element::Element;

use super::Conv2dOptions;

/// The sizes of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub batch: usize,
    /// Channels of the input, all groups.
    pub c_in: usize,
    /// Channels of the output, all groups.
    pub c_out: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// How the window moves.
    pub options: Conv2dOptions,
}

impl Geometry {
    /// Of `x` `[n, c_in, h, w]` and `weight` `[c_out, c_in / groups, kh, kw]`.
    ///
    /// # Panics
    /// If these do not fit each other, or the window is larger than the padded input.
    pub fn new(x: [usize; 4], weight: [usize; 4], options: Conv2dOptions) -> Self {
        let [batch, c_in, height, width] = x;
        let [c_out, per_group, kernel_height, kernel_width] = weight;
        let groups = options.groups;
        assert!(
            groups > 0 && c_in == per_group * groups && c_out.is_multiple_of(groups),
            "a weight {weight:?} in {groups} groups does not fit a map {x:?}"
        );
        let (input, kernel) = ([height, width], [kernel_height, kernel_width]);
        let output = std::array::from_fn(|axis| {
            let window = options.dilation[axis] * (kernel[axis] - 1) + 1;
            let padded = input[axis] + 2 * options.padding[axis];
            assert!(
                kernel[axis] > 0 && options.stride[axis] > 0 && padded >= window,
                "a window of {window} pixels does not fit {padded} padded ones: map {x:?}, weight {weight:?}, {options:?}"
            );
            (padded - window) / options.stride[axis] + 1
        });
        Self {
            batch,
            c_in,
            c_out,
            input,
            output,
            kernel,
            options,
        }
    }

    /// The output's shape.
    pub fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.c_out, self.output[0], self.output[1]]
    }

    fn input_shape(&self) -> [usize; 4] {
        [self.batch, self.c_in, self.input[0], self.input[1]]
    }

    fn weight_shape(&self) -> [usize; 4] {
        let per_group = self.c_in / self.options.groups;
        [self.c_out, per_group, self.kernel[0], self.kernel[1]]
    }

    fn is_depthwise(&self) -> bool {
        self.options.groups == self.c_in && self.c_in == self.c_out && self.c_in > 1
    }

    /// The distance in pixels of each tap from the window's first pixel, less the padding.
    fn offset(&self, axis: usize, tap: usize) -> isize {
        (tap * self.options.dilation[axis]) as isize - self.options.padding[axis] as isize
    }

    /// A 1x1 convolution without stride or padding sees one long row: strips need not end with rows.
    fn flattened(mut self) -> Self {
        let plain = self.kernel == [1, 1]
            && self.options.stride == [1, 1]
            && self.options.padding == [0, 0];
        if plain {
            self.input = [1, self.input[0] * self.input[1]];
            self.output = self.input;
        }
        self
    }

    fn check<E>(&self, x: &[E], weight: &[E], output: &[E]) {
        let sizes = [self.input_shape(), self.weight_shape(), self.output_shape()];
        let sizes = sizes.map(|shape| shape.iter().product::<usize>());
        assert_eq!(
            [x.len(), weight.len(), output.len()],
            sizes,
            "operands of a convolution differ from {self:?}"
        );
    }
}

/// How exact a forward pass has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// f32 sums, within 1e-5 (2-norm): gradients follow.
    Summed,
    /// Within 1e-4: nothing but the output is wanted.
    Output,
}

/// What follows the sums before they are rounded: `act(sums + bias + skip)`.
#[derive(Clone, Copy)]
pub struct Tail<'a, E> {
    /// One value per output channel.
    pub bias: Option<&'a [f32]>,
    /// A map of the output's shape.
    pub skip: Option<&'a [E]>,
    /// Whether negative values become 0. NaN stays.
    pub relu: bool,
}

impl<E> Tail<'_, E> {
    /// Nothing follows.
    pub fn none() -> Self {
        Self {
            bias: None,
            skip: None,
            relu: false,
        }
    }
}

impl<E: Element> Tail<'_, E> {
    /// Finishes neighbouring pixels of one output channel, the first of which is value `at` of the
    /// output. `AVX2` as in [`Element`].
    #[inline(always)]
    fn apply<const AVX2: bool>(&self, channel: usize, at: usize, values: &mut [f32]) {
        if let Some(bias) = self.bias {
            let bias = bias[channel];
            values.iter_mut().for_each(|value| *value += bias);
        }
        if let Some(skip) = self.skip {
            const LENGTH: usize = 16;
            let skip = &skip[at..at + values.len()];
            for (values, skip) in values.chunks_mut(LENGTH).zip(skip.chunks(LENGTH)) {
                let mut wide = [0f32; LENGTH];
                E::widen_run::<AVX2>(skip, &mut wide[..skip.len()]);
                for (value, skip) in values.iter_mut().zip(&wide) {
                    *value += skip;
                }
            }
        }
        if self.relu {
            for value in values {
                *value = if *value < 0.0 { 0.0 } else { *value };
            }
        }
    }
}

/// `act(x * weight + bias + skip)`, all contiguous; the result is `[n, c_out, h_out, w_out]`.
pub fn forward<E: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: &[E],
    tail: Tail<'_, E>,
    exactness: Exactness,
) -> Vec<E> {
    let geometry = geometry.flattened();
    let mut output = vec![E::default(); geometry.output_shape().iter().product()];
    geometry.check(x, weight, &output);
    assert!(
        tail.bias.is_none_or(|bias| bias.len() == geometry.c_out),
        "a bias has one value per output channel"
    );
    assert!(
        tail.skip.is_none_or(|skip| skip.len() == output.len()),
        "a skip connection has the output's shape"
    );
    if geometry.is_depthwise() {
        depthwise::forward(&geometry, x, weight, tail, &mut output);
    } else if exactness == Exactness::Output && winograd::pays(&geometry) {
        winograd::forward(&geometry, x, weight, tail, &mut output);
    } else {
        taps::forward(&geometry, x, weight, tail, &mut output);
    }
    output
}

/// The gradient of `x`, given that of the output.
pub fn input_gradient<E: Element>(geometry: &Geometry, weight: &[E], gradient: &[E]) -> Vec<E> {
    let geometry = geometry.flattened();
    let mut result = vec![E::default(); geometry.input_shape().iter().product()];
    geometry.check(&result, weight, gradient);
    if geometry.is_depthwise() {
        depthwise::input_gradient(&geometry, weight, gradient, &mut result);
    } else {
        taps::input_gradient(&geometry, weight, gradient, &mut result);
    }
    result
}

/// The gradient of `weight`, given that of the output.
pub fn weight_gradient<E: Element>(geometry: &Geometry, x: &[E], gradient: &[E]) -> Vec<E> {
    let geometry = geometry.flattened();
    let mut result = vec![E::default(); geometry.weight_shape().iter().product()];
    geometry.check(x, &result, gradient);
    if geometry.is_depthwise() {
        depthwise::weight_gradient(&geometry, x, gradient, &mut result);
    } else {
        weights::weight_gradient(&geometry, x, gradient, &mut result);
    }
    result
}

/// A pointer into a buffer of which every thread writes a part of its own.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: who makes one keeps the parts apart.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    // A method, so that closures capture the whole and not the pointer inside it.
    fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

/// The positions `p` in `0..count` whose `p * step + offset` lies in `0..size`.
fn inside(count: usize, step: usize, offset: isize, size: usize) -> std::ops::Range<usize> {
    let first = if offset >= 0 {
        0
    } else {
        offset.unsigned_abs().div_ceil(step)
    };
    let room = size as isize - offset;
    let last = if room <= 0 {
        0
    } else {
        (room as usize).div_ceil(step)
    };
    let last = last.min(count);
    first.min(last)..last
}

/// Runs `body` with a buffer of this thread, at least `length` long, of unspecified content.
fn with_scratch<R>(length: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    use std::cell::RefCell;
    thread_local!(static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < length {
            scratch.resize(length, 0.0);
        }
        body(&mut scratch[..length])
    })
}

#[cfg(test)]
mod tests;
