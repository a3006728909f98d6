//! Forward pass and input gradient: `out[m, p] = sum over taps and channels of
//! weight[tap, c, m] * in[c, position(p) + offset(tap)]`.

use std::any::TypeId;
use std::marker::PhantomData;

use rayon::prelude::*;

use super::geometry::{Geometry, inside};
use super::micro::{Core, Walk};
use super::tail::Tail;
use super::weight::{Weight, rounded};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Work, compiled};
use crate::cpu::scratch::{Aligned, Shared, prefetch, prefetch_to_write, with_scratch};

/// Values of the left operand that stay in the second-level cache beside the strip.
const CHUNK: usize = 96 << 10;

/// Channels that are fetched ahead of those that are packed: each lies in pages of its own, where the
/// processor does not look ahead by itself.
const AHEAD: usize = 2;

/// Channels of a weight that are packed for all rows of a panel before the next ones.
const TOGETHER: usize = 32;

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

impl Segment {
    /// Products, with the zeros that make them whole pairs.
    fn padded<C: Core>(&self) -> usize {
        (self.last - self.first).next_multiple_of(C::PAIR)
    }
}

/// Segments whose products are summed in one go.
struct Slice {
    segments: Vec<Segment>,
    /// Products, with the zeros that fill the last step.
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

/// Writes every output.
///
/// # Safety
/// `output` has room for the output; the processor has the core's instructions.
pub unsafe fn forward<C: Core, E: Element, W: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    output: Shared<E>,
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
    // SAFETY: the caller's promises.
    unsafe { problem.run::<C, E, W>(geometry, x, weight, strides, tail, output) };
}

