//! Weight gradient: `dw[m, c, tap] = sum over images and pixels of dy[m, p] * x[c, position(p) + offset(tap)]`.

use rayon::prelude::*;

use super::micro::{BLOCK, MR, NR, Walk, has_avx2, interleave, multiply};
use super::{Element, Geometry, Shared, inside, with_scratch};

/// Pixels that are summed in one go: six channels of the gradient stay in the first-level cache.
const PIXELS: usize = 512;

/// A rectangle of the output of one image.
#[derive(Clone, Copy)]
struct Band {
    image: usize,
    rows: [usize; 2],
    columns: [usize; 2],
}

impl Band {
    fn size(&self) -> [usize; 2] {
        [
            self.rows[1] - self.rows[0],
            self.columns[1] - self.columns[0],
        ]
    }
}

pub fn weight_gradient<E: Element>(geometry: &Geometry, x: &[E], gradient: &[E], result: &mut [E]) {
    let groups = geometry.options.groups;
    let [c, m] = [geometry.c_in / groups, geometry.c_out / groups];
    let [kernel_height, kernel_width] = geometry.kernel;
    let kernel = kernel_height * kernel_width;
    let (left_panels, right_panels) = (m.div_ceil(MR), c.div_ceil(NR));
    let avx2 = has_avx2();
    let mut left = vec![0f32; left_panels * (PIXELS * MR + 8)];
    for group in 0..groups {
        // [panel of NR input channels][tap][panel of MR output channels][MR][NR]
        let mut sums = vec![0f32; right_panels * kernel * left_panels * BLOCK];
        for band in bands(geometry) {
            let [height, width] = band.size();
            let panel_length = height * width * MR + 8;
            left.par_chunks_mut(PIXELS * MR + 8)
                .enumerate()
                .for_each(|(panel, target)| {
                    let first = (band.image * groups + group) * m + panel * MR;
                    let source = Planes {
                        values: gradient,
                        size: geometry.output,
                        first,
                        count: MR.min(m - panel * MR),
                    };
                    // SAFETY: the target has room for the band and slack; instructions are checked.
                    unsafe {
                        for row in 0..height {
                            source.interleave::<MR>(
                                avx2,
                                band.rows[0] + row,
                                band.columns,
                                target.as_mut_ptr().add(row * width * MR),
                            );
                        }
                    }
                });
            let target = Shared(sums.as_mut_ptr());
            let left = &left;
            (0..right_panels * kernel_height)
                .into_par_iter()
                .for_each(|task| {
                    let (panel, tap_row) = (task / kernel_height, task % kernel_height);
                    let first = (band.image * groups + group) * c + panel * NR;
                    let part =
                        Part {
                            geometry,
                            band,
                            tap_row,
                            source: Planes {
                                values: x,
                                size: geometry.input,
                                first,
                                count: NR.min(c - panel * NR),
                            },
                            left,
                            left_panels,
                            sums: Shared(target.at((panel * kernel + tap_row * kernel_width)
                                * left_panels
                                * BLOCK)),
                        };
                    debug_assert!(panel_length <= PIXELS * MR + 8);
                    let length = height * geometry.input[1] * NR + 8;
                    // Taken here and not inside: a closure would not be compiled for AVX2.
                    with_scratch(length, |scratch| {
                        #[cfg(target_arch = "x86_64")]
                        if avx2 {
                            // SAFETY: the processor has the instructions; tasks own their taps' sums.
                            return unsafe { part.compute_avx2(scratch) };
                        }
                        // SAFETY: as above.
                        unsafe { part.compute::<false>(scratch) }
                    });
                });
        }
        let length = m * c * kernel;
        result[group * length..][..length]
            .par_chunks_mut(c * kernel)
            .enumerate()
            .for_each(|(row, target)| {
                for channel in 0..c {
                    for tap in 0..kernel {
                        let block = (channel / NR * kernel + tap) * left_panels + row / MR;
                        let at = block * BLOCK + row % MR * NR + channel % NR;
                        target[channel * kernel + tap] = E::narrow(sums[at]);
                    }
                }
            });
    }
}

