//! Convolution on the CPU: products of small blocks, read straight from `[n, c, h, w]` maps.
//!
//! No column buffer is made. Forward and input gradient gather a strip of pixels, tap by tap, into a
//! buffer that fits a core's cache ([`taps`]); taps that lie in the padding of a whole strip are
//! skipped. The weight gradient takes pixels as the inner dimension ([`weights`]). Depthwise
//! convolutions move along rows ([`depthwise`]). 3x3 kernels take fewer products where that pays
//! ([`winograd`]). All sums are f32, whatever the maps hold. The code is
//! generic over how blocks are multiplied ([`micro::Core`]) and compiled for each instruction set
//! ([`isa`]); processors with tiles multiply bf16 without widening it.

mod depthwise;
mod element;
mod isa;
mod micro;
mod taps;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod weights;
mod winograd;

pub use element::Element;

use rayon::prelude::*;

use element::convert;
use isa::Isa;

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
        let [c_out, _, kernel_height, kernel_width] = weight;
        Self {
            batch,
            c_in,
            c_out,
            input: [height, width],
            output: options.output_size(x, weight),
            kernel: [kernel_height, kernel_width],
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

    /// Values of the input, the weight and the output.
    fn sizes(&self) -> [usize; 3] {
        [self.input_shape(), self.weight_shape(), self.output_shape()]
            .map(|shape| shape.iter().product())
    }

    fn check<E, W>(&self, x: &[E], weight: &[W], output: &[E]) {
        assert_eq!(
            [x.len(), weight.len(), output.len()],
            self.sizes(),
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
    /// output, and rounds them into `target`, which is as long. `values` may change. The processor
    /// has `isa`.
    #[inline(always)]
    fn store(&self, isa: Isa, channel: usize, at: usize, values: &mut [f32], target: &mut [E]) {
        assert_eq!(values.len(), target.len());
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            // SAFETY: the caller promises the instructions.
            unsafe { self.store_avx512(channel, at, values, target) };
            return;
        }
        self.apply(isa, channel, at, values);
        E::narrow_run(isa, values, target);
    }

    /// As [`Self::store`], in one pass.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_avx512(&self, channel: usize, at: usize, values: &[f32], target: &mut [E]) {
        use std::arch::x86_64::{
            _CMP_LT_OQ, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_mask_mov_ps,
            _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        };
        const LANES: usize = 16;
        let skip = self.skip.map(|skip| &skip[at..at + values.len()]);
        for first in (0..values.len()).step_by(LANES) {
            let mask = u16::MAX >> (LANES - LANES.min(values.len() - first));
            // SAFETY: the mask keeps to the slices, which are as long as each other; the caller
            // promises the instructions.
            unsafe {
                let mut sums = _mm512_maskz_loadu_ps(mask, values.as_ptr().add(first));
                if let Some(bias) = self.bias {
                    sums = _mm512_add_ps(sums, _mm512_set1_ps(bias[channel]));
                }
                if let Some(skip) = skip {
                    sums = _mm512_add_ps(sums, E::load_lanes(skip.as_ptr().add(first), mask));
                }
                if self.relu {
                    let zero = _mm512_setzero_ps();
                    let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sums, zero);
                    sums = _mm512_mask_mov_ps(sums, negative, zero);
                }
                E::store_lanes(sums, mask, target.as_mut_ptr().add(first));
            }
        }
    }

    /// As [`Self::store`], but does not round.
    #[inline(always)]
    fn apply(&self, isa: Isa, channel: usize, at: usize, values: &mut [f32]) {
        if let Some(bias) = self.bias {
            let bias = bias[channel];
            values.iter_mut().for_each(|value| *value += bias);
        }
        if let Some(skip) = self.skip {
            const LENGTH: usize = 16;
            let skip = &skip[at..at + values.len()];
            for (values, skip) in values.chunks_mut(LENGTH).zip(skip.chunks(LENGTH)) {
                let mut wide = [0f32; LENGTH];
                E::widen_run(isa, skip, &mut wide[..skip.len()]);
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

/// A weight, `[c_out, c_in / groups, kh, kw]`, and what each output channel's is multiplied by. What
/// results is rounded to what the maps hold, as a cast would do.
#[derive(Clone, Copy)]
pub struct Weight<'a, W> {
    /// Contiguous.
    pub values: &'a [W],
    /// One value per output channel.
    pub scale: Option<&'a [f32]>,
}

impl<'a, W> Weight<'a, W> {
    /// As it is.
    pub fn plain(values: &'a [W]) -> Self {
        Self {
            values,
            scale: None,
        }
    }

    fn group(self, group: usize, groups: usize) -> Self {
        fn part<T>(values: &[T], group: usize, groups: usize) -> &[T] {
            let length = values.len() / groups;
            &values[group * length..][..length]
        }
        Self {
            values: part(self.values, group, groups),
            scale: self.scale.map(|scale| part(scale, group, groups)),
        }
    }
}

/// A value of a weight as maps of `E` hold it.
#[inline(always)]
fn rounded<E: Element, W: Element>(value: W, scale: Option<f32>) -> E {
    match scale {
        Some(scale) => E::narrow(value.widen() * scale),
        None => convert(value),
    }
}

/// Runs `$body` with `$C` bound to the best way to multiply `$E`.
macro_rules! with_core {
    ($isa:expr, $E:ident, $C:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if std::any::TypeId::of::<$E>() == std::any::TypeId::of::<half::bf16>() => {
                type $C = micro::Amx;
                $body
            }
            _ => with_wide_core!($isa, $C => $body),
        }
    };
}

/// As [`with_wide_core`], for weight gradients.
macro_rules! with_weight_core {
    ($isa:expr, $C:ident => $body:expr) => {
        match $isa {
            // 32 columns divide the usual numbers of channels.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => {
                type $C = micro::Avx512<12, 2>;
                $body
            }
            isa => with_wide_core!(isa, $C => $body),
        }
    };
}

