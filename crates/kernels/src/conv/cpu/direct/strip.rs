//! The pixels of one task: gathered, multiplied, finished.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::micro::{Core, Walk};
use super::super::tail::Tail;
use super::problem::{Problem, Reached, Run, Slice};
use crate::cpu::element::Element;
use crate::cpu::isa::{Registers, Work};
use crate::cpu::scratch::{Shared, prefetch, prefetch_to_write};

/// Values of the left operand that stay in the second-level cache beside the strip.
const CHUNK: usize = 96 << 10;

/// Channels that are fetched ahead of those that are packed: each lies in pages of its own, where the
/// processor does not look ahead by itself.
const AHEAD: usize = 2;

/// The most columns that a block has.
const MOST: usize = 48;

/// A strip of pixels of one image and group, and the output channels of one task.
pub struct Strip<'a, E, C: Core> {
    pub problem: &'a Problem,
    pub slices: &'a [Slice],
    pub weight: &'a [C::Value],
    pub input: &'a [E],
    pub panels: std::ops::Range<usize>,
    /// Panels of `MR` output channels.
    pub rows: std::ops::Range<usize>,
    pub tail: Tail<'a, E>,
    pub group: usize,
    /// Where this image's and group's part of the output starts.
    pub start: usize,
    pub output: Shared<E>,
    /// Cleared where packed values do not mean what the elements do: the output is not wanted then.
    pub exact: &'a AtomicBool,
    pub core: PhantomData<C>,
}

impl<E: Element, C: Core> Work for (&Strip<'_, E, C>, &mut [C::Value], &mut [f32]) {
    #[inline(always)]
    unsafe fn run(self, registers: &Registers) {
        let (strip, values, sums) = self;
        // SAFETY: the caller's promises are the same.
        unsafe { strip.compute(registers, values, sums) }
    }
}

