//! How the C library's allocator treats the memory of maps.

/// Makes the process keep the memory of freed tensors for the next ones, instead of giving it back to
/// the operating system. For the start of a program that runs a network on the CPU.
///
/// The GNU C library maps every large block anew and the kernel clears it page by page, which took up
/// to 40 percent of a convolution's time; a network frees and allocates the same sizes over and over.
/// The process then stays as large as it once was. Elsewhere this does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    {
        use std::ffi::c_int;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_MAX: c_int = -4;
        // SAFETY: the call sets numbers of the allocator, under its lock. -1 is its documented way to
        // never trim; 0 blocks may be mapped by themselves.
        unsafe {
            mallopt(M_TRIM_THRESHOLD, -1);
            mallopt(M_MMAP_MAX, 0);
        }
    }
}
