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

/// # Safety
/// `output` has room for the output; the processor has AVX-512.
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
            unsafe { compiled(isa.at_most(Level::Avx512), row) };
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
        for (block, kernel) in self.kernels.chunks_exact(taps * LANES).enumerate() {
            let channel = block * LANES;
            let mask = u32::MAX >> (LANES - LANES.min(channels - channel));
            let masks = [mask as u16, (mask >> 16) as u16];
            for column in 0..geometry.output[1] {
                // SAFETY: masks keep to the channels that there are; columns and rows to the map and the output.
                unsafe {
                    let mut sums = [_mm512_setzero_ps(); 2];
                    for (tap_y, row) in &rows {
                        for (tap_x, (offset, inside)) in columns.iter().enumerate() {
                            if !inside.contains(&column) {
                                continue;
                            }
                            let x = ((column * step_x) as isize + offset) as usize;
                            let x = row.as_ptr().add(x * channels + channel);
                            let tap = tap_y * geometry.kernel[1] + tap_x;
                            let kernel = kernel.as_ptr().add(tap * LANES);
                            sums[0] = _mm512_fmadd_ps(
                                E::load_lanes(x, masks[0]),
                                _mm512_loadu_ps(kernel),
                                sums[0],
                            );
                            sums[1] = _mm512_fmadd_ps(
                                E::load_lanes(x.wrapping_add(16), masks[1]),
                                _mm512_loadu_ps(kernel.add(16)),
                                sums[1],
                            );
                        }
                    }
                    let pixel = (self.image * geometry.output[0] + self.y) * geometry.output[1];
                    let at = (pixel + column) * channels + channel;
                    self.tail.store_channels(
                        self.isa,
                        [channel, at],
                        sums,
                        mask,
                        self.output.at(at),
                    );
                }
            }
        }
    }
}
