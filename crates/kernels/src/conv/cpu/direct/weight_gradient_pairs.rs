//! Weight gradient of bf16 and f16 maps with tiles or dot products of pairs: as in
//! [`weight_gradient`](mod@super::weight_gradient), but the input's rows are multiplied where they lie, and pairs of the
//! gradient's pixels are packed side by side. Where bf16 alone is multiplied, an f16 has two parts, as in
//! [`AmxParts`](super::super::micro::AmxParts).

use std::any::TypeId;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;

use super::super::geometry::{Geometry, inside};
use super::super::micro::{CHANNELS, PixelCore, Walk, are_taken, copy_bits, interleave, split_run};
use super::weight_gradient::{Rectangle, bands};
use crate::cpu::element::{Element, convert};
use crate::cpu::isa::{Level, Registers, Work, compiled};
use crate::cpu::scratch::{Aligned, Shared, with_scratch};
use crate::cpu::tasks;

/// Pixels that are summed in one go: an input panel's rows stay in the second-level cache.
const PIXELS: usize = 2048;
/// Values of the gradient's panels that stay in the second-level cache while the input's pass by.
const TOGETHER: usize = 1 << 19;
/// Values of a block.
const BLOCK: usize = CHANNELS * CHANNELS;

/// Values that are multiplied for one of `E`, which is bf16 or f16.
fn parts<C: PixelCore, E: Element>() -> usize {
    assert_eq!(size_of::<E>(), size_of::<u16>());
    1 + usize::from(TypeId::of::<E>() != TypeId::of::<C::Held>())
}

/// Writes the parts of a row, each with a target of its own. Whether they mean what the row does: what is not finite has
/// no two parts.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn write_parts<C: PixelCore, E: Element>(
    source: &[E],
    [high, low]: [&mut [u16]; 2],
) -> bool {
    if parts::<C, E>() == 2 {
        // SAFETY: the caller's promise.
        return unsafe { split_run::<f16, E>(source, [high, low, &mut []]) };
    }
    copy_bits::<C::Held, E>(source, high)
}

