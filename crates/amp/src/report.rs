//! Counts of what autocast did.

use std::cell::Cell;

use serde::Serialize;

/// How much casting happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CastReport {
    /// Tensors that were cast.
    pub casts: u64,
    /// Bytes that these casts wrote.
    pub bytes: u64,
    /// Uses of a weight whose cast was there already.
    pub cache_hits: u64,
}

thread_local! {
    static COUNTS: Cell<CastReport> = const {
        Cell::new(CastReport { casts: 0, bytes: 0, cache_hits: 0 })
    };
}

/// Runs `body` and counts the casts that it made on this thread through this crate.
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

impl std::fmt::Display for CastReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} casts, {:.1} MB, {} weight casts reused",
            self.casts,
            self.bytes as f64 / 1e6,
            self.cache_hits
        )
    }
}
