//! Memory that threads share, and memory that starts with a cache line.

use std::mem::MaybeUninit;

use super::tasks;

/// A pointer into a buffer of which every thread writes a part of its own.
#[derive(Clone, Copy)]
pub struct Shared<T>(pub *mut T);

// SAFETY: who makes one keeps the parts apart.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The value at `offset`. A method, so that closures capture the whole and not the pointer inside it.
    pub fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }

    /// What begins at `offset`.
    pub fn from(self, offset: usize) -> Self {
        Self(self.at(offset))
    }
}

/// Asks for the cache lines of `count` values, some of which may not exist.
#[inline(always)]
pub fn prefetch<E>(values: &[E], first: usize, count: usize) {
    prefetch_from(values.as_ptr().wrapping_add(first), count);
}

/// As [`prefetch`].
#[inline(always)]
pub fn prefetch_from<E>(first: *const E, count: usize) {
    const TO_READ: i32 = 3;
    fetch::<TO_READ, E>(first, count);
}

/// As [`prefetch_from`], into the second-level cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn prefetch_nearby<E>(first: *const E, count: usize) {
    const TO_READ_LATER: i32 = 2;
    fetch::<TO_READ_LATER, E>(first, count);
}

/// As [`prefetch`], for values that will be written.
#[inline(always)]
pub fn prefetch_to_write<E>(first: *const E, count: usize) {
    const TO_WRITE: i32 = 7;
    fetch::<TO_WRITE, E>(first, count);
}

/// With x86's `_MM_HINT_T0`, `_MM_HINT_T1` or `_MM_HINT_ET0`.
#[inline(always)]
fn fetch<const HINT: i32, E>(first: *const E, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..count).step_by((64 / size_of::<E>()).max(1)) {
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(first.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, count);
}

/// A cache line.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([[u8; 32]; 2]);

impl Line {
    /// Lines that hold `length` values.
    fn count<T>(length: usize) -> usize {
        (length * size_of::<T>()).div_ceil(size_of::<Self>())
    }
}

/// Values that start with a cache line: a vector that spans two lines takes two loads.
pub struct Aligned<T> {
    lines: Vec<Line>,
    length: usize,
    values: std::marker::PhantomData<T>,
}

impl<T: bytemuck::Pod + Send + Sync> Aligned<T> {
    /// Cleared by all threads.
    pub fn zeros(length: usize) -> Self {
        const TASK: usize = 1 << 16;
        let clear = |target: Shared<T>| {
            tasks::each(length.div_ceil(TASK), |task| {
                let first = task * TASK;
                // SAFETY: there is room for the values; zero is all bits clear.
                unsafe { target.at(first).write_bytes(0, TASK.min(length - first)) };
            });
        };
        // SAFETY: all are written.
        unsafe { Self::written(length, clear) }
    }

    /// What `fill` writes: clearing a large buffer first would be a pass over it by one thread.
    ///
    /// # Safety
    /// `fill` writes all `length` values.
    pub unsafe fn written(length: usize, fill: impl FnOnce(Shared<T>)) -> Self {
        let count = Line::count::<T>(length);
        let mut lines = Vec::<Line>::with_capacity(count);
        if let Some(last) = lines.spare_capacity_mut()[..count].last_mut() {
            last.write(Line::default());
        }
        fill(Shared(lines.as_mut_ptr().cast()));
        // SAFETY: the values were written, and what follows them in the last line was cleared.
        unsafe { lines.set_len(count) };
        Self {
            lines,
            length,
            values: std::marker::PhantomData,
        }
    }
}

impl<T: bytemuck::Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl<T: bytemuck::Pod> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

/// Room for values, which starts with a cache line. It is not cleared: that would be a pass over memory
/// by one thread.
pub struct Room(Vec<MaybeUninit<Line>>);

impl Room {
    /// For `length` values.
    pub fn new(length: usize) -> Self {
        let count = Line::count::<f32>(length);
        let mut lines = Vec::with_capacity(count);
        // SAFETY: lines that may be uninitialised need no values.
        unsafe { lines.set_len(count) };
        Self(lines)
    }

    /// Until the room is dropped.
    pub fn values(&mut self) -> Shared<f32> {
        Shared(self.0.as_mut_ptr().cast())
    }
}

/// Runs `body` with two buffers of this thread, of these lengths and of unspecified content; both
/// start with a cache line.
pub fn with_scratch<T: bytemuck::Pod, R>(
    lengths: [usize; 2],
    body: impl FnOnce(&mut [T], &mut [f32]) -> R,
) -> R {
    use std::cell::RefCell;
    thread_local!(static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|scratch| {
        let counts = [Line::count::<T>(lengths[0]), Line::count::<f32>(lengths[1])];
        let wanted = counts[0] + counts[1];
        if scratch.len() < wanted {
            // What it held is not wanted, and would be copied.
            *scratch = Vec::new();
            *scratch = vec![Line::default(); wanted];
        }
        let (values, sums) = scratch[..wanted].split_at_mut(counts[0]);
        let values = &mut bytemuck::cast_slice_mut(values)[..lengths[0]];
        body(values, &mut bytemuck::cast_slice_mut(sums)[..lengths[1]])
    })
}