/// `E` holds bf16 or f16. Returns whether the result is of use: what is not finite is left to others.
pub fn weight_gradient<C: PixelCore, E: Element, W: Element>(
    _: C,
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
    result: &mut [W],
) -> bool {
    let groups = geometry.options.groups;
    let [c, m] = [geometry.c_in / groups, geometry.c_out / groups];
    let [kernel_height, kernel_width] = geometry.kernel;
    let kernel = kernel_height * kernel_width;
    let (left_panels, right_panels) = (c.div_ceil(CHANNELS), m.div_ceil(CHANNELS));
    let exact = AtomicBool::new(true);
    // [panel of output channels][part][row of the band][pair of pixels][channel][pixel]
    let panel_length = parts::<C, E>() * PIXELS * CHANNELS;
    let together = TOGETHER / panel_length;
    let mut right = Aligned::<u16>::zeros(right_panels * panel_length);
    for group in 0..groups {
        // [panel of input channels][tap][panel of output channels][input channel][output channel]
        let mut sums = Aligned::<f32>::zeros(left_panels * kernel * right_panels * BLOCK);
        for band in bands(geometry, PIXELS, C::SPAN) {
            let width = band.size()[1].next_multiple_of(C::SPAN);
            debug_assert!(band.size()[0] * width <= PIXELS);
            tasks::each_chunk(&mut right, panel_length, |panel, target| {
                let work = Pairs {
                    band,
                    size: geometry.output,
                    gradient,
                    first: (band.image * groups + group) * m + panel * CHANNELS,
                    count: CHANNELS.min(m - panel * CHANNELS),
                    target,
                    exact: &exact,
                    core: PhantomData::<C>,
                };
                // Nothing is multiplied here.
                // SAFETY: the caller promises the processor.
                unsafe { compiled(C::ISA.at_most(Level::Avx512), work) };
            });
            let target = Shared(sums.as_mut_ptr());
            let right = &right[..];
            let tasks = left_panels * kernel_height;
            tasks::each(right_panels.div_ceil(together) * tasks, |task| {
                let (chunk, task) = (task / tasks, task % tasks);
                let (panel, tap_row) = (task / kernel_height, task % kernel_height);
                let first = panel * kernel + tap_row * kernel_width;
                let part = Part {
                    geometry,
                    band,
                    tap_row,
                    x,
                    first: (band.image * groups + group) * c + panel * CHANNELS,
                    count: CHANNELS.min(c - panel * CHANNELS),
                    right,
                    panel_length,
                    panels: chunk * together..right_panels.min((chunk + 1) * together),
                    sums: Shared(target.at(first * right_panels * BLOCK)),
                    exact: &exact,
                    core: PhantomData::<C>,
                };
                let Some(layout) = part.layout() else { return };
                with_scratch(
                    [parts::<C, E>() * layout.length(), 0],
                    |left: &mut [u16], _| {
                        let work = PartWork {
                            part: &part,
                            layout: &layout,
                            left,
                        };
                        // SAFETY: the caller promises the processor; tasks own their taps' sums.
                        unsafe { compiled(C::ISA, work) };
                    },
                );
            });
            if !exact.load(Ordering::Relaxed) {
                return false;
            }
        }
        let length = m * c * kernel;
        tasks::each_chunk(
            &mut result[group * length..][..length],
            CHANNELS * c * kernel,
            |panel, target| {
                // Block by block, which stays in the first-level cache for all of its columns.
                for first in (0..c).step_by(CHANNELS) {
                    let channels = CHANNELS.min(c - first);
                    for tap in 0..kernel {
                        let block = (first / CHANNELS * kernel + tap) * right_panels + panel;
                        let block = &sums[block * BLOCK..][..BLOCK];
                        for (out, target) in target.chunks_exact_mut(c * kernel).enumerate() {
                            let target = target[first * kernel + tap..].iter_mut();
                            let rows = block.chunks_exact(CHANNELS).take(channels);
                            for (target, row) in target.step_by(kernel).zip(rows) {
                                *target = convert(E::narrow(row[out]));
                            }
                        }
                    }
                }
            },
        );
    }
    true
}

/// Packs a panel of the gradient; pixels that fill the last step, and channels past the last, are zero.
struct Pairs<'a, C, E> {
    band: Rectangle,
    size: [usize; 2],
    gradient: &'a [E],
    first: usize,
    count: usize,
    target: &'a mut [u16],
    exact: &'a AtomicBool,
    core: PhantomData<C>,
}

impl<C: PixelCore, E: Element> Work for Pairs<'_, C, E> {
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let plane = self.size[0] * self.size[1];
        let [height, width] = self.band.size();
        let row_length = width.next_multiple_of(C::SPAN) * CHANNELS;
        let isa = C::ISA.at_most(Level::Avx512);
        let mut split = vec![[0u16; 2 * PIXELS]; if parts::<C, E>() == 2 { CHANNELS } else { 0 }];
        let (high, low) = self.target.split_at_mut(PIXELS * CHANNELS);
        for i in 0..height {
            let at = (self.band.rows[0] + i) * self.size[1] + self.band.columns[0];
            let row = |lane: usize| &self.gradient[(self.first + lane) * plane + at..][..width];
            let mut rows: [*const E; CHANNELS] =
                std::array::from_fn(|lane| row(lane.min(self.count - 1)).as_ptr());
            for (lane, split) in split.iter_mut().enumerate().take(self.count) {
                let (high, low) = split.split_at_mut(PIXELS);
                // SAFETY: the caller promises the processor.
                if !unsafe { split_run::<f16, E>(row(lane), [high, low, &mut []]) } {
                    self.exact.store(false, Ordering::Relaxed);
                }
            }
            let mut all = (0..self.count).map(row);
            if parts::<C, E>() == 1 && !all.all(|row| are_taken::<C::Held, E>(row)) {
                self.exact.store(false, Ordering::Relaxed);
            }
            for (part, target) in [&mut *high, &mut *low]
                .into_iter()
                .enumerate()
                .take(parts::<C, E>())
            {
                for (row, split) in rows.iter_mut().zip(&split) {
                    *row = split[part * PIXELS..].as_ptr().cast();
                }
                let target = &mut target[i * row_length..][..row_length];
                // A pair of bf16 is moved as one value of four bytes.
                let pairs = rows.map(|row| row.cast::<f32>());
                // SAFETY: each row holds `width / 2` pairs, the target as many for all channels.
                unsafe {
                    let target = target.as_mut_ptr().cast();
                    interleave(isa, CHANNELS, &pairs, self.count, width / 2, target);
                }
                let rest = &mut target[width / 2 * 2 * CHANNELS..];
                rest.fill(0);
                if width % 2 == 1 {
                    for lane in 0..self.count {
                        // SAFETY: each row holds `width` values of two bytes.
                        rest[lane * 2] = unsafe { *rows[lane].cast::<u16>().add(width - 1) };
                    }
                }
            }
        }
    }
}