impl<E: Element, C: Core> Strip<'_, E, C> {
    /// Whether the left operand, no narrower than the right one, stays in the first-level cache.
    const LEFT_STAYS: bool = C::NR <= C::MR;

    /// Neighbouring panels whose sums are stored channel by channel. Channels lie powers of two apart, so that
    /// lines of many of them meet in one set of the first-level cache; those of one do not.
    const STORED: usize = if Self::LEFT_STAYS { 8 } else { 1 };

    /// Values of a panel's part of the strip.
    fn panel_length(&self) -> usize {
        let deepest = self.slices.iter().map(|slice| slice.depth).max();
        deepest.unwrap_or(0) * C::RIGHT
    }

    /// Values of the strip, and sums: of all blocks, or of those that are stored together.
    pub fn lengths(&self) -> [usize; 2] {
        let blocks = if self.slices.len() > 1 {
            self.rows.len() * self.panels.len()
        } else {
            Self::STORED.min(self.panels.len())
        };
        [self.panel_length() * self.panels.len(), blocks * C::BLOCK]
    }

    /// # Safety
    /// No other thread writes this strip's pixels of this task's channels, and `output` has them.
    /// The processor has the core's instructions.
    #[inline(always)]
    unsafe fn compute(&self, registers: &Registers, strip: &mut [C::Value], sums: &mut [f32]) {
        const { assert!(C::NR <= MOST) };
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
            let exact =
                // SAFETY: the caller promises the instructions.
                unsafe { self.gather(slice, &runs, &mut reached, strip, panel_length, &mut filled) };
            if !exact {
                self.exact.store(false, Ordering::Relaxed);
            }
            if !self.exact.load(Ordering::Relaxed) {
                return;
            }
            let weight = &self.weight[all_rows * C::LEFT * slice.start..];
            let walk = Walk::packed::<C>(slice.depth);
            // If operands are alike the left one stays: then neighbouring pixels of the output follow each
            // other.
            let chunk = if Self::LEFT_STAYS {
                1
            } else {
                (CHUNK / (slice.depth * C::LEFT)).max(1)
            };
            let mut first = self.rows.start;
            while first < self.rows.end {
                let last = self.rows.end.min(first + chunk);
                for panel in 0..count {
                    if !filled[panel] && !last_slice {
                        continue;
                    }
                    // The panels that are stored together with this one.
                    let stored = panel / Self::STORED * Self::STORED
                        ..count.min((panel / Self::STORED + 1) * Self::STORED);
                    let right = &strip[panel * panel_length..][..slice.depth * C::RIGHT];
                    for row in first..last {
                        let left = &weight[row * C::LEFT * slice.depth..][..C::LEFT * slice.depth];
                        let at = if self.slices.len() > 1 {
                            (row - self.rows.start) * count + stored.start
                        } else {
                            0
                        };
                        let blocks = &mut sums[at * C::BLOCK..][..stored.len() * C::BLOCK];
                        let block = &mut blocks[(panel - stored.start) * C::BLOCK..][..C::BLOCK];
                        if last_slice {
                            self.fetch_output(row, &runs[panel]);
                        }
                        if filled[panel] {
                            // SAFETY: the slices hold `depth` products and a block.
                            unsafe {
                                C::multiply(
                                    registers,
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
                        if last_slice && panel + 1 == stored.end {
                            // SAFETY: the caller's promise.
                            unsafe { self.store(row, &runs[stored.clone()], blocks) };
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

    /// Packs each panel's input values. A panel that only sees padding is not `filled`. Returns what
    /// [`Core::gather`] does.
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
    ) -> bool {
        let problem = self.problem;
        let plane = problem.input[0] * problem.input[1];
        let step = problem.step[1];
        filled.fill(false);
        let mut exact = true;
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
                    strip[panel * panel_length + at * C::RIGHT..][..depth * C::RIGHT]
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
                let row = (at + channel - segment.first) * C::RIGHT;
                for part in reached.iter() {
                    let target = part.panel * panel_length + row;
                    let target = &mut strip[target..target + C::RIGHT * C::PAIR];
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
                        // SAFETY: the caller promises the instructions.
                        exact &= if part.length == C::NR {
                            let sources =
                                sources.map(|source| source.map(|source| &source[..C::NR]));
                            unsafe { C::gather(sources, target, 0) }
                        } else {
                            // SAFETY: as above.
                            unsafe { C::gather(sources, target, part.lane) }
                        };
                        continue;
                    }
                    // Side by side first.
                    let mut near = [[E::default(); MOST]; 2];
                    for (near, source) in near.iter_mut().zip(sources) {
                        let source = source.map_or(&[][..], |source| &source[part.offset..]);
                        let source = source.iter().step_by(step).take(part.length);
                        for (near, source) in near.iter_mut().zip(source) {
                            *near = *source;
                        }
                    }
                    let near = [0, 1].map(|half| sources[half].map(|_| &near[half][..part.length]));
                    // SAFETY: as above.
                    exact &= unsafe { C::gather(near, target, part.lane) };
                }
            }
            at += depth;
        }
        if at < slice.depth {
            for panel in 0..runs.len() {
                strip[panel * panel_length + at * C::RIGHT
                    ..panel * panel_length + slice.depth * C::RIGHT]
                    .fill(C::Value::default());
            }
        }
        exact
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

    /// Adds what follows the sums of a panel of channels, rounds and stores: the blocks of neighbouring panels.
    ///
    /// # Safety
    /// As [`Self::compute`].
    #[inline(always)]
    unsafe fn store(&self, row: usize, runs: &[Vec<Run>], blocks: &mut [f32]) {
        let problem = self.problem;
        let plane = problem.output[0] * problem.output[1];
        let m = problem.channels[1];
        let channels = (m - row * C::MR).min(C::MR);
        for lane in 0..channels {
            let channel = row * C::MR + lane;
            for (runs, block) in runs.iter().zip(blocks.chunks_exact_mut(C::BLOCK)) {
                let values = &mut block[lane * C::NR..][..C::NR];
                for run in runs {
                    let y = run.y * problem.output_step[0] + problem.output_base[0];
                    let x = run.x * problem.output_step[1] + problem.output_base[1];
                    let values = &mut values[run.lane..run.lane + run.length];
                    let at = self.start + channel * plane + y * problem.output[1] + x;
                    let target = self.output.at(at);
                    if problem.output_step[1] == 1 {
                        // SAFETY: a run's pixels are neighbours inside one row of the output, and
                        // this task's own.
                        let target =
                            unsafe { std::slice::from_raw_parts_mut(target.cast(), values.len()) };
                        let channel = self.group * m + channel;
                        self.tail.store(C::ISA, channel, at, values, target);
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
}
