//! Forward pass and input gradient: `out[m, p] = sum over taps and channels of
//! weight[tap, c, m] * in[c, position(p) + offset(tap)]`.

use rayon::prelude::*;

use super::micro::{BLOCK, MR, NR, Walk, has_avx2, multiply};
use super::{Element, Geometry, Shared, Tail, inside, with_scratch};

/// Products that a block sums before its registers are stored: `DEPTH x NR` values of the strip stay
/// in the first-level cache.
const DEPTH: usize = 256;
/// Panels of [`NR`] pixels in a task: `DEPTH x 192` values fill about half of a second-level cache.
const PANELS: usize = 12;
/// Panels of [`MR`] output channels that stay in the second-level cache beside the strip.
const CHUNK: usize = 16;

/// One tap: which of the kernel's, and how far its input pixel is from the position of the output.
#[derive(Clone, Copy)]
struct Tap {
    index: usize,
    offset: [isize; 2],
}

/// Channels `first..last` of one tap.
#[derive(Clone, Copy)]
struct Segment {
    tap: usize,
    first: usize,
    last: usize,
}

/// Segments whose products are summed in one go.
struct Slice {
    segments: Vec<Segment>,
    depth: usize,
    /// Products before this slice.
    start: usize,
}

/// Strides of the weight: from one `m`, `c` and tap to the next.
#[derive(Clone, Copy)]
struct WeightStrides {
    m: usize,
    c: usize,
    tap: usize,
}

/// One group of one convolution, for all images.
struct Problem {
    taps: Vec<Tap>,
    /// Channels that are summed, and channels that result, per group.
    channels: [usize; 2],
    /// Height and width of the positions that are computed.
    grid: [usize; 2],
    /// Pixels of the input from one position to the next.
    step: [usize; 2],
    input: [usize; 2],
    output: [usize; 2],
    /// Pixels of the output from one position to the next, and of the first.
    output_step: [usize; 2],
    output_base: [usize; 2],
}

pub fn forward<E: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: &[E],
    tail: Tail<'_, E>,
    output: &mut [E],
) {
    let [kernel_height, kernel_width] = geometry.kernel;
    let taps = (0..kernel_height * kernel_width)
        .map(|index| Tap {
            index,
            offset: [
                geometry.offset(0, index / kernel_width),
                geometry.offset(1, index % kernel_width),
            ],
        })
        .collect();
    let groups = geometry.options.groups;
    let channels = [geometry.c_in / groups, geometry.c_out / groups];
    let kernel = kernel_height * kernel_width;
    let problem = Problem {
        taps,
        channels,
        grid: geometry.output,
        step: geometry.options.stride,
        input: geometry.input,
        output: geometry.output,
        output_step: [1, 1],
        output_base: [0, 0],
    };
    let strides = WeightStrides {
        m: channels[0] * kernel,
        c: kernel,
        tap: 1,
    };
    problem.run(geometry, x, weight, strides, tail, output);
}

/// A stride scatters the output's gradient over the input's; each residue of the stride is a problem
/// of its own, with the taps that reach it.
pub fn input_gradient<E: Element>(
    geometry: &Geometry,
    weight: &[E],
    gradient: &[E],
    result: &mut [E],
) {
    let [kernel_height, kernel_width] = geometry.kernel;
    let groups = geometry.options.groups;
    let channels = [geometry.c_out / groups, geometry.c_in / groups];
    let kernel = kernel_height * kernel_width;
    let stride = geometry.options.stride;
    // Output position = (input position - offset of the tap) / stride, if that is whole.
    let reach = |axis: usize, residue: usize, tap: usize| {
        let distance = residue as isize - geometry.offset(axis, tap);
        let step = stride[axis] as isize;
        (distance.rem_euclid(step) == 0).then(|| distance.div_euclid(step))
    };
    for residue_y in 0..stride[0].min(geometry.input[0]) {
        for residue_x in 0..stride[1].min(geometry.input[1]) {
            let taps = (0..kernel)
                .filter_map(|index| {
                    let y = reach(0, residue_y, index / kernel_width)?;
                    let x = reach(1, residue_x, index % kernel_width)?;
                    Some(Tap {
                        index,
                        offset: [y, x],
                    })
                })
                .collect::<Vec<_>>();
            if taps.is_empty() {
                continue;
            }
            let problem = Problem {
                taps,
                channels,
                grid: [
                    (geometry.input[0] - residue_y).div_ceil(stride[0]),
                    (geometry.input[1] - residue_x).div_ceil(stride[1]),
                ],
                step: [1, 1],
                input: geometry.output,
                output: geometry.input,
                output_step: stride,
                output_base: [residue_y, residue_x],
            };
            let strides = WeightStrides {
                m: kernel,
                c: channels[1] * kernel,
                tap: 1,
            };
            problem.run(geometry, gradient, weight, strides, Tail::none(), result);
        }
    }
}

