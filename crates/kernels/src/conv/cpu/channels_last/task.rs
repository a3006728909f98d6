//! The outputs of one task: its rows copied, multiplied, finished.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::super::geometry::{Geometry, inside};
use super::super::micro::{Amx, Core, Rows, Tiled};
use super::super::tail::Tail;
use super::pack::panel_length;
use super::{PANEL, Plan, STEP, STORED, TILE};
use crate::cpu::element::Element;
use crate::cpu::isa::{Registers, Work};
use crate::cpu::scratch::{Shared, prefetch_from, prefetch_nearby};

/// A rectangle of the output of one image, and panels of its channels.
pub struct Task<'a, E, F> {
    pub geometry: &'a Geometry,
    pub plan: &'a Plan,
    pub weight: &'a [u16],
    pub x: &'a [E],
    pub tail: Tail<'a, E>,
    pub output: Shared<E>,
    pub image: usize,
    pub panels: Range<usize>,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    pub tiles: PhantomData<F>,
}

/// Pixels that are fetched ahead of those that are copied: where a part of the channels is, the processor does not look
/// ahead by itself.
const AHEAD: usize = 12;

/// Neighbouring outputs of one row.
#[derive(Clone, Copy)]
struct Tile {
    y: usize,
    x: usize,
    /// The first one that is the task's.
    first: usize,
    /// Where they end.
    length: usize,
}

/// Tiles that are multiplied together.
struct Block {
    tiles: [Tile; 2],
    /// The taps along a row from which some of their pixels see the map.
    taps: Range<usize>,
    /// Whether the sums hold something.
    begun: bool,
}

impl<E: Element, F: Tiled> Work for (&Task<'_, E, F>, &mut [u16], &mut [f32]) {
    #[inline(always)]
    unsafe fn run(self, registers: &Registers) {
        let (task, values, sums) = self;
        // SAFETY: the caller's promises are the same.
        unsafe { task.compute(registers, values, sums) }
    }
}

