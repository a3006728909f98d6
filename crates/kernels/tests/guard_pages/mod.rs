//! An allocator for tests that ends a program at the first access past an allocation.
//!
//! Each allocation has pages of its own between pages that nobody may touch, and ends where its pages
//! end; with `HALFSEG_GUARD=front` it begins where they begin. Which of the rest of its pages was
//! written to is seen when it is freed, and its pages are never used again. What is allocated is NaN in
//! every float type until it is written.

#![cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]

use std::alloc::{GlobalAlloc, Layout};
use std::process::Command;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct GuardPages;

#[global_allocator]
static ALLOCATOR: GuardPages = GuardPages;

const PAGE: usize = 4096;
/// Addresses, of which only those in use have memory behind them.
const SPACE: usize = 1 << 44;
const UNTOUCHED: u8 = 0xFF;
/// Environment variable and its value for pages in front.
const GUARD: (&str, &str) = ("HALFSEG_GUARD", "front");

/// Where the addresses begin.
fn space() -> usize {
    static SPACE_AT: OnceLock<usize> = OnceLock::new();
    *SPACE_AT.get_or_init(|| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a mapping of its own, which overlaps no other.
        let at = unsafe { libc::mmap(ptr::null_mut(), SPACE, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            end("there are no addresses for the allocator\n");
        }
        // The names in a backtrace are more allocations than a process may have mappings, and some tests
        // want a panic.
        // SAFETY: this is the first allocation of the program, which has one thread then; the texts end
        // with a zero.
        unsafe { libc::setenv(c"RUST_BACKTRACE".as_ptr(), c"0".as_ptr(), 1) };
        at as usize
    })
}

/// Whether allocations begin where their pages begin.
fn in_front() -> bool {
    static IN_FRONT: OnceLock<bool> = OnceLock::new();
    // The standard library's way of reading the environment allocates.
    *IN_FRONT.get_or_init(|| {
        // SAFETY: the name ends with a zero, and nobody changes the environment.
        let value = unsafe { libc::getenv(c"HALFSEG_GUARD".as_ptr()) };
        // SAFETY: as above; the text ends with a zero.
        !value.is_null() && unsafe { libc::strcmp(value, c"front".as_ptr()) } == 0
    })
}

/// Ends the program, without allocating anything.
fn end(why: &str) -> ! {
    // SAFETY: the text is as long as it says.
    unsafe { libc::write(2, why.as_ptr().cast(), why.len()) };
    std::process::abort()
}

/// The bytes of an allocation's pages.
fn pages(layout: Layout) -> usize {
    layout.size().next_multiple_of(PAGE)
}

/// An allocation in new pages, which hold `fill` as far as it reaches and are untouched elsewhere.
fn place(layout: Layout, fill: u8) -> *mut u8 {
    static NEXT: AtomicUsize = AtomicUsize::new(PAGE);
    let pages = pages(layout);
    if layout.align() > PAGE {
        end("an allocation is aligned to more than a page\n");
    }
    let at = NEXT.fetch_add(pages + PAGE, Relaxed);
    if at + pages + PAGE > SPACE {
        end("all addresses of the allocator were used\n");
    }
    let first = (space() + at) as *mut u8;
    let slack = match in_front() {
        true => 0,
        false => (pages - layout.size()) & !(layout.align() - 1),
    };
    // SAFETY: these pages are part of the space, and nobody else has got or will get them.
    unsafe {
        if libc::mprotect(first.cast(), pages, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            end("there is no memory for an allocation, or there are too many\n");
        }
        let pointer = first.add(slack);
        ptr::write_bytes(first, UNTOUCHED, slack);
        if fill != 0 {
            ptr::write_bytes(pointer, fill, layout.size());
        }
        let rest = pages - slack - layout.size();
        ptr::write_bytes(pointer.add(layout.size()), UNTOUCHED, rest);
        pointer
    }
}

// SAFETY: allocations lie in pages of their own, are aligned, and stay until they are freed.
unsafe impl GlobalAlloc for GuardPages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        place(layout, UNTOUCHED)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // New pages are zero.
        place(layout, 0)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let pages = pages(layout);
        let first = pointer.map_addr(|address| address & !(PAGE - 1));
        // SAFETY: the pages of this allocation; their owner gives them back.
        unsafe {
            let slack = pointer.offset_from_unsigned(first);
            let rest = pages - slack - layout.size();
            let parts = [(first, slack), (pointer.add(layout.size()), rest)];
            for (start, length) in parts {
                let part = std::slice::from_raw_parts(start, length);
                if part.iter().any(|byte| *byte != UNTOUCHED) {
                    end("something was written beside an allocation\n");
                }
            }
            libc::madvise(first.cast(), pages, libc::MADV_DONTNEED);
            libc::mprotect(first.cast(), pages, libc::PROT_NONE);
        }
    }
}

/// The other tests of this program once more, with the guard in front of each allocation.
#[test]
fn nothing_in_front_of_an_allocation_is_touched() {
    if in_front() {
        return;
    }
    let mut program = Command::new(std::env::current_exe().unwrap());
    let output = program.env(GUARD.0, GUARD.1).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        said.concat()
    );
}

/// Ends this program unless run by the test that expects it to.
fn check_ended_by(what: &str, wrong: impl FnOnce()) {
    const NAME: &str = "HALFSEG_GUARD_TEST";
    if std::env::var(NAME).is_ok_and(|name| name == what) {
        wrong();
        return;
    }
    for side in ["end", GUARD.1] {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args([
            "--exact",
            &format!("guard_pages::{what}"),
            "--test-threads",
            "1",
        ]);
        let output = program.env(NAME, what).env(GUARD.0, side).output().unwrap();
        assert!(
            !output.status.success(),
            "{what} was not noticed with the guard at the {side}"
        );
    }
}

#[test]
fn a_read_past_the_end_ends_the_program() {
    check_ended_by("a_read_past_the_end_ends_the_program", || {
        // In either way: only one of them has its guard there.
        let values = vec![1f32; 1024 + 7];
        // SAFETY: none: this is what must be noticed.
        let value = unsafe {
            values
                .as_ptr()
                .add(if in_front() { 2048 } else { values.len() })
                .read_volatile()
        };
        println!("{value}");
    });
}

#[test]
fn a_write_in_front_ends_the_program() {
    check_ended_by("a_write_in_front_ends_the_program", || {
        let mut values = vec![1u8; 100];
        // SAFETY: none: this is what must be noticed.
        unsafe { values.as_mut_ptr().sub(1).write_volatile(3) };
        drop(values);
    });
}
