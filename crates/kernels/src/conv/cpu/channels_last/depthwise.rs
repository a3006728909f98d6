//! Convolutions of each channel by itself, of maps that lie channels last.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::geometry::Geometry;
use super::super::tail::Tail;
use super::super::weight::{Weight, rounded};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level, Registers, Work, compiled};
use crate::cpu::scratch::Shared;
use crate::cpu::tasks;

/// Channels that are summed side by side.
const LANES: usize = 32;
/// Blocks of so many channels that are summed pixel by pixel: the kernels' values stay in the first-level cache.
const BLOCKS: usize = 8;

/// What is compiled: a set that is known here, as nothing without it can be.
// SAFETY: who calls has found it.
const ISA: Isa = unsafe { Isa::assume(Level::Avx512) };

/// # Safety
/// `output` has room for the output; the processor has `isa`, which is at least AVX-512.
pub unsafe fn forward<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    output: Shared<E>,
) {
    let taps = geometry.kernel[0] * geometry.kernel[1];
    let blocks = geometry.c_in.div_ceil(LANES);
    // [block of channels][tap][channel]
    let mut kernels = vec![0f32; blocks * taps * LANES];
    for (channel, kernel) in weight.values.chunks_exact(taps).enumerate() {
        let scale = weight.scale.map(|scale| scale[channel]);
        let block = &mut kernels[channel / LANES * taps * LANES..];
        for (tap, value) in kernel.iter().enumerate() {
            block[tap * LANES + channel % LANES] = rounded::<E, W>(*value, scale).widen();
        }
    }
    let taps_x = (0..geometry.output[1]).map(|column| geometry.reaching(1, column..column + 1));
    let taps_x: Vec<Range<usize>> = taps_x.collect();
    tasks::each(geometry.batch * geometry.output[0], |row| {
        let row = Row {
            isa,
            geometry,
            x,
            kernels: &kernels,
            taps_x: &taps_x,
            tail,
            output,
            image: row / geometry.output[0],
            y: row % geometry.output[0],
        };
        // SAFETY: the caller's promises; each row of the output is one task's own.
        unsafe { compiled(ISA, row) };
    });
}

/// A row of the output.
struct Row<'a, E> {
    isa: Isa,
    geometry: &'a Geometry,
    x: &'a [E],
    kernels: &'a [f32],
    /// Of each column: those that see the map.
    taps_x: &'a [Range<usize>],
    tail: Tail<'a, E>,
    output: Shared<E>,
    image: usize,
    y: usize,
}

impl<E: Element> Work for Row<'_, E> {
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let geometry = self.geometry;
        let taps = geometry.kernel[0] * geometry.kernel[1];
        let all_y = geometry.reaching(0, self.y..self.y + 1);
        for (group, kernels) in self.kernels.chunks(BLOCKS * taps * LANES).enumerate() {
            for (column, taps_x) in self.taps_x.iter().enumerate() {
                let taps_y = if taps_x.is_empty() {
                    0..0
                } else {
                    all_y.clone()
                };
                for (block, kernel) in kernels.chunks_exact(taps * LANES).enumerate() {
                    let channel = (group * BLOCKS + block) * LANES;
                    // SAFETY: the caller's promises; the taps are those that see the map.
                    unsafe { self.sum(channel, kernel, column, taps_y.clone(), taps_x.clone()) };
                }
            }
        }
    }
}

impl<E: Element> Row<'_, E> {
    /// Sums a block of channels from `channel` on at one column, over these taps.
    ///
    /// # Safety
    /// As [`forward`]; each tap sees the map.
    #[inline(always)]
    unsafe fn sum(
        &self,
        channel: usize,
        kernel: &[f32],
        column: usize,
        taps_y: Range<usize>,
        taps_x: Range<usize>,
    ) {
        let geometry = self.geometry;
        let channels = geometry.c_in;
        let mask = u32::MAX >> (LANES - LANES.min(channels - channel));
        let masks = [mask as u16, (mask >> 16) as u16];
        let input = |axis: usize, output: usize, tap: usize| {
            let at = (output * geometry.options.stride[axis]) as isize;
            (at + geometry.offset(axis, tap)) as usize
        };
        // SAFETY: masks keep to the channels that there are; the output has the pixel.
        unsafe {
            let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            for tap_y in taps_y {
                let row = self.image * geometry.input[0] + input(0, self.y, tap_y);
                let pixel = row * geometry.input[1] + input(1, column, taps_x.start);
                let mut x = self.x.as_ptr().add(pixel * channels + channel);
                for tap_x in taps_x.clone() {
                    let tap = tap_y * geometry.kernel[1] + tap_x;
                    let kernel = kernel.as_ptr().add(tap * LANES);
                    let value = E::load_lanes(x, masks[0]);
                    low = _mm512_fmadd_ps(value, _mm512_loadu_ps(kernel), low);
                    let value = E::load_lanes(x.wrapping_add(16), masks[1]);
                    high = _mm512_fmadd_ps(value, _mm512_loadu_ps(kernel.add(16)), high);
                    x = x.wrapping_add(geometry.options.dilation[1] * channels);
                }
            }
            let row = self.image * geometry.output[0] + self.y;
            let at = (row * geometry.output[1] + column) * channels + channel;
            let target = self.output.at(at);
            self.tail
                .store_channels(self.isa, [channel, at], [low, high], mask, target);
        }
    }
}
