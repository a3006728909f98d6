//! What is computed: taps, slices of the sums, and where the pixels of a panel lie.

use super::super::geometry::inside;
use super::super::micro::Core;

/// One tap: which of the kernel's, and how far its input pixel is from the position of the output.
#[derive(Clone, Copy)]
pub struct Tap {
    pub index: usize,
    pub offset: [isize; 2],
}

/// Channels `first..last` of one tap.
#[derive(Clone, Copy)]
pub struct Segment {
    pub tap: usize,
    pub first: usize,
    pub last: usize,
}

impl Segment {
    /// Products, with the zeros that make them whole pairs.
    pub fn padded<C: Core>(&self) -> usize {
        (self.last - self.first).next_multiple_of(C::PAIR)
    }
}

/// Segments whose products are summed in one go.
pub struct Slice {
    pub segments: Vec<Segment>,
    /// Products, with the zeros that fill the last step.
    pub depth: usize,
    /// Products before this slice.
    pub start: usize,
}

/// One group of one convolution, for all images.
pub struct Problem {
    pub taps: Vec<Tap>,
    /// Channels that are summed, and channels that result, per group.
    pub channels: [usize; 2],
    /// Height and width of the positions that are computed.
    pub grid: [usize; 2],
    /// Pixels of the input from one position to the next.
    pub step: [usize; 2],
    pub input: [usize; 2],
    pub output: [usize; 2],
    /// Pixels of the output from one position to the next, and of the first.
    pub output_step: [usize; 2],
    pub output_base: [usize; 2],
}

/// A run of a panel's pixels that lie in one row of the grid.
#[derive(Clone, Copy)]
pub struct Run {
    pub lane: usize,
    pub length: usize,
    pub y: usize,
    pub x: usize,
}

/// Neighbouring pixels of a panel whose input exists, from `offset` in its plane.
#[derive(Clone, Copy)]
pub struct Reached {
    pub panel: usize,
    pub lane: usize,
    pub length: usize,
    pub offset: usize,
}

impl Problem {
    /// Long sums are cut inside taps, short ones take several taps.
    pub fn slices<C: Core>(&self) -> Vec<Slice> {
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

    /// A panel's pixels.
    pub fn runs<C: Core>(&self, panel: usize) -> Vec<Run> {
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
    pub fn reach(&self, panel: usize, runs: &[Run], tap: Tap, into: &mut Vec<Reached>) {
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
