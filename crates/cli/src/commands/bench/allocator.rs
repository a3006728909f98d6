//! The system's allocator, counted: what a training step keeps cannot be told from resident memory.

#![allow(unsafe_code, reason = "allocators are unsafe by their trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts the bytes that are allocated, now and at their highest.
struct Counted;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Bytes that the program has allocated.
pub fn allocated() -> u64 {
    NOW.load(Relaxed)
}

/// The most bytes that it had allocated at a time.
pub fn peak() -> u64 {
    PEAK.load(Relaxed)
}

fn grown(bytes: usize) {
    let now = NOW.fetch_add(bytes as u64, Relaxed) + bytes as u64;
    PEAK.fetch_max(now, Relaxed);
}

fn shrunk(bytes: usize) {
    NOW.fetch_sub(bytes as u64, Relaxed);
}

// SAFETY: every call is the system allocator's, with the caller's promises.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        shrunk(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Lets the tests that count wait for each other.
#[cfg(test)]
pub fn count_alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted_while_they_live() {
        let _alone = count_alone();
        const BYTES: usize = 64 << 20;
        let before = allocated();
        let block = std::hint::black_box(vec![0u8; BYTES]);
        // Other tests allocate less than this at the same time.
        assert!(allocated() + (16 << 20) > before + BYTES as u64);
        assert!(peak() >= BYTES as u64);
        drop(block);
        assert!(allocated() < before + (16 << 20));
    }
}
