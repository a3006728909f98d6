//! Counts of what mixed precision took.

use std::cell::Cell;

use serde::Serialize;

/// How much casting happened, and how often the device was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CastReport {
    /// Tensors that were cast.
    pub casts: u64,
    /// Bytes that these casts wrote.
    pub bytes: u64,
    /// Uses of a weight whose cast was there already.
    pub cache_hits: u64,
    /// Times that this crate waited for the device to read numbers: once in a step of an enabled scaler.
    pub readbacks: u64,
}

thread_local! {
    static COUNTS: Cell<CastReport> = const {
        Cell::new(CastReport { casts: 0, bytes: 0, cache_hits: 0, readbacks: 0 })
    };
}

/// Runs `body` and counts the casts and readbacks that it made on this thread through this crate.
///
/// Casts of the backward pass (gradients cast back to the dtype of the activation) are not counted.
pub fn cast_report<R>(body: impl FnOnce() -> R) -> (R, CastReport) {
    let before = COUNTS.get();
    let result = body();
    let after = COUNTS.get();
    let report = CastReport {
        casts: after.casts - before.casts,
        bytes: after.bytes - before.bytes,
        cache_hits: after.cache_hits - before.cache_hits,
        readbacks: after.readbacks - before.readbacks,
    };
    (result, report)
}

pub(crate) fn count_cast(bytes: usize) {
    let mut counts = COUNTS.get();
    counts.casts += 1;
    counts.bytes += bytes as u64;
    COUNTS.set(counts);
}

pub(crate) fn count_hit() {
    let mut counts = COUNTS.get();
    counts.cache_hits += 1;
    COUNTS.set(counts);
}

pub(crate) fn count_readback() {
    let mut counts = COUNTS.get();
    counts.readbacks += 1;
    COUNTS.set(counts);
}

impl std::fmt::Display for CastReport {
    /// One line: `102 casts, 0.1 MB, 0 weight casts reused`, and `, 1 readback` where there was one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} casts, {:.1} MB, {} weight casts reused",
            self.casts,
            self.bytes as f64 / 1e6,
            self.cache_hits
        )?;
        match self.readbacks {
            0 => Ok(()),
            1 => f.write_str(", 1 readback"),
            more => write!(f, ", {more} readbacks"),
        }
    }
}
