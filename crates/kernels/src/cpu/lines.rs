//! Lines of a map, and lines between them.

use std::ops::Range;

use super::element::Element;
use super::isa::Isa;
use crate::maps::Between;

/// The line between `low` and `high`, value by value, in f32. All four have one length; `buffer` holds nothing after it.
#[inline(always)]
pub fn between<E: Element>(
    isa: Isa,
    [low, high]: [&[E]; 2],
    share: f32,
    line: &mut [f32],
    buffer: &mut [f32],
) {
    E::widen_run(isa, low, line);
    E::widen_run(isa, high, buffer);
    for (line, other) in line.iter_mut().zip(buffer) {
        *line = *line * (1.0 - share) + *other * share;
    }
}

/// Where the values of a resized line come from: those side by side that lie between the same two are made together.
pub struct Columns {
    runs: Vec<Run>,
    shares: Vec<f32>,
}

struct Run {
    low: usize,
    high: usize,
    columns: Range<usize>,
}

impl Columns {
    pub fn new(columns: &[Between]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (column, at) in columns.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if (run.low, run.high) == (at.low, at.high) => run.columns.end += 1,
                _ => runs.push(Run {
                    low: at.low,
                    high: at.high,
                    columns: column..column + 1,
                }),
            }
        }
        let shares = columns.iter().map(|column| column.share).collect();
        Self { runs, shares }
    }

    /// Values of a resized line.
    pub fn count(&self) -> usize {
        self.shares.len()
    }

    /// Writes the resized `line` into `target`, which has [`Self::count`] values.
    #[inline(always)]
    pub fn resize(&self, line: &[f32], target: &mut [f32]) {
        for run in &self.runs {
            let (low, high) = (line[run.low], line[run.high]);
            let columns = run.columns.clone();
            let shares = &self.shares[columns.clone()];
            for (target, share) in target[columns].iter_mut().zip(shares) {
                *target = low * (1.0 - share) + high * share;
            }
        }
    }
}
