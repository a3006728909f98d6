//! Weight gradient: `dw[m, c, tap] = sum over images and pixels of dy[m, p] * x[c, position(p) + offset(tap)]`.

use std::marker::PhantomData;

use super::super::geometry::{Geometry, inside};
use super::super::micro::{Core, Walk, interleave};
use crate::cpu::element::{Element, convert};
use crate::cpu::isa::{Isa, Registers, Work, compiled};
use crate::cpu::scratch::{Aligned, Shared, with_scratch};
use crate::cpu::tasks;

/// Pixels that are summed in one go: six channels of the gradient stay in the first-level cache.
const PIXELS: usize = 512;
/// The most rows or columns that a block has here.
const MOST: usize = 32;

/// Values of a panel of the gradient, with slack; a whole number of cache lines.
fn left_length<C: Core>() -> usize {
    (PIXELS * C::MR + 8).next_multiple_of(16)
}

/// A rectangle of the output of one image.
#[derive(Clone, Copy)]
pub struct Rectangle {
    pub image: usize,
    pub rows: [usize; 2],
    pub columns: [usize; 2],
}

impl Rectangle {
    /// Height and width.
    pub fn size(&self) -> [usize; 2] {
        [
            self.rows[1] - self.rows[0],
            self.columns[1] - self.columns[0],
        ]
    }
}

pub fn weight_gradient<C: Core<Value = f32>, E: Element, W: Element>(
    _: C,
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
    result: &mut [W],
) {
    let groups = geometry.options.groups;
    let [c, m] = [geometry.c_in / groups, geometry.c_out / groups];
    let [kernel_height, kernel_width] = geometry.kernel;
    let kernel = kernel_height * kernel_width;
    let (left_panels, right_panels) = (m.div_ceil(C::MR), c.div_ceil(C::NR));
    let panel_length = left_length::<C>();
    let mut left = Aligned::<f32>::zeros(left_panels * panel_length);
    for group in 0..groups {
        // [panel of NR input channels][tap][panel of MR output channels][MR][NR]
        let mut sums = Aligned::<f32>::zeros(right_panels * kernel * left_panels * C::BLOCK);
        for band in bands(geometry, PIXELS, 1) {
            let [height, width] = band.size();
            tasks::each_chunk(&mut left, panel_length, |panel, target| {
                let first = (band.image * groups + group) * m + panel * C::MR;
                let source = Planes {
                    values: gradient,
                    size: geometry.output,
                    first,
                    count: C::MR.min(m - panel * C::MR),
                };
                let work = Interleave::<E, C> {
                    source,
                    rows: band.rows,
                    columns: band.columns,
                    target: target.as_mut_ptr(),
                    core: PhantomData,
                };
                debug_assert!(height * width * C::MR + 8 <= panel_length);
                // SAFETY: the target has room for the band and slack; cores are chosen by what
                // the processor has.
                unsafe { compiled(C::ISA, work) };
            });
            let target = Shared(sums.as_mut_ptr());
            let left = &left[..];
            tasks::each(right_panels * kernel_height, |task| {
                let (panel, tap_row) = (task / kernel_height, task % kernel_height);
                let first = (band.image * groups + group) * c + panel * C::NR;
                let at = (panel * kernel + tap_row * kernel_width) * left_panels * C::BLOCK;
                let part = Part::<E, C> {
                    geometry,
                    band,
                    tap_row,
                    source: Planes {
                        values: x,
                        size: geometry.input,
                        first,
                        count: C::NR.min(c - panel * C::NR),
                    },
                    left,
                    left_panels,
                    sums: Shared(target.at(at)),
                    core: PhantomData,
                };
                let length = height * geometry.input[1] * C::NR + 8;
                with_scratch([length, 0], |scratch: &mut [f32], _| {
                    // SAFETY: cores are chosen by what the processor has; tasks own their taps'
                    // sums.
                    unsafe { compiled(C::ISA, (&part, scratch)) }
                });
            });
        }
        let length = m * c * kernel;
        tasks::each_chunk(
            &mut result[group * length..][..length],
            c * kernel,
            |row, target| {
                for channel in 0..c {
                    for tap in 0..kernel {
                        let block = (channel / C::NR * kernel + tap) * left_panels + row / C::MR;
                        let at = block * C::BLOCK + row % C::MR * C::NR + channel % C::NR;
                        target[channel * kernel + tap] = convert(E::narrow(sums[at]));
                    }
                }
            },
        );
    }
}

/// Rectangles of the output of at most `pixels` pixels, where rows take whole steps; a long row is cut.
pub fn bands(geometry: &Geometry, pixels: usize, step: usize) -> Vec<Rectangle> {
    let [height, width] = geometry.output;
    let columns = width.min(pixels);
    let rows = (pixels / columns.next_multiple_of(step)).max(1);
    let mut bands = Vec::new();
    for image in 0..geometry.batch {
        for y in (0..height).step_by(rows) {
            for x in (0..width).step_by(columns) {
                bands.push(Rectangle {
                    image,
                    rows: [y, height.min(y + rows)],
                    columns: [x, width.min(x + columns)],
                });
            }
        }
    }
    bands
}

/// Neighbouring channels of a map.
struct Planes<'a, E> {
    values: &'a [E],
    size: [usize; 2],
    first: usize,
    count: usize,
}