/// Runs `$body` with `$C` bound to the best way to multiply f32.
macro_rules! with_wide_core {
    ($isa:expr, $C:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => {
                type $C = micro::Avx512<8, 3>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                type $C = micro::Avx2;
                $body
            }
            _ => {
                type $C = micro::Portable;
                $body
            }
        }
    };
}

/// `act(x * weight + bias + skip)`, all contiguous; the result is `[n, c_out, h_out, w_out]`.
pub fn forward<E: Element, W: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    exactness: Exactness,
) -> Vec<E> {
    forward_with(Isa::best(), geometry, x, weight, tail, exactness)
}

fn forward_with<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    exactness: Exactness,
) -> Vec<E> {
    let geometry = geometry.flattened();
    let [x_size, weight_size, length] = geometry.sizes();
    assert_eq!(
        [x.len(), weight.values.len()],
        [x_size, weight_size],
        "operands of a convolution differ from {geometry:?}"
    );
    let per_channel = [tail.bias, weight.scale];
    assert!(
        per_channel
            .iter()
            .flatten()
            .all(|values| values.len() == geometry.c_out),
        "a bias and a scale have one value per output channel"
    );
    assert!(
        tail.skip.is_none_or(|skip| skip.len() == length),
        "a skip connection has the output's shape"
    );
    if geometry.is_depthwise() {
        let mut output = vec![E::default(); length];
        depthwise::forward(isa, &geometry, x, weight, tail, &mut output);
        return output;
    }
    // Not cleared first: that would be a pass over the memory.
    let mut output = Vec::with_capacity(length);
    let target = Shared(output.as_mut_ptr());
    let kernels = winograd::Kernels::forward(&geometry, weight);
    // SAFETY: the target has room for the output.
    unsafe {
        match filter::<E>(isa, &geometry, exactness) {
            Filter::Direct => {
                with_core!(isa, E, C => taps::forward::<C, E, W>(&geometry, x, weight, tail, target))
            }
            Filter::Tiles2 => {
                with_wide_core!(isa, C => winograd::forward::<C, E, W, 2, 4>(&geometry, x, kernels, tail, target))
            }
            Filter::Tiles4 => {
                with_wide_core!(isa, C => winograd::forward::<C, E, W, 4, 6>(&geometry, x, kernels, tail, target))
            }
        }
    }
    // SAFETY: both ways write every output.
    unsafe { output.set_len(length) };
    output
}