/// A stride scatters the output's gradient over the input's; each residue of the stride is a problem
/// of its own, with the taps that reach it.
///
/// # Safety
/// `result` has room for the input; the processor has the core's instructions.
pub unsafe fn input_gradient<C: Core, E: Element, W: Element>(
    geometry: &Geometry,
    weight: &[W],
    gradient: &[E],
    result: Shared<E>,
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
            let weight = Weight::plain(weight);
            let tail = Tail::none();
            // SAFETY: the caller's promises.
            unsafe { problem.run::<C, E, W>(geometry, gradient, weight, strides, tail, result) };
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
    /// # Safety
    /// `output` has room for the output; the processor has the core's instructions.
    unsafe fn run<C: Core, E: Element, W: Element>(
        &self,
        geometry: &Geometry,
        input: &[E],
        weight: Weight<'_, W>,
        strides: WeightStrides,
        tail: Tail<'_, E>,
        output: Shared<E>,
    ) {
        let groups = geometry.options.groups;
        let [c, m] = self.channels;
        let slices = self.slices::<C>();
        let packed: Vec<Aligned<C::Value>> = (0..groups)
            .map(|group| self.pack_weight::<C, E, W>(&slices, weight.group(group, groups), strides))
            .collect();
        let panels = (self.grid[0] * self.grid[1]).div_ceil(C::NR);
        let rows = m.div_ceil(C::MR);
        let deepest = slices.iter().map(|slice| slice.depth).max().unwrap_or(0);
        // Enough tasks for every thread; few pixels are shared out by output channels.
        let wanted = 3 * rayon::current_num_threads();
        let per_task = (C::STRIP / (deepest * C::NR).max(1)).clamp(
            1,
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
                let strip = Strip::<E, C> {
                    problem: self,
                    slices: &slices,
                    weight: &packed[group],
                    input: &input[(image * groups + group) * c * plane..][..c * plane],
                    panels: strip * per_task..panels.min((strip + 1) * per_task),
                    rows,
                    tail,
                    group,
                    start: (image * groups + group) * m * self.output[0] * self.output[1],
                    output,
                    core: PhantomData,
                };
                with_scratch(strip.lengths(), |values: &mut [C::Value], sums| {
                    // SAFETY: the caller's promises; tasks write disjoint pixels or channels.
                    unsafe { compiled(C::ISA, (&strip, values, sums)) }
                });
            });
    }

    /// Long sums are cut inside taps, short ones take several taps.
    fn slices<C: Core>(&self) -> Vec<Slice> {
        let c = self.channels[0];
        let mut slices: Vec<Slice> = Vec::new();
        let mut start = 0;
        let cuts = c.div_ceil(C::DEPTH);
        // Cuts are whole steps, so that zeros fill only the last.
        let cut_at = |cut: usize| (c * cut / cuts).next_multiple_of(C::STEP).min(c);
        for tap in 0..self.taps.len() {
            for cut in 0..cuts {
                let segment = Segment {
                    tap,
                    first: cut_at(cut),
                    last: cut_at(cut + 1),
                };
                let length = segment.padded::<C>();
                match slices.last_mut() {
                    Some(last) if last.depth + length <= C::DEPTH => {
                        last.segments.push(segment);
                        last.depth += length;
                    }
                    _ => slices.push(Slice {
                        segments: vec![segment],
                        depth: length,
                        start: 0,
                    }),
                }
            }
        }
        for slice in &mut slices {
            slice.depth = slice.depth.next_multiple_of(C::STEP);
            slice.start = start;
            start += slice.depth;
        }
        slices
    }

    /// `[slice][panel of MR channels]`, each as the core packs it; what fills up is zero.
    fn pack_weight<C: Core, E: Element, W: Element>(
        &self,
        slices: &[Slice],
        weight: Weight<'_, W>,
        strides: WeightStrides,
    ) -> Aligned<C::Value> {
        let m = self.channels[1];
        let rows = m.div_ceil(C::MR);
        let depth: usize = slices.iter().map(|slice| slice.depth).sum();
        let fill = |target: Shared<C::Value>| {
            (0..rows).into_par_iter().for_each(|row| {
                let work = PackRow::<E, W, C> {
                    problem: self,
                    slices,
                    weight,
                    strides,
                    row,
                    target,
                    core: PhantomData,
                };
                // Nothing is multiplied here.
                let isa = C::ISA.min(Isa::Avx512);
                // SAFETY: cores are chosen by what the processor has; each row of panels is one
                // task's own.
                unsafe { compiled(isa, work) };
            });
        };
        // SAFETY: every row of every slice is written, the rest of it cleared before.
        unsafe { Aligned::written(rows * C::MR * depth, fill) }
    }

    fn runs<C: Core>(&self, panel: usize) -> Vec<Run> {
        let width = self.grid[1];
        let (first, last) = (
            panel * C::NR,
            (self.grid[0] * width).min((panel + 1) * C::NR),
        );
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

/// Packs a weight for one panel of output channels, in all slices.
struct PackRow<'a, E, W, C: Core> {
    problem: &'a Problem,
    slices: &'a [Slice],
    weight: Weight<'a, W>,
    strides: WeightStrides,
    row: usize,
    target: Shared<C::Value>,
    core: PhantomData<(C, E)>,
}

impl<E: Element, W: Element, C: Core> Work for PackRow<'_, E, W, C> {
    /// # Safety
    /// The target has room for the whole weight; no other thread writes this panel's part.
    #[inline(always)]
    unsafe fn run(self) {
        let m = self.problem.channels[1];
        let rows = m.div_ceil(C::MR);
        let lanes = C::MR.min(m - self.row * C::MR);
        // Each segment, where its slice is packed, and its first product in there.
        let mut places = Vec::new();
        for slice in self.slices {
            let panel = rows * C::MR * slice.start + self.row * C::MR * slice.depth;
            let panel = self.target.at(panel);
            let products: usize = slice.segments.iter().map(|s| s.last - s.first).sum();
            if lanes < C::MR || products < slice.depth {
                // SAFETY: the caller's promise; zero is all bits clear.
                unsafe { panel.write_bytes(0, C::MR * slice.depth) };
            }
            let mut step = 0;
            for &segment in &slice.segments {
                places.push((segment, panel, step));
                step += segment.padded::<C>();
            }
        }
        // A few channels for all taps and lanes, two of which are neighbours in the weight: its cache
        // lines are still there for the next one.
        places.sort_by_key(|(segment, ..)| segment.first);
        for places in places.chunk_by(|(a, ..), (b, ..)| a.first == b.first) {
            let all = places[0].0.first..places[0].0.last;
            for first in all.clone().step_by(TOGETHER) {
                let count = TOGETHER.min(all.end - first);
                for &(segment, panel, step) in places {
                    let tap = self.problem.taps[segment.tap].index;
                    for lane in 0..lanes {
                        // SAFETY: the caller's promise.
                        unsafe {
                            self.pack(tap, [first, count], lane, panel, step + first - all.start)
                        };
                    }
                }
            }
        }
    }
}

