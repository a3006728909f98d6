//! Convolutions of each channel by itself, of maps that lie channels last.

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::super::geometry::{Geometry, inside};
use super::super::tail::Tail;
use super::super::weight::{Weight, rounded};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level, Registers, Work, compiled};
use crate::cpu::scratch::Shared;

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
    (0..geometry.batch * geometry.output[0])
        .into_par_iter()
        .for_each(|row| {
            let row = Row {
                isa,
                geometry,
                x,
                kernels: &kernels,
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
    tail: Tail<'a, E>,
    output: Shared<E>,
    image: usize,
    y: usize,
}

impl<E: Element> Row<'_, E> {
    /// Sums a group of blocks of channels at one column; `reached` are the taps along the row that see the map there,
    /// from tap `first` on.
    ///
    /// # Safety
    /// As [`forward`].
    #[inline(always)]
    unsafe fn column(
        &self,
        group: usize,
        kernels: &[f32],
        column: usize,
        rows: &[(usize, &[E])],
        reached: &[(isize, std::ops::Range<usize>)],
        first: usize,
    ) {
        let geometry = self.geometry;
        let channels = geometry.c_in;
        let taps = geometry.kernel[0] * geometry.kernel[1];
        let pixel = (self.image * geometry.output[0] + self.y) * geometry.output[1] + column;
        for (block, kernel) in kernels.chunks_exact(taps * LANES).enumerate() {
            let channel = (group * BLOCKS + block) * LANES;
            let mask = u32::MAX >> (LANES - LANES.min(channels - channel));
            let masks = [mask as u16, (mask >> 16) as u16];
            // SAFETY: masks keep to the channels that there are; columns and rows to the map and the output.
            unsafe {
                let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                for (tap_y, row) in rows {
                    for (index, (offset, _)) in reached.iter().enumerate() {
                        let x = ((column * geometry.options.stride[1]) as isize + offset) as usize;
                        let x = row.as_ptr().add(x * channels + channel);
                        let tap = tap_y * geometry.kernel[1] + first + index;
                        let kernel = kernel.as_ptr().add(tap * LANES);
                        let value = E::load_lanes(x, masks[0]);
                        low = _mm512_fmadd_ps(value, _mm512_loadu_ps(kernel), low);
                        let value = E::load_lanes(x.wrapping_add(16), masks[1]);
                        high = _mm512_fmadd_ps(value, _mm512_loadu_ps(kernel.add(16)), high);
                    }
                }
                let at = pixel * channels + channel;
                let target = self.output.at(at);
                self.tail
                    .store_channels(self.isa, [channel, at], [low, high], mask, target);
            }
        }
    }
}

impl<E: Element> Work for Row<'_, E> {
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let geometry = self.geometry;
        let channels = geometry.c_in;
        let [height, width] = geometry.input;
        let [step_y, step_x] = geometry.options.stride;
        let image = &self.x[self.image * height * width * channels..][..height * width * channels];
        let taps_y = (0..geometry.kernel[0]).filter_map(|tap| {
            let y = (self.y * step_y) as isize + geometry.offset(0, tap);
            let y = usize::try_from(y).ok().filter(|y| *y < height)?;
            Some((tap, &image[y * width * channels..][..width * channels]))
        });
        let rows: Vec<(usize, &[E])> = taps_y.collect();
        let columns: Vec<_> = (0..geometry.kernel[1])
            .map(|tap| {
                let offset = geometry.offset(1, tap);
                (offset, inside(geometry.output[1], step_x, offset, width))
            })
            .collect();
        let taps = geometry.kernel[0] * geometry.kernel[1];
        for (group, kernels) in self.kernels.chunks(BLOCKS * taps * LANES).enumerate() {
            for column in 0..geometry.output[1] {
                let mut reached = columns.iter().enumerate();
                let first = reached.position(|(_, (_, inside))| inside.contains(&column));
                let Some(first) = first else {
                    // Nothing but padding, perhaps: the sums are zero.
                    // SAFETY: as below.
                    unsafe { self.column(group, kernels, column, &rows, &columns[..0], 0) };
                    continue;
                };
                let last = columns
                    .iter()
                    .rposition(|(_, inside)| inside.contains(&column));
                let reached = &columns[first..=last.unwrap_or(first)];
                // SAFETY: the caller's promises.
                unsafe { self.column(group, kernels, column, &rows, reached, first) };
            }
        }
    }
}