/// How the products of a convolution of maps are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// One for each tap.
    Direct,
    /// F(2x2, 3x3).
    Tiles2,
    /// F(4x4, 3x3).
    Tiles4,
}

fn filter<E: Element>(isa: Isa, geometry: &Geometry, exactness: Exactness) -> Filter {
    if multiplies_tiles::<E>(isa) {
        Filter::Direct
    } else if exactness == Exactness::Output && winograd::pays::<4>(geometry) {
        Filter::Tiles4
    } else if winograd::pays::<2>(geometry) {
        Filter::Tiles2
    } else {
        Filter::Direct
    }
}

/// Tiles of bf16 are faster than any way to save products of f32.
fn multiplies_tiles<E: Element>(isa: Isa) -> bool {
    isa == Isa::Amx && std::any::TypeId::of::<E>() == std::any::TypeId::of::<half::bf16>()
}

/// The gradient of `x`, given that of the output.
pub fn input_gradient<E: Element, W: Element>(
    geometry: &Geometry,
    weight: &[W],
    gradient: &[E],
) -> Vec<E> {
    input_gradient_with(Isa::best(), geometry, weight, gradient)
}

fn input_gradient_with<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    weight: &[W],
    gradient: &[E],
) -> Vec<E> {
    let geometry = geometry.flattened();
    let [length, weight_size, gradient_size] = geometry.sizes();
    assert_eq!(
        [weight.len(), gradient.len()],
        [weight_size, gradient_size],
        "operands of a convolution differ from {geometry:?}"
    );
    if geometry.is_depthwise() {
        let mut result = vec![E::default(); length];
        depthwise::input_gradient(isa, &geometry, weight, gradient, &mut result);
        return result;
    }
    let mut result = Vec::with_capacity(length);
    // With a stride some pixels may have been seen by no tap.
    if geometry.options.stride != [1, 1] {
        result.resize(length, E::default());
    }
    let target = Shared(result.as_mut_ptr());
    // SAFETY: the target has room for the result; without a stride all of it is written.
    unsafe {
        match winograd::Kernels::input_gradient(&geometry, weight) {
            Some((turned, kernels))
                if filter::<E>(isa, &turned, Exactness::Summed) == Filter::Tiles2 =>
            {
                let tail = Tail::none();
                with_wide_core!(isa, C => winograd::forward::<C, E, W, 2, 4>(&turned, gradient, kernels, tail, target));
            }
            _ => {
                with_core!(isa, E, C => taps::input_gradient::<C, E, W>(&geometry, weight, gradient, target));
            }
        }
        result.set_len(length);
    }
    result
}

/// The gradient of `weight`, given that of the output: rounded to what the maps hold, as that of a cast
/// weight would be.
pub fn weight_gradient<E: Element, W: Element>(
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
) -> Vec<W> {
    weight_gradient_with(Isa::best(), geometry, x, gradient)
}

