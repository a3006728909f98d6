//! Work that all threads share.

use std::cell::Cell;
use std::time::Instant;

use rayon::prelude::*;

/// What this thread has shared out since it began to watch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    /// Seconds in which tasks ran.
    pub seconds: f64,
    /// Into how many tasks the work was cut that took longest; 0 if there was none.
    pub tasks: usize,
    /// How long that took.
    longest: f64,
}

thread_local! {
    static WATCHED: Cell<Option<Shares>> = const { Cell::new(None) };
}

/// Runs `body` and tells what it shared out, from this thread.
pub fn watch<R>(body: impl FnOnce() -> R) -> (R, Shares) {
    WATCHED.set(Some(Shares::default()));
    let result = body();
    (result, WATCHED.take().unwrap_or_default())
}

/// Runs `body` on one of the threads that run tasks. Each loop that any other thread begins waits until one of them has woken
/// up: ten to a hundred microseconds.
pub fn together<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    rayon::join(body, || ()).0
}

/// Calls `task` with each number below `count`, on all threads.
pub fn each(count: usize, task: impl Fn(usize) + Send + Sync) {
    shared(count, || (0..count).into_par_iter().for_each(task));
}

/// Calls `task` with the place and the values of each chunk of `length` values, of which the last may be shorter, on all
/// threads.
///
/// # Panics
/// If `length` is 0.
pub fn each_chunk<T: Send>(
    values: &mut [T],
    length: usize,
    task: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    let count = values.len().div_ceil(length);
    let chunks = values.par_chunks_mut(length).enumerate();
    shared(count, || {
        chunks.for_each(|(index, chunk)| task(index, chunk))
    });
}

fn shared(tasks: usize, run: impl FnOnce()) {
    let Some(mut shares) = WATCHED.get() else {
        return run();
    };
    let start = Instant::now();
    run();
    let seconds = start.elapsed().as_secs_f64();
    shares.seconds += seconds;
    if seconds >= shares.longest {
        (shares.longest, shares.tasks) = (seconds, tasks);
    }
    WATCHED.set(Some(shares));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn tasks_are_counted_and_timed_while_that_is_wanted() {
        let sum = AtomicUsize::new(0);
        let short = || {
            each(7, |index| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
        };
        let long = || {
            each_chunk(&mut [1; 10], 4, |index, chunk| {
                std::thread::sleep(std::time::Duration::from_millis(2));
                sum.fetch_add(100 * index + chunk.len(), Ordering::Relaxed);
            });
        };
        let ((), shares) = watch(short);
        assert_eq!(shares.tasks, 7);
        let ((), shares) = watch(long);
        assert_eq!(shares.tasks, 3);
        assert!(shares.seconds >= shares.longest && shares.longest >= 0.002);
        assert_eq!(sum.load(Ordering::Relaxed), 21 + 300 + 10);
        // Of both, whichever took longer: on a busy machine that may be the short one.
        let work = || {
            short();
            long();
        };
        let ((), both) = watch(work);
        assert!([3, 7].contains(&both.tasks) && both.seconds >= both.longest);
        // Nobody asks.
        work();
        assert!(WATCHED.get().is_none());
    }
}