/// A run of a panel's pixels that lie in one row of the grid.
#[derive(Clone, Copy)]
struct Run {
    lane: usize,
    length: usize,
    y: usize,
    x: usize,
}

impl Problem {
    fn run<E: Element>(
        &self,
        geometry: &Geometry,
        input: &[E],
        weight: &[E],
        strides: WeightStrides,
        tail: Tail<'_, E>,
        output: &mut [E],
    ) {
        let groups = geometry.options.groups;
        let [c, m] = self.channels;
        let slices = self.slices();
        let packed: Vec<Vec<f32>> = (0..groups)
            .map(|group| {
                let length = weight.len() / groups;
                let weight = &weight[group * length..][..length];
                self.pack_weight(&slices, weight, strides)
            })
            .collect();
        let panels = (self.grid[0] * self.grid[1]).div_ceil(NR);
        let rows = m.div_ceil(MR);
        // Enough tasks for every thread; few pixels are shared out by output channels.
        let wanted = 3 * rayon::current_num_threads();
        let per_task = PANELS.min(
            panels
                .div_ceil(wanted.div_ceil(geometry.batch * groups))
                .max(3),
        );
        let strips = panels.div_ceil(per_task);
        let parts = wanted
            .div_ceil(strips * geometry.batch * groups)
            .min(rows.div_ceil(2))
            .max(1);
        let part = rows.div_ceil(parts);
        let target = Shared(output.as_mut_ptr());
        let avx2 = has_avx2();
        (0..geometry.batch * groups * strips * parts)
            .into_par_iter()
            .for_each(|task| {
                let (image, task) = (
                    task / (groups * strips * parts),
                    task % (groups * strips * parts),
                );
                let (group, task) = (task / (strips * parts), task % (strips * parts));
                let (strip, part_index) = (task / parts, task % parts);
                let rows = part_index * part..rows.min((part_index + 1) * part);
                if rows.is_empty() {
                    return;
                }
                let plane = self.input[0] * self.input[1];
                let strip = Strip {
                    problem: self,
                    slices: &slices,
                    weight: &packed[group],
                    input: &input[(image * groups + group) * c * plane..][..c * plane],
                    panels: strip * per_task..panels.min((strip + 1) * per_task),
                    rows,
                    tail,
                    group,
                    start: (image * groups + group) * m * self.output[0] * self.output[1],
                    output: target,
                };
                // Taken here and not inside: a closure would not be compiled for AVX2.
                with_scratch(strip.scratch_length(), |scratch| {
                    #[cfg(target_arch = "x86_64")]
                    if avx2 {
                        // SAFETY: the processor has the instructions; tasks write disjoint pixels
                        // or channels of a buffer that outlives them.
                        return unsafe { strip.compute_avx2(scratch) };
                    }
                    let _ = avx2;
                    // SAFETY: as above.
                    unsafe { strip.compute::<false>(scratch) }
                });
            });
    }

    /// Long sums are cut inside taps, short ones take several taps.
    fn slices(&self) -> Vec<Slice> {
        let c = self.channels[0];
        let mut slices: Vec<Slice> = Vec::new();
        let mut start = 0;
        let cuts = c.div_ceil(DEPTH);
        for tap in 0..self.taps.len() {
            for cut in 0..cuts {
                let segment = Segment {
                    tap,
                    first: c * cut / cuts,
                    last: c * (cut + 1) / cuts,
                };
                let length = segment.last - segment.first;
                match slices.last_mut() {
                    Some(last) if last.depth + length <= DEPTH => {
                        last.segments.push(segment);
                        last.depth += length;
                    }
                    _ => slices.push(Slice {
                        segments: vec![segment],
                        depth: length,
                        start,
                    }),
                }
                start += length;
            }
        }
        slices
    }