fn bands(geometry: &Geometry) -> Vec<Band> {
    let [height, width] = geometry.output;
    let columns = width.min(PIXELS);
    let rows = (PIXELS / columns).max(1);
    let mut bands = Vec::new();
    for image in 0..geometry.batch {
        for y in (0..height).step_by(rows) {
            for x in (0..width).step_by(columns) {
                bands.push(Band {
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
    /// Writes the columns of one row, `LANES` channels a step; channels past the last are zero.
    ///
    /// # Safety
    /// `target` has room for the columns and eight values more; with `avx2` the processor has AVX2,
    /// FMA and F16C.
    unsafe fn interleave<const LANES: usize>(
        &self,
        avx2: bool,
        row: usize,
        columns: [usize; 2],
        target: *mut f32,
    ) {
        let plane = self.size[0] * self.size[1];
        let at = row * self.size[1] + columns[0];
        let length = columns[1] - columns[0];
        let rows: [*const E; 16] = std::array::from_fn(|lane| {
            let lane = lane.min(self.count - 1);
            let start = (self.first + lane) * plane + at;
            self.values[start..start + length].as_ptr()
        });
        #[cfg(target_arch = "x86_64")]
        if avx2 {
            // SAFETY: the rows are slices of `length` values; the rest is the caller's promise.
            return unsafe { interleave_avx2::<E, LANES>(&rows, self.count, length, target) };
        }
        let _ = avx2;
        // SAFETY: as above.
        unsafe { interleave::<E, LANES, false>(&rows, self.count, length, target) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn interleave_avx2<E: Element, const LANES: usize>(
    rows: &[*const E; 16],
    count: usize,
    length: usize,
    target: *mut f32,
) {
    // SAFETY: the caller's promises are the same.
    unsafe { interleave::<E, LANES, true>(rows, count, length, target) }
}

/// The taps of one row of the kernel for one panel of input channels, in one band.
struct Part<'a, E> {
    geometry: &'a Geometry,
    band: Band,
    tap_row: usize,
    source: Planes<'a, E>,
    left: &'a [f32],
    left_panels: usize,
    sums: Shared<f32>,
}

impl<E: Element> Part<'_, E> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn compute_avx2(&self, scratch: &mut [f32]) {
        // SAFETY: the caller's promises are the same.
        unsafe { self.compute::<true>(scratch) }
    }

    /// # Safety
    /// No other thread touches the sums of these taps and channels. With `AVX2` the processor has
    /// AVX2, FMA and F16C.
    #[inline(always)]
    unsafe fn compute<const AVX2: bool>(&self, right: &mut [f32]) {
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
        let row_length = (last - first) * NR;
        assert!(row_length * rows.len() + 8 <= right.len());
        for (i, row) in rows.clone().enumerate() {
            let y = ((row * step_y) as isize + offset_y) as usize;
            // SAFETY: the scratch has room for every row and the slack.
            unsafe {
                self.source.interleave::<NR>(
                    AVX2,
                    y,
                    [first, last],
                    right.as_mut_ptr().add(i * row_length),
                );
            }
        }
        let skipped = rows.start - self.band.rows[0];
        for panel in 0..self.left_panels {
            let left = &self.left[panel * (super::weights::PIXELS * MR + 8)..];
            for (tap, (range, offset)) in columns.iter().enumerate() {
                if range.is_empty() {
                    continue;
                }
                let walk = Walk {
                    rows: rows.len(),
                    depth: range.len(),
                    left_row: band_width * MR,
                    right_row: row_length,
                    right_step: step_x * NR,
                };
                let left_at = (skipped * band_width + range.start - self.band.columns[0]) * MR;
                let right_at = (input_column(range.start, *offset) - first) * NR;
                // SAFETY: rows and columns were clipped to the band and to the packed pixels;
                // the sums are this task's own.
                unsafe {
                    multiply::<AVX2>(
                        walk,
                        left[left_at..].as_ptr(),
                        right[right_at..].as_ptr(),
                        self.sums.at((tap * self.left_panels + panel) * BLOCK),
                    );
                }
            }
        }
    }
}