/// The taps of one row of the kernel for one panel of input channels, in one band.
struct Part<'a, C, E> {
    geometry: &'a Geometry,
    band: Rectangle,
    tap_row: usize,
    x: &'a [E],
    first: usize,
    count: usize,
    right: &'a [u16],
    panel_length: usize,
    /// Those that are multiplied.
    panels: std::ops::Range<usize>,
    /// Of all panels.
    sums: Shared<f32>,
    exact: &'a AtomicBool,
    core: PhantomData<C>,
}

/// How a part of a panel of the input is copied: `[copy][channel][row][column]`.
struct Copies {
    /// Rows of the output whose input exists.
    rows: std::ops::Range<usize>,
    /// Whether each tap has a copy of its own: pixels of a stride are not neighbours.
    copies: usize,
    /// Values of a row.
    row: usize,
    /// Values of a channel.
    channel: usize,
}

impl Copies {
    fn length(&self) -> usize {
        self.copies * CHANNELS * self.channel
    }
}

impl<C: PixelCore, E: Element> Part<'_, C, E> {
    fn layout(&self) -> Option<Copies> {
        let geometry = self.geometry;
        let offset = geometry.offset(0, self.tap_row);
        let step = geometry.options.stride;
        let rows = inside(geometry.output[0], step[0], offset, geometry.input[0]);
        let rows = rows.start.max(self.band.rows[0])..rows.end.min(self.band.rows[1]);
        if rows.is_empty() {
            return None;
        }
        let width = self.band.size()[1].next_multiple_of(C::SPAN);
        let reach = (geometry.kernel[1] - 1) * geometry.options.dilation[1];
        let (copies, row) = if step[1] == 1 {
            (1, width + reach)
        } else {
            (geometry.kernel[1], width)
        };
        // An odd number of cache lines: a tile's rows must not meet in one set of the cache. More
        // than one: rows of packed tiles are that far apart.
        const LINE: usize = 32;
        let lines = (rows.len() * row).div_ceil(LINE).max(2);
        Some(Copies {
            rows,
            copies,
            row,
            channel: (lines | 1) * LINE,
        })
    }

    /// Copies the panel's rows, shifted so that column 0 is the first tap's for the band's first
    /// column; what lies outside the map is zero.
    #[inline(always)]
    unsafe fn copy(&self, layout: &Copies, left: &mut [u16]) {
        let (high, low) = left.split_at_mut(layout.length());
        let geometry = self.geometry;
        let [step_y, step_x] = geometry.options.stride;
        let plane = geometry.input[0] * geometry.input[1];
        let offset_y = geometry.offset(0, self.tap_row);
        for copy in 0..layout.copies {
            let start = (self.band.columns[0] * step_x) as isize + geometry.offset(1, copy);
            let inside = inside(layout.row, step_x, start, geometry.input[1]);
            for lane in 0..CHANNELS {
                let at = (copy * CHANNELS + lane) * layout.channel;
                let mut targets = [&mut *high, &mut *low].map(|target| match target.len() {
                    0 => target,
                    _ => &mut target[at..at + layout.channel],
                });
                if lane >= self.count {
                    targets.into_iter().for_each(|target| target.fill(0));
                    continue;
                }
                let source = &self.x[(self.first + lane) * plane..][..plane];
                for (i, y) in layout.rows.clone().enumerate() {
                    let y = ((y * step_y) as isize + offset_y) as usize;
                    let source = &source[y * geometry.input[1]..][..geometry.input[1]];
                    let targets = targets.each_mut().map(|target| {
                        let target = match target.len() {
                            0 => return &mut target[..],
                            _ => &mut target[i * layout.row..][..layout.row],
                        };
                        target[..inside.start].fill(0);
                        target[inside.end..].fill(0);
                        &mut target[inside.clone()]
                    });
                    if inside.is_empty() {
                        continue;
                    }
                    let first = ((inside.start * step_x) as isize + start) as usize;
                    let source = &source[first..];
                    let exact = if step_x == 1 {
                        // SAFETY: the caller promises the processor.
                        unsafe { write_parts::<C, E>(&source[..inside.len()], targets) }
                    } else {
                        let [high, low] = targets;
                        let mut low = low.iter_mut();
                        let mut exact = true;
                        for (high, source) in high.iter_mut().zip(source.iter().step_by(step_x)) {
                            let low = low.next().map_or(&mut [][..], std::slice::from_mut);
                            let high = std::slice::from_mut(high);
                            // SAFETY: as above.
                            exact &= unsafe { write_parts::<C, E>(&[*source], [high, low]) };
                        }
                        exact
                    };
                    if !exact {
                        self.exact.store(false, Ordering::Relaxed);
                    }
                }
            }
        }
    }
}