    /// `[slice][panel of MR channels][product][MR]`; channels past the last are zero.
    fn pack_weight<E: Element>(
        &self,
        slices: &[Slice],
        weight: &[E],
        strides: WeightStrides,
    ) -> Vec<f32> {
        let [c, m] = self.channels;
        let rows = m.div_ceil(MR);
        let mut packed = vec![0f32; rows * MR * c * self.taps.len()];
        let target = Shared(packed.as_mut_ptr());
        (0..rows).into_par_iter().for_each(|row| {
            for slice in slices {
                let mut at = rows * MR * slice.start + row * MR * slice.depth;
                for segment in &slice.segments {
                    let base = self.taps[segment.tap].index * strides.tap;
                    for channel in segment.first..segment.last {
                        for lane in 0..MR.min(m - row * MR) {
                            let source = (row * MR + lane) * strides.m + channel * strides.c + base;
                            // SAFETY: each row of panels is one task's own.
                            unsafe { *target.at(at + lane) = weight[source].widen() };
                        }
                        at += MR;
                    }
                }
            }
        });
        packed
    }

    fn runs(&self, panel: usize) -> Vec<Run> {
        let width = self.grid[1];
        let (first, last) = (panel * NR, (self.grid[0] * width).min((panel + 1) * NR));
        let mut runs = Vec::with_capacity(2);
        let mut at = first;
        while at < last {
            let (y, x) = (at / width, at % width);
            let length = (width - x).min(last - at);
            runs.push(Run {
                lane: at - first,
                length,
                y,
                x,
            });
            at += length;
        }
        runs
    }

    /// The parts of `runs` whose input pixel at `tap` exists.
    fn reach(&self, panel: usize, runs: &[Run], tap: Tap, into: &mut Vec<Reached>) {
        let columns = inside(self.grid[1], self.step[1], tap.offset[1], self.input[1]);
        for run in runs {
            let y = (run.y * self.step[0]) as isize + tap.offset[0];
            let first = run.x.max(columns.start);
            let last = (run.x + run.length).min(columns.end);
            if y < 0 || y >= self.input[0] as isize || first >= last {
                continue;
            }
            let x = (first * self.step[1]) as isize + tap.offset[1];
            into.push(Reached {
                panel,
                lane: run.lane + first - run.x,
                length: last - first,
                offset: y as usize * self.input[1] + x as usize,
            });
        }
    }
}

/// Neighbouring pixels of a panel whose input exists, from `offset` in its plane.
#[derive(Clone, Copy)]
struct Reached {
    panel: usize,
    lane: usize,
    length: usize,
    offset: usize,
}

/// A strip of pixels of one image and group, and the output channels of one task.
struct Strip<'a, E> {
    problem: &'a Problem,
    slices: &'a [Slice],
    weight: &'a [f32],
    input: &'a [E],
    panels: std::ops::Range<usize>,
    /// Panels of [`MR`] output channels.
    rows: std::ops::Range<usize>,
    tail: Tail<'a, E>,
    group: usize,
    /// Where this image's and group's part of the output starts.
    start: usize,
    output: Shared<E>,
}