fn weight_gradient_with<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
) -> Vec<W> {
    let geometry = geometry.flattened();
    let mut result = vec![W::default(); geometry.weight_shape().iter().product()];
    geometry.check(x, &result, gradient);
    if geometry.is_depthwise() {
        depthwise::weight_gradient(isa, &geometry, x, gradient, &mut result);
    } else {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if multiplies_tiles::<E>(isa) => {
                // SAFETY: the processor has tiles.
                unsafe { tiles::weight_gradient(&geometry, x, gradient, &mut result) }
            }
            _ if filter::<E>(isa, &geometry, Exactness::Summed) == Filter::Tiles2 => {
                with_weight_core!(isa, C => winograd::weight_gradient::<C, E, W>(&geometry, x, gradient, &mut result))
            }
            _ => {
                with_weight_core!(isa, C => weights::weight_gradient::<C, E, W>(&geometry, x, gradient, &mut result))
            }
        }
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

    fn from(self, offset: usize) -> Self {
        Self(self.at(offset))
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

/// Asks for the cache lines of `count` values, some of which may not exist.
#[inline(always)]
fn prefetch<E>(values: &[E], first: usize, count: usize) {
    const TO_READ: i32 = 3;
    fetch::<TO_READ, E>(values.as_ptr().wrapping_add(first), count);
}

/// As [`prefetch`], for values that will be written.
#[inline(always)]
fn prefetch_to_write<E>(first: *const E, count: usize) {
    const TO_WRITE: i32 = 7;
    fetch::<TO_WRITE, E>(first, count);
}

/// With x86's `_MM_HINT_T0` or `_MM_HINT_ET0`.
#[inline(always)]
fn fetch<const HINT: i32, E>(first: *const E, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..count).step_by((64 / size_of::<E>()).max(1)) {
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(first.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, count);
}

/// A cache line.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([[u8; 32]; 2]);

impl Line {
    /// Lines that hold `length` values.
    fn count<T>(length: usize) -> usize {
        (length * size_of::<T>()).div_ceil(size_of::<Self>())
    }
}

/// Values that start with a cache line: a vector that spans two lines takes two loads.
struct Aligned<T> {
    lines: Vec<Line>,
    length: usize,
    values: std::marker::PhantomData<T>,
}

impl<T: bytemuck::Pod + Send + Sync> Aligned<T> {
    /// Cleared by all threads.
    fn zeros(length: usize) -> Self {
        const TASK: usize = 1 << 16;
        let clear = |target: Shared<T>| {
            (0..length).into_par_iter().step_by(TASK).for_each(|first| {
                // SAFETY: there is room for the values; zero is all bits clear.
                unsafe { target.at(first).write_bytes(0, TASK.min(length - first)) };
            });
        };
        // SAFETY: all are written.
        unsafe { Self::written(length, clear) }
    }

    /// What `fill` writes: clearing a large buffer first would be a pass over it by one thread.
    ///
    /// # Safety
    /// `fill` writes all `length` values.
    unsafe fn written(length: usize, fill: impl FnOnce(Shared<T>)) -> Self {
        let count = Line::count::<T>(length);
        let mut lines = Vec::<Line>::with_capacity(count);
        if let Some(last) = lines.spare_capacity_mut()[..count].last_mut() {
            last.write(Line::default());
        }
        fill(Shared(lines.as_mut_ptr().cast()));
        // SAFETY: the values were written, and what follows them in the last line was cleared.
        unsafe { lines.set_len(count) };
        Self {
            lines,
            length,
            values: std::marker::PhantomData,
        }
    }
}

impl<T: bytemuck::Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl<T: bytemuck::Pod> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

/// Runs `body` with two buffers of this thread, of these lengths and of unspecified content; both
/// start with a cache line.
fn with_scratch<T: bytemuck::Pod, R>(
    lengths: [usize; 2],
    body: impl FnOnce(&mut [T], &mut [f32]) -> R,
) -> R {
    use std::cell::RefCell;
    thread_local!(static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|scratch| {
        let counts = [Line::count::<T>(lengths[0]), Line::count::<f32>(lengths[1])];
        let wanted = counts[0] + counts[1];
        if scratch.len() < wanted {
            // What it held is not wanted, and would be copied.
            *scratch = Vec::new();
            *scratch = vec![Line::default(); wanted];
        }
        let (values, sums) = scratch[..wanted].split_at_mut(counts[0]);
        let values = &mut bytemuck::cast_slice_mut(values)[..lengths[0]];
        body(values, &mut bytemuck::cast_slice_mut(sums)[..lengths[1]])
    })
}

#[cfg(test)]
mod tests;