impl<E: Element, W: Element, C: Core> PackRow<'_, E, W, C> {
    /// Packs `count` channels of one tap as products from `step` on of row `lane`.
    ///
    /// # Safety
    /// The packed panel has these products.
    #[inline(always)]
    unsafe fn pack(
        &self,
        tap: usize,
        [first, count]: [usize; 2],
        lane: usize,
        panel: *mut C::Value,
        step: usize,
    ) {
        let out = self.row * C::MR + lane;
        let stride = self.strides.c;
        let start = tap * self.strides.tap + out * self.strides.m + first * stride;
        let source = &self.weight.values[start..=start + (count - 1) * stride];
        let mut values = [E::default(); TOGETHER];
        let values = &mut values[..count];
        match self.weight.scale.map(|scale| scale[out]) {
            None if TypeId::of::<W>() == TypeId::of::<E>() => {
                for (value, source) in values.iter_mut().zip(source.iter().step_by(stride)) {
                    *value = rounded(*source, None);
                }
            }
            scale => {
                let mut wide = [0f32; TOGETHER];
                for (wide, source) in wide.iter_mut().zip(source.iter().step_by(stride)) {
                    *wide = source.widen();
                }
                if let Some(scale) = scale {
                    wide.iter_mut().for_each(|wide| *wide *= scale);
                }
                E::narrow_run(C::ISA, &wide[..count], values);
            }
        }
        let at = C::left_at(step, lane);
        // Inside whole steps products of a row are equally far apart.
        let even = C::STEP == 1 || step.is_multiple_of(C::STEP) && count <= C::STEP;
        let apart = C::left_at(step + 1, lane) - at;
        for (i, &value) in values.iter().enumerate() {
            let at = match (even, apart) {
                (true, 1) => at + i,
                (true, apart) => at + i * apart,
                (false, _) => C::left_at(step + i, lane),
            };
            // SAFETY: the caller's promise; `left_at` tells where.
            unsafe { *panel.add(at) = C::value(value) };
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
struct Strip<'a, E, C: Core> {
    problem: &'a Problem,
    slices: &'a [Slice],
    weight: &'a [C::Value],
    input: &'a [E],
    panels: std::ops::Range<usize>,
    /// Panels of `MR` output channels.
    rows: std::ops::Range<usize>,
    tail: Tail<'a, E>,
    group: usize,
    /// Where this image's and group's part of the output starts.
    start: usize,
    output: Shared<E>,
    core: PhantomData<C>,
}

impl<E: Element, C: Core> Work for (&Strip<'_, E, C>, &mut [C::Value], &mut [f32]) {
    #[inline(always)]
    unsafe fn run(self) {
        let (strip, values, sums) = self;
        // SAFETY: the caller's promises are the same.
        unsafe { strip.compute(values, sums) }
    }
}

impl<E: Element, C: Core> Strip<'_, E, C> {
    /// Values of a panel's part of the strip.
    fn panel_length(&self) -> usize {
        let deepest = self.slices.iter().map(|slice| slice.depth).max();
        deepest.unwrap_or(0) * C::NR
    }

    /// Values of the strip, and sums: of all blocks, or of one if each is done at once.
    fn lengths(&self) -> [usize; 2] {
        let blocks = if self.slices.len() > 1 {
            self.rows.len() * self.panels.len()
        } else {
            1
        };
        [self.panel_length() * self.panels.len(), blocks * C::BLOCK]
    }

    /// # Safety
    /// No other thread writes this strip's pixels of this task's channels, and `output` has them.
    /// The processor has the core's instructions.
    #[inline(always)]
    unsafe fn compute(&self, strip: &mut [C::Value], sums: &mut [f32]) {
        let count = self.panels.len();
        let panel_length = self.panel_length();
        let runs: Vec<Vec<Run>> = self
            .panels
            .clone()
            .map(|panel| self.problem.runs::<C>(panel))
            .collect();
        let mut reached = Vec::new();
        let mut filled = vec![false; count];
        // Whether a panel's sums hold something.
        let mut begun = vec![false; count];
        let all_rows = self.problem.channels[1].div_ceil(C::MR);
        for (index, slice) in self.slices.iter().enumerate() {
            let last_slice = index + 1 == self.slices.len();
            // SAFETY: the caller promises the instructions.
            unsafe { self.gather(slice, &runs, &mut reached, strip, panel_length, &mut filled) };
            let weight = &self.weight[all_rows * C::MR * slice.start..];
            let walk = Walk::packed::<C>(slice.depth);
            // The wider operand of a product stays in the first-level cache, the left one if they are
            // alike: then neighbouring pixels of the output follow each other.
            let chunk = if C::NR > C::MR {
                (CHUNK / (slice.depth * C::MR)).max(1)
            } else {
                1
            };
            let mut first = self.rows.start;
            while first < self.rows.end {
                let last = self.rows.end.min(first + chunk);
                for panel in 0..count {
                    if !filled[panel] && !last_slice {
                        continue;
                    }
                    let right = &strip[panel * panel_length..][..slice.depth * C::NR];
                    for row in first..last {
                        let left = &weight[row * C::MR * slice.depth..][..C::MR * slice.depth];
                        let at = if self.slices.len() > 1 {
                            (row - self.rows.start) * count + panel
                        } else {
                            0
                        };
                        let block = &mut sums[at * C::BLOCK..][..C::BLOCK];
                        if last_slice {
                            self.fetch_output(row, &runs[panel]);
                        }
                        if filled[panel] {
                            // SAFETY: the slices hold `depth` products and a block.
                            unsafe {
                                C::multiply(
                                    walk,
                                    left.as_ptr(),
                                    right.as_ptr(),
                                    block.as_mut_ptr(),
                                    begun[panel],
                                );
                            }
                        } else if !begun[panel] {
                            block.fill(0.0);
                        }
                        if last_slice {
                            // SAFETY: the caller's promise.
                            unsafe { self.store(row, &runs[panel], block) };
                        }
                    }
                }
                first = last;
            }
            for (begun, filled) in begun.iter_mut().zip(&filled) {
                *begun |= filled;
            }
        }
    }

    /// Packs each panel's input values. A panel that only sees padding is not `filled`.
    ///
    /// # Safety
    /// The processor has the core's instructions.
    #[inline(always)]
    unsafe fn gather(
        &self,
        slice: &Slice,
        runs: &[Vec<Run>],
        reached: &mut Vec<Reached>,
        strip: &mut [C::Value],
        panel_length: usize,
        filled: &mut [bool],
    ) {
        let problem = self.problem;
        let plane = problem.input[0] * problem.input[1];
        let step = problem.step[1];
        filled.fill(false);
        let mut at = 0;
        for segment in &slice.segments {
            let depth = segment.padded::<C>();
            reached.clear();
            for (panel, runs) in runs.iter().enumerate() {
                let before = reached.len();
                problem.reach(panel, runs, problem.taps[segment.tap], reached);
                let lanes: usize = reached[before..].iter().map(|part| part.length).sum();
                filled[panel] |= lanes > 0;
                if lanes < C::NR {
                    strip[panel * panel_length + at * C::NR..][..depth * C::NR]
                        .fill(C::Value::default());
                }
            }
            // Channels outermost: each lies in pages of its own, and its pixels are neighbours.
            for channel in (segment.first..segment.last).step_by(C::PAIR) {
                let source = |channel: usize| {
                    (channel < segment.last).then(|| &self.input[channel * plane..][..plane])
                };
                let sources = [
                    source(channel),
                    if C::PAIR == 2 {
                        source(channel + 1)
                    } else {
                        None
                    },
                ];
                let row = (at + channel - segment.first) * C::NR;
                for part in reached.iter() {
                    let target = part.panel * panel_length + row;
                    if step == 1 {
                        for half in 0..C::PAIR {
                            prefetch(
                                self.input,
                                (channel + AHEAD * C::PAIR + half) * plane + part.offset,
                                part.length,
                            );
                        }
                        let sources = sources.map(|source| {
                            source.map(|source| &source[part.offset..part.offset + part.length])
                        });
                        // Whole panels first: a length that is known compiles to a few moves.
                        if part.length == C::NR {
                            let target = &mut strip[target..target + C::NR * C::PAIR];
                            let sources =
                                sources.map(|source| source.map(|source| &source[..C::NR]));
                            // SAFETY: the caller promises the instructions.
                            unsafe { C::gather(sources, target) };
                        } else {
                            let target =
                                &mut strip[target + part.lane * C::PAIR..][..part.length * C::PAIR];
                            // SAFETY: as above.
                            unsafe { C::gather(sources, target) };
                        }
                        continue;
                    }
                    let target = &mut strip[target..];
                    for (half, source) in sources.iter().enumerate().take(C::PAIR) {
                        let Some(source) = source else { continue };
                        let source = source[part.offset..].iter().step_by(step);
                        for (lane, source) in source.take(part.length).enumerate() {
                            target[(part.lane + lane) * C::PAIR + half] = C::value(*source);
                        }
                    }
                    if C::PAIR == 2 && sources[1].is_none() {
                        for lane in part.lane..part.lane + part.length {
                            target[lane * C::PAIR + 1] = C::Value::default();
                        }
                    }
                }
            }
            at += depth;
        }
        if at < slice.depth {
            for panel in 0..runs.len() {
                strip
                    [panel * panel_length + at * C::NR..panel * panel_length + slice.depth * C::NR]
                    .fill(C::Value::default());
            }
        }
    }

    /// Fetches what [`Self::store`] reads and writes, while the last products are made: each channel
    /// lies in pages of its own.
    #[inline(always)]
    fn fetch_output(&self, row: usize, runs: &[Run]) {
        let problem = self.problem;
        if problem.output_step[1] != 1 {
            return;
        }
        let plane = problem.output[0] * problem.output[1];
        let channels = (problem.channels[1] - row * C::MR).min(C::MR);
        for channel in row * C::MR..row * C::MR + channels {
            for run in runs {
                let y = run.y * problem.output_step[0] + problem.output_base[0];
                let x = run.x + problem.output_base[1];
                let at = self.start + channel * plane + y * problem.output[1] + x;
                // The last value may lie in one more line than there are lines' worth of values.
                let last = at + run.length - 1;
                prefetch_to_write(self.output.at(at), run.length);
                prefetch_to_write(self.output.at(last), 1);
                if let Some(skip) = self.tail.skip {
                    prefetch(skip, at, run.length);
                    prefetch(skip, last, 1);
                }
            }
        }
    }

    /// Adds what follows the sums of a panel of channels, rounds and stores.
    ///
    /// # Safety
    /// As [`Self::compute`].
    #[inline(always)]
    unsafe fn store(&self, row: usize, runs: &[Run], block: &mut [f32]) {
        let problem = self.problem;
        let plane = problem.output[0] * problem.output[1];
        let m = problem.channels[1];
        let channels = (m - row * C::MR).min(C::MR);
        for (lane, values) in block.chunks_exact_mut(C::NR).enumerate().take(channels) {
            let channel = row * C::MR + lane;
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
                        .store(C::ISA, self.group * m + channel, at, values, target);
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