struct PartWork<'a, C, E> {
    part: &'a Part<'a, C, E>,
    layout: &'a Copies,
    left: &'a mut [u16],
}

impl<C: PixelCore, E: Element> Work for PartWork<'_, C, E> {
    /// # Safety
    /// No other thread touches the sums of these taps and channels.
    #[inline(always)]
    unsafe fn run(self, registers: &Registers) {
        let Self { part, layout, left } = self;
        // SAFETY: the caller promises the processor.
        unsafe { part.copy(layout, left) };
        let kernel_width = part.geometry.kernel[1];
        let dilation = part.geometry.options.dilation[1];
        let width = part.band.size()[1].next_multiple_of(C::SPAN);
        let walk = Walk {
            rows: layout.rows.len(),
            depth: width,
            left_row: layout.row,
            right_row: width * CHANNELS,
            right_step: CHANNELS,
        };
        let skipped = (layout.rows.start - part.band.rows[0]) * width * CHANNELS;
        let panels = part.right.len() / part.panel_length;
        // Parts of the input and of the gradient; the product of both low ones is left out.
        let products = [[0, 0], [1, 0], [0, 1]];
        let products = &products[..2 * parts::<C, E>() - 1];
        for panel in part.panels.clone() {
            let right = &part.right[panel * part.panel_length..][..part.panel_length];
            for tap in 0..kernel_width {
                let at = if layout.copies == 1 {
                    tap * dilation
                } else {
                    tap * CHANNELS * layout.channel
                };
                for &[of_left, of_right] in products {
                    let right = &right[of_right * PIXELS * CHANNELS + skipped..];
                    assert!(right.len() >= layout.rows.len() * width * CHANNELS);
                    // SAFETY: copies hold every row of every channel for every tap; the sums are this
                    // task's own.
                    unsafe {
                        C::multiply_pixels(
                            registers,
                            walk,
                            left[of_left * layout.length() + at..].as_ptr(),
                            right.as_ptr(),
                            layout.channel,
                            part.sums.at((tap * panels + panel) * BLOCK),
                            true,
                        );
                    }
                }
            }
        }
    }
}
