//! The system's allocator, counted: for tests that are alone in their program and measure what it has
//! allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

struct Counted;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Bytes that the program has allocated.
pub fn allocated() -> u64 {
    NOW.load(Relaxed)
}

/// The most bytes that it had allocated at a time, since [`forget_peak`].
pub fn peak() -> u64 {
    PEAK.load(Relaxed)
}

/// Takes what is allocated for the peak, and returns it.
pub fn forget_peak() -> u64 {
    let now = allocated();
    PEAK.store(now, Relaxed);
    now
}

/// Counts an allocation that the system has given.
fn grown(memory: *mut u8, bytes: usize) -> *mut u8 {
    if !memory.is_null() {
        let bytes = bytes as u64;
        PEAK.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
    }
    memory
}

// SAFETY: every call is the system allocator's, with the caller's promises.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        grown(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        grown(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as u64, Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}