impl<E: Element> Planes<'_, E> {
    /// Writes the columns of one row, `lanes` channels a step; channels past the last are zero.
    ///
    /// # Safety
    /// `target` has room for the columns and eight values more.
    #[inline(always)]
    unsafe fn interleave(
        &self,
        isa: Isa,
        lanes: usize,
        row: usize,
        columns: [usize; 2],
        target: *mut f32,
    ) {
        let plane = self.size[0] * self.size[1];
        let at = row * self.size[1] + columns[0];
        let length = columns[1] - columns[0];
        let rows: [*const E; MOST] = std::array::from_fn(|lane| {
            let lane = lane.min(self.count - 1);
            let start = (self.first + lane) * plane + at;
            self.values[start..start + length].as_ptr()
        });
        // SAFETY: the rows are slices of `length` values; the rest is the caller's promise.
        unsafe { interleave(isa, lanes, &rows, self.count, length, target) }
    }
}

/// Interleaves a rectangle of the planes, `MR` channels a step. Of one core, so that the instruction set is
/// known where this is compiled.
struct Interleave<'a, E, C> {
    source: Planes<'a, E>,
    rows: [usize; 2],
    columns: [usize; 2],
    target: *mut f32,
    core: PhantomData<C>,
}

impl<E: Element, C: Core> Work for Interleave<'_, E, C> {
    #[inline(always)]
    unsafe fn run(self, _: &Registers) {
        let width = self.columns[1] - self.columns[0];
        for row in self.rows[0]..self.rows[1] {
            let at = (row - self.rows[0]) * width * C::MR;
            // SAFETY: the caller promises room for every row.
            unsafe {
                let target = self.target.add(at);
                self.source
                    .interleave(C::ISA, C::MR, row, self.columns, target);
            }
        }
    }
}

/// The taps of one row of the kernel for one panel of input channels, in one band.
struct Part<'a, E, C> {
    geometry: &'a Geometry,
    band: Rectangle,
    tap_row: usize,
    source: Planes<'a, E>,
    left: &'a [f32],
    left_panels: usize,
    sums: Shared<f32>,
    core: PhantomData<C>,
}

impl<E: Element, C: Core<Value = f32>> Work for (&Part<'_, E, C>, &mut [f32]) {
    #[inline(always)]
    unsafe fn run(self, registers: &Registers) {
        let (part, scratch) = self;
        // SAFETY: the caller's promises are the same.
        unsafe { part.compute(registers, scratch) }
    }
}

impl<E: Element, C: Core<Value = f32>> Part<'_, E, C> {
    /// # Safety
    /// No other thread touches the sums of these taps and channels. The processor has the core's
    /// instructions.
    #[inline(always)]
    unsafe fn compute(&self, registers: &Registers, right: &mut [f32]) {
        let geometry = self.geometry;
        let [step_y, step_x] = geometry.options.stride;
        let [_, band_width] = self.band.size();
        let offset_y = geometry.offset(0, self.tap_row);
        // Rows and columns of the output whose input pixel exists.
        let rows = inside(geometry.output[0], step_y, offset_y, geometry.input[0]);
        let rows = rows.start.max(self.band.rows[0])..rows.end.min(self.band.rows[1]);
        let kernel_width = geometry.kernel[1];
        let columns: Vec<_> = (0..kernel_width)
            .map(|tap| {
                let offset = geometry.offset(1, tap);
                let range = inside(geometry.output[1], step_x, offset, geometry.input[1]);
                let range =
                    range.start.max(self.band.columns[0])..range.end.min(self.band.columns[1]);
                (range, offset)
            })
            .collect();
        let input_column =
            |column: usize, offset: isize| ((column * step_x) as isize + offset) as usize;
        let used = columns.iter().filter(|(range, _)| !range.is_empty());
        let first = used
            .clone()
            .map(|(range, offset)| input_column(range.start, *offset))
            .min();
        let last = used
            .map(|(range, offset)| input_column(range.end - 1, *offset) + 1)
            .max();
        let (Some(first), Some(last)) = (first, last) else {
            return;
        };
        if rows.is_empty() {
            return;
        }
        let row_length = (last - first) * C::NR;
        assert!(row_length * rows.len() + 8 <= right.len());
        for (i, row) in rows.clone().enumerate() {
            let y = ((row * step_y) as isize + offset_y) as usize;
            // SAFETY: the scratch has room for every row and the slack.
            unsafe {
                self.source.interleave(
                    C::ISA,
                    C::NR,
                    y,
                    [first, last],
                    right.as_mut_ptr().add(i * row_length),
                );
            }
        }
        let skipped = rows.start - self.band.rows[0];
        for panel in 0..self.left_panels {
            let left = &self.left[panel * left_length::<C>()..];
            for (tap, (range, offset)) in columns.iter().enumerate() {
                if range.is_empty() {
                    continue;
                }
                let walk = Walk {
                    rows: rows.len(),
                    depth: range.len(),
                    left_row: band_width * C::MR,
                    right_row: row_length,
                    right_step: step_x * C::NR,
                };
                let left_at = (skipped * band_width + range.start - self.band.columns[0]) * C::MR;
                let right_at = (input_column(range.start, *offset) - first) * C::NR;
                // SAFETY: rows and columns were clipped to the band and to the packed pixels;
                // the sums are this task's own.
                unsafe {
                    C::multiply(
                        registers,
                        walk,
                        left[left_at..].as_ptr(),
                        right[right_at..].as_ptr(),
                        self.sums.at((tap * self.left_panels + panel) * C::BLOCK),
                        true,
                    );
                }
            }
        }
    }
}