impl<E: Element> Strip<'_, E> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn compute_avx2(&self, scratch: &mut [f32]) {
        // SAFETY: the caller's promises are the same.
        unsafe { self.compute::<true>(scratch) }
    }

    /// Values of a panel's part of the strip, and of all sums.
    fn lengths(&self) -> (usize, usize) {
        let deepest = self.slices.iter().map(|slice| slice.depth).max();
        let sums = self.rows.len() * self.panels.len() * BLOCK;
        (deepest.unwrap_or(0) * NR, sums)
    }

    fn scratch_length(&self) -> usize {
        let (strip, sums) = self.lengths();
        strip * self.panels.len() + sums
    }

    /// # Safety
    /// No other thread writes this strip's pixels of this task's channels, and `output` has them.
    /// With `AVX2` the processor has AVX2, FMA and F16C.
    #[inline(always)]
    unsafe fn compute<const AVX2: bool>(&self, scratch: &mut [f32]) {
        let count = self.panels.len();
        let (strip_length, _) = self.lengths();
        let (strip, sums) = scratch.split_at_mut(strip_length * count);
        sums.fill(0.0);
        let runs: Vec<Vec<Run>> = self
            .panels
            .clone()
            .map(|panel| self.problem.runs(panel))
            .collect();
        let mut reached = Vec::new();
        let mut filled = vec![false; count];
        let all_rows = self.problem.channels[1].div_ceil(MR);
        for slice in self.slices {
            self.gather::<AVX2>(slice, &runs, &mut reached, strip, strip_length, &mut filled);
            let weight = &self.weight[all_rows * MR * slice.start..];
            let walk = Walk {
                rows: 1,
                depth: slice.depth,
                left_row: 0,
                right_row: 0,
                right_step: NR,
            };
            let mut first = self.rows.start;
            while first < self.rows.end {
                let last = self.rows.end.min(first + CHUNK);
                for panel in (0..count).filter(|&panel| filled[panel]) {
                    let right = &strip[panel * strip_length..][..slice.depth * NR];
                    for row in first..last {
                        let left = &weight[row * MR * slice.depth..][..MR * slice.depth];
                        let at = ((row - self.rows.start) * count + panel) * BLOCK;
                        let sums = &mut sums[at..][..BLOCK];
                        // SAFETY: the slices hold `depth` steps and a block.
                        unsafe {
                            multiply::<AVX2>(
                                walk,
                                left.as_ptr(),
                                right.as_ptr(),
                                sums.as_mut_ptr(),
                            );
                        }
                    }
                }
                first = last;
            }
        }
        for (panel, runs) in runs.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.store::<AVX2>(panel, runs, count, sums) };
        }
    }

    /// Fills each panel's `[product][NR]` with the input's values. A panel that only sees padding is
    /// not `filled`.
    #[inline(always)]
    fn gather<const AVX2: bool>(
        &self,
        slice: &Slice,
        runs: &[Vec<Run>],
        reached: &mut Vec<Reached>,
        strip: &mut [f32],
        strip_length: usize,
        filled: &mut [bool],
    ) {
        let problem = self.problem;
        let plane = problem.input[0] * problem.input[1];
        let step = problem.step[1];
        filled.fill(false);
        let mut at = 0;
        for segment in &slice.segments {
            let depth = segment.last - segment.first;
            reached.clear();
            for (panel, runs) in runs.iter().enumerate() {
                let before = reached.len();
                problem.reach(panel, runs, problem.taps[segment.tap], reached);
                let lanes: usize = reached[before..].iter().map(|part| part.length).sum();
                filled[panel] |= lanes > 0;
                if lanes < NR {
                    strip[panel * strip_length + at..][..depth * NR].fill(0.0);
                }
            }
            // Channels outermost: each lies in pages of its own, and its pixels are neighbours.
            for channel in 0..depth {
                let source = &self.input[(segment.first + channel) * plane..][..plane];
                for part in reached.iter() {
                    let target = part.panel * strip_length + at + channel * NR;
                    if part.length == NR && step == 1 {
                        let target = &mut strip[target..target + NR];
                        E::widen_run::<AVX2>(&source[part.offset..part.offset + NR], target);
                        continue;
                    }
                    let target = &mut strip[target + part.lane..][..part.length];
                    if step == 1 {
                        let source = &source[part.offset..part.offset + part.length];
                        E::widen_run::<AVX2>(source, target);
                    } else {
                        let source = source[part.offset..].iter().step_by(step);
                        for (target, source) in target.iter_mut().zip(source) {
                            *target = source.widen();
                        }
                    }
                }
            }
            at += depth * NR;
        }
    }

    /// Adds what follows the sums, rounds and stores.
    ///
    /// # Safety
    /// As [`Self::compute`].
    #[inline(always)]
    unsafe fn store<const AVX2: bool>(
        &self,
        panel: usize,
        runs: &[Run],
        count: usize,
        sums: &mut [f32],
    ) {
        let problem = self.problem;
        let plane = problem.output[0] * problem.output[1];
        let m = problem.channels[1];
        for channel in self.rows.start * MR..m.min(self.rows.end * MR) {
            let row = channel / MR - self.rows.start;
            let values = &mut sums[(row * count + panel) * BLOCK + channel % MR * NR..][..NR];
            for run in runs {
                let y = run.y * problem.output_step[0] + problem.output_base[0];
                let x = run.x * problem.output_step[1] + problem.output_base[1];
                let values = &mut values[run.lane..run.lane + run.length];
                let at = self.start + channel * plane + y * problem.output[1] + x;
                let target = self.output.at(at);
                if problem.output_step[1] == 1 {
                    // SAFETY: a run's pixels are neighbours inside one row of the output, and this
                    // task's own.
                    let target = unsafe { std::slice::from_raw_parts_mut(target, values.len()) };
                    self.tail
                        .apply::<AVX2>(self.group * m + channel, at, values);
                    E::narrow_run::<AVX2>(values, target);
                } else {
                    // An input gradient, which nothing follows.
                    for (i, &value) in values.iter().enumerate() {
                        // SAFETY: as above, with other pixels between them.
                        unsafe { *target.add(i * problem.output_step[1]) = E::narrow(value) };
                    }
                }
            }
        }
    }
}
