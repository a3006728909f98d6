//! How the C library's allocator treats the memory of maps.

#[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
mod gnu {
    use std::ffi::{c_char, c_int, c_void};

    pub const M_TRIM_THRESHOLD: c_int = -1;
    pub const M_MMAP_MAX: c_int = -4;
    pub const M_ARENA_MAX: c_int = -8;

    /// mallinfo(3).
    #[repr(C)]
    #[derive(Default)]
    pub struct Mallinfo2 {
        pub arena: usize,
        pub ordblks: usize,
        pub smblks: usize,
        pub hblks: usize,
        pub hblkhd: usize,
        pub usmblks: usize,
        pub fsmblks: usize,
        pub uordblks: usize,
        pub fordblks: usize,
        pub keepcost: usize,
    }

    unsafe extern "C" {
        pub fn mallopt(parameter: c_int, value: c_int) -> c_int;
        pub fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    }
}

/// Makes the process keep the memory of freed tensors for the next ones, instead of giving it back to
/// the operating system. For the start of a program that runs a network on the CPU.
///
/// The GNU C library maps every large block anew and the kernel clears it page by page, which took up
/// to 40 percent of a convolution's time; a network frees and allocates the same sizes over and over.
/// Threads other than the first have heaps of their own, of at most 64 MiB, which it gives back all the same: they share
/// the first one's, those that have begun already excepted. The process then stays as large as it once was. Elsewhere this
/// does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    // SAFETY: the call sets numbers of the allocator, under its lock. -1 is its documented way to never
    // trim; 0 blocks may be mapped by themselves, and all threads share one arena.
    unsafe {
        gnu::mallopt(gnu::M_TRIM_THRESHOLD, -1);
        gnu::mallopt(gnu::M_MMAP_MAX, 0);
        gnu::mallopt(gnu::M_ARENA_MAX, 1);
    }
}

/// Bytes that were freed and that the allocator keeps for the next blocks; 0 where it does not tell, as
/// the GNU C library before 2.33.
pub fn kept() -> u64 {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    {
        // SAFETY: the name is a C string; a null handle asks for the libraries of the process.
        let symbol = unsafe { gnu::dlsym(std::ptr::null_mut(), c"mallinfo2".as_ptr()) };
        if symbol.is_null() {
            return 0;
        }
        // SAFETY: the symbol has had this signature since it was added.
        let mallinfo2: extern "C" fn() -> gnu::Mallinfo2 = unsafe { std::mem::transmute(symbol) };
        mallinfo2().fordblks as u64
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu", not(miri))))]
    0
}

#[cfg(all(test, target_os = "linux", target_env = "gnu", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_freed_is_kept() {
        // Of a size that the allocator serves from a thread's own arena, too.
        let blocks = || -> Vec<Vec<u8>> { (0..64).map(|_| vec![1; 512 << 10]).collect() };
        keep_freed_memory();
        let blocks = std::hint::black_box(blocks());
        let before = kept();
        drop(blocks);
        let after = kept();
        // Other tests allocate meanwhile, though not as much.
        assert!(after > before + (16 << 20), "{before}, then {after}");
    }
}
