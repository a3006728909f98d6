//! NVIDIA's driver and compiler, which are looked for before Burn does: it panics without them.

use std::ffi::{CStr, c_int, c_uint};
use std::path::{Path, PathBuf};

type Init = unsafe extern "C" fn(c_uint) -> c_int;
type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;

fn load(names: &[&CStr]) -> Option<*mut libc::c_void> {
    names.iter().find_map(|name| {
        // SAFETY: the name is a C string; the libraries are the driver's and NVIDIA's own,
        // whose initialisers may run at any time.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        (!handle.is_null()).then_some(handle)
    })
}

fn symbol(library: *mut libc::c_void, name: &CStr) -> Result<*mut libc::c_void, String> {
    // SAFETY: `library` came from `dlopen` and is never closed; the name is a C string.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    if symbol.is_null() {
        return Err(format!("libcuda lacks {}", name.to_string_lossy()));
    }
    Ok(symbol)
}

/// Whether there is what compiles kernels at run time: NVRTC and the headers of CUDA, in the
/// places where CubeCL looks.
pub fn find_compiler() -> Result<(), String> {
    let names = [
        c"libnvrtc.so",
        c"libnvrtc.so.13",
        c"libnvrtc.so.12",
        c"libnvrtc.so.11",
    ];
    if load(&names).is_none() {
        return Err(
            "libnvrtc.so was not found, which compiles kernels: install the NVRTC of \
             CUDA 11 to 13 and name its folder in LD_LIBRARY_PATH"
                .into(),
        );
    }
    let toolkit = match std::env::var_os("CUDA_PATH") {
        Some(path) => Some(PathBuf::from(path)),
        None => ["/usr/local/cuda", "/opt/cuda"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.exists())
            .or_else(|| Path::new("/usr/bin/nvcc").exists().then(|| "/usr".into())),
    };
    let toolkit = toolkit.ok_or(
        "the headers of CUDA were not found, which kernels include: set CUDA_PATH to the toolkit",
    )?;
    let header = toolkit.join("include/cuda_fp16.h");
    match header.is_file() {
        true => Ok(()),
        false => Err(format!(
            "{} was not found, which kernels include: set CUDA_PATH to a toolkit that has it",
            header.display()
        )),
    }
}

/// Whether NCCL is there under the name that CubeCL looks for, which is that of its development
/// package.
pub fn has_nccl() -> bool {
    load(&[c"libnccl.so"]).is_some()
}

/// The memory of the GPU of this number in bytes, all of it, whoever uses it; `None` where there is no such GPU.
pub fn total_memory(index: usize) -> Option<u64> {
    if index >= device_count().ok()? {
        return None;
    }
    let library = load(&[c"libcuda.so.1", c"libcuda.so"])?;
    let get = symbol(library, c"cuDeviceGet").ok()?;
    let total = symbol(library, c"cuDeviceTotalMem_v2").ok()?;
    // SAFETY: both symbols have had these signatures since CUDA 3.2.
    let (get, total) = unsafe {
        (
            std::mem::transmute::<*mut libc::c_void, Get>(get),
            std::mem::transmute::<*mut libc::c_void, Total>(total),
        )
    };
    let (mut device, mut bytes) = (0, 0usize);
    // SAFETY: the driver is initialised, and both numbers outlive the calls.
    let found = unsafe {
        get(&mut device, c_int::try_from(index).ok()?) == 0 && total(&mut bytes, device) == 0
    };
    found.then_some(bytes as u64)
}

/// Number of GPUs, or why there are none.
pub fn device_count() -> Result<usize, String> {
    let library = load(&[c"libcuda.so.1", c"libcuda.so"]).ok_or(
        "libcuda.so.1 was not found: this machine has no NVIDIA driver; use `--device flex`",
    )?;
    let (init, count) = (
        symbol(library, c"cuInit")?,
        symbol(library, c"cuDeviceGetCount")?,
    );
    // SAFETY: both symbols have had these signatures since CUDA 2.0.
    let (init, count) = unsafe {
        (
            std::mem::transmute::<*mut libc::c_void, Init>(init),
            std::mem::transmute::<*mut libc::c_void, Count>(count),
        )
    };
    // SAFETY: flags must be 0, and are.
    let status = unsafe { init(0) };
    if status != 0 {
        return Err(format!("cuInit failed with CUDA error {status}"));
    }
    let mut found = 0;
    // SAFETY: `found` outlives the call.
    let status = unsafe { count(&mut found) };
    if status != 0 {
        return Err(format!("cuDeviceGetCount failed with CUDA error {status}"));
    }
    Ok(usize::try_from(found).unwrap_or(0))
}