impl<E: Element, F: Tiled> Task<'_, E, F> {
    /// # Safety
    /// No other thread writes these pixels of these channels, and `output` has them. The processor has the
    /// instructions of `F`.
    #[inline(always)]
    unsafe fn compute(&self, registers: &Registers, copies: &mut [u16], sums: &mut [f32]) {
        let (geometry, plan) = (self.geometry, self.plan);
        let [kernel_height, kernel_width] = geometry.kernel;
        let short = plan.is_short(geometry);
        let mut blocks = self.blocks();
        let length = panel_length(geometry, plan);
        let taps = kernel_height * kernel_width;
        for first in (0..plan.channels).step_by(plan.chunk) {
            let depth = plan.chunk.min(plan.channels - first);
            // SAFETY: the caller's promises.
            let input = unsafe { self.input_rows(first, depth, copies) };
            let (steps, of_steps) = (depth / STEP, depth * size_of::<u16>());
            for tap_y in 0..kernel_height {
                let last = first + depth == plan.channels && tap_y + 1 == kernel_height;
                for (index, block) in blocks.iter_mut().enumerate() {
                    let lines = block
                        .tiles
                        .map(|tile| input.of(tap_y, tile.y - self.rows.start));
                    let reaches = lines.iter().any(Option::is_some) && !block.taps.is_empty();
                    if !reaches && !last {
                        continue;
                    }
                    let left = [0, 1].map(|half| {
                        // A tile may begin before the task's columns.
                        let x = block.tiles[half].x.wrapping_sub(self.columns.start);
                        let x = x.wrapping_mul(geometry.options.stride[1]);
                        let x = x.wrapping_add(block.taps.start * geometry.options.dilation[1]);
                        let line = lines[half].unwrap_or(input.zeros);
                        line.wrapping_byte_add(x.wrapping_mul(input.pixel))
                    });
                    let rows = Rows {
                        count: block.taps.len(),
                        steps,
                        left,
                        left_stride: input.pixel * geometry.options.stride[1],
                        left_step: STEP * size_of::<u16>(),
                        left_row: (geometry.options.dilation[1] * input.pixel)
                            .wrapping_sub(of_steps),
                    };
                    let tap = tap_y * kernel_width + block.taps.start;
                    let products = (first * taps + tap * depth) * PANEL;
                    let products = products..products + block.taps.len() * depth * PANEL;
                    for group in self.groups() {
                        let at = match short {
                            true => 0,
                            false => index * plan.panels + group.start - self.panels.start,
                        };
                        let sums =
                            &mut sums[at * Amx::<F>::BLOCK..][..group.len() * Amx::<F>::BLOCK];
                        let each = group.clone().zip(sums.chunks_exact_mut(Amx::<F>::BLOCK));
                        for (panel, sums) in each {
                            if last {
                                self.fetch_skip(panel, &block.tiles);
                            }
                            if reaches {
                                let weight = &self.weight[panel * length..][..length];
                                let weight = weight[products.clone()].as_ptr();
                                let sums = sums.as_mut_ptr();
                                // SAFETY: rows hold every pixel of every tap that is reached, as the weight
                                // does its products; a block of sums was sliced.
                                unsafe {
                                    F::multiply_rows(
                                        registers.tiles(),
                                        rows,
                                        weight,
                                        sums,
                                        block.begun,
                                    );
                                }
                            } else if !block.begun {
                                sums.fill(0.0);
                            }
                        }
                        if last {
                            // SAFETY: the caller's promises.
                            unsafe { self.store(group, &block.tiles, sums) };
                        }
                    }
                    block.begun |= reaches;
                }
            }
        }
    }

    /// The rectangle in pairs of tiles; a single one is its own neighbour.
    fn blocks(&self) -> Vec<Block> {
        let tiles = self.tiles();
        let blocks = tiles.chunks(2).map(|pair| {
            let tiles = [pair[0], pair[pair.len() - 1]];
            let [a, b] = tiles.map(|tile| self.geometry.reaching(1, tile.x..tile.x + tile.length));
            let taps = match (a.is_empty(), b.is_empty()) {
                (true, _) => b,
                (_, true) => a,
                _ => a.start.min(b.start)..a.end.max(b.end),
            };
            Block {
                tiles,
                taps,
                begun: false,
            }
        });
        blocks.collect()
    }

    /// Tiles of the rectangle. The last one of a row starts earlier, where there are pixels for that: a copied row has
    /// room after its end, the map has not.
    fn tiles(&self) -> Vec<Tile> {
        let Range { start, end } = self.columns;
        let earliest = match self.plan.direct {
            true => 0,
            false => start,
        };
        let last = end.saturating_sub(TILE).max(earliest);
        let of_row = |y| {
            (start..end).step_by(TILE).map(move |column| {
                let x = column.min(last);
                Tile {
                    y,
                    x,
                    // Before it are those of another tile.
                    first: column - x,
                    length: TILE.min(end - x),
                }
            })
        };
        self.rows.clone().flat_map(of_row).collect()
    }

    /// The rows of `depth` channels from `first` on: where they lie, or in `copies`, with zeros where there is no map.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn input_rows(&self, first: usize, depth: usize, copies: &mut [u16]) -> InputRows {
        let (geometry, plan) = (self.geometry, self.plan);
        let [height, width] = geometry.input;
        let step = geometry.options.stride;
        let image = &self.x[self.image * height * width * geometry.c_in..];
        let image = &image[..height * width * geometry.c_in];
        let start = (self.columns.start * step[1]) as isize + geometry.offset(1, 0);
        let count = self.rows.len();
        if plan.direct {
            let row = |y: usize| {
                let at = (y * step[0] * width + start as usize) * geometry.c_in + first;
                Some(image[at..].as_ptr().cast())
            };
            return InputRows {
                rows: self.rows.clone().map(row).collect(),
                count,
                zeros: copies.as_ptr(),
                pixel: geometry.c_in * size_of::<u16>(),
            };
        }
        let length = plan.row(geometry);
        let (zero, copies) = copies.split_at_mut(length);
        let inside = inside(plan.row_pixels(geometry), 1, start, width);
        let mut rows = Vec::with_capacity(geometry.kernel[0] * count);
        // Rows that were copied, by where they are in the map.
        let mut copied: Vec<usize> = Vec::with_capacity(plan.rows(geometry));
        for tap in 0..geometry.kernel[0] {
            for y in self.rows.clone() {
                let y = (y * step[0]) as isize + geometry.offset(0, tap);
                let Some(y) = usize::try_from(y).ok().filter(|y| *y < height) else {
                    rows.push(None);
                    continue;
                };
                let known = copied.iter().position(|copied| *copied == y);
                let index = known.unwrap_or(copied.len());
                let target = &mut copies[index * length..][..length];
                if known.is_none() {
                    copied.push(y);
                    let source = &image[y * width * geometry.c_in..][..width * geometry.c_in];
                    // SAFETY: the caller's promise.
                    unsafe { self.copy(source, [first, depth], start, inside.clone(), target) };
                }
                rows.push(Some(target.as_ptr()));
            }
        }
        if rows.contains(&None) {
            zero.fill(0);
        }
        InputRows {
            rows,
            count,
            zeros: zero.as_ptr(),
            pixel: plan.pixel() * size_of::<u16>(),
        }
    }

    /// Copies `depth` channels from `first` on of the pixels `inside` a row that begins at column `start` of
    /// the map's row `source`; what is outside, and channels past the last, are zero.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn copy(
        &self,
        source: &[E],
        [first, depth]: [usize; 2],
        start: isize,
        inside: Range<usize>,
        target: &mut [u16],
    ) {
        let (channels, pixel) = (self.geometry.c_in, self.plan.pixel());
        target[..inside.start * pixel].fill(0);
        target[inside.end * pixel..].fill(0);
        if inside.is_empty() {
            return;
        }
        let column = (inside.start as isize + start) as usize;
        let source = &source[column * channels..][..inside.len() * channels];
        let target = &mut target[inside.start * pixel..inside.end * pixel];
        let count = depth.min(channels - first);
        assert!(depth <= pixel && size_of::<E>() == size_of::<u16>());
        for (source, target) in source
            .chunks_exact(channels)
            .zip(target.chunks_exact_mut(pixel))
        {
            let source = source[first..first + count].as_ptr().cast::<u16>();
            prefetch_from(source.wrapping_add(AHEAD * channels), count);
            for at in (0..depth).step_by(STEP) {
                let mask = match count.saturating_sub(at) {
                    0 => 0,
                    left => u32::MAX >> (STEP - left.min(STEP)),
                };
                // SAFETY: the mask keeps to the pixel, of which a line is read; the target has `depth` values.
                unsafe {
                    let line = _mm512_maskz_loadu_epi16(mask, source.wrapping_add(at).cast());
                    _mm512_storeu_si512(target.as_mut_ptr().add(at).cast(), line);
                }
            }
        }
    }

    /// Fetches what [`Self::store`] reads into the second-level cache, while the last products are made: pixels lie in
    /// pages of their own, whose lines may meet in one set of the first-level cache.
    #[inline(always)]
    fn fetch_skip(&self, panel: usize, block: &[Tile; 2]) {
        let Some(skip) = self.tail.skip else { return };
        for tile in block {
            for i in tile.first..tile.length {
                let at = self.output_at(tile, i) + panel * PANEL;
                prefetch_nearby(skip.as_ptr().wrapping_add(at), 1);
            }
        }
    }

    /// Where the channels of pixel `i` of a tile begin in the output.
    #[inline(always)]
    fn output_at(&self, tile: &Tile, i: usize) -> usize {
        let [height, width] = self.geometry.output;
        ((self.image * height + tile.y) * width + tile.x + i) * self.geometry.c_out
    }

    /// Adds what follows the sums of a block, rounds and stores.
    ///
    /// # Safety
    /// As [`Self::compute`].
    #[inline(always)]
    unsafe fn store(&self, panels: Range<usize>, block: &[Tile; 2], sums: &[f32]) {
        const LANES: usize = 16;
        let m = self.geometry.c_out;
        let pixels = block.iter().enumerate().flat_map(|(half, tile)| {
            (tile.first..tile.length).map(move |i| (half * TILE + i, self.output_at(tile, i)))
        });
        for (row, start) in pixels {
            for (index, panel) in panels.clone().enumerate() {
                let channel = panel * PANEL;
                let mask = u32::MAX >> (PANEL - PANEL.min(m - channel));
                let at = start + channel;
                let sums = &sums[index * Amx::<F>::BLOCK + row * PANEL..][..PANEL];
                // SAFETY: the mask keeps to the channels that there are; the output has the pixel.
                unsafe {
                    let sums = [
                        _mm512_loadu_ps(sums.as_ptr()),
                        _mm512_loadu_ps(sums.as_ptr().add(LANES)),
                    ];
                    let target = self.output.at(at);
                    self.tail
                        .store_channels(F::ISA, [channel, at], sums, mask, target);
                }
            }
        }
    }

    /// Panels whose sums are stored together: neighbouring channels of a pixel.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let (end, stored) = (self.panels.end, STORED);
        let starts = self.panels.clone().step_by(stored);
        starts.map(move |start| start..end.min(start + stored))
    }
}

/// Where the rows of the input lie that a task reads: the pixel of the first tap of its first column.
struct InputRows {
    /// `[tap][row of the output]`.
    rows: Vec<Option<*const u16>>,
    /// Rows of the output.
    count: usize,
    /// In the place of rows that do not exist.
    zeros: *const u16,
    /// Bytes from one pixel to the next.
    pixel: usize,
}

impl InputRows {
    #[inline(always)]
    fn of(&self, tap: usize, row: usize) -> Option<*const u16> {
        self.rows[tap * self.count + row]
    }
}
