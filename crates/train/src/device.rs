//! Opening the device that a recipe names.

use burn::tensor::Device;

use crate::{DeviceChoice, Error};

impl DeviceChoice {
    /// Opens the device, without autodiff.
    ///
    /// # Errors
    ///
    /// A backend that this build lacks, a driver that this machine lacks, or a GPU number beyond
    /// those that it has. Burn itself would panic in a background thread instead.
    pub fn open(self) -> Result<Device, Error> {
        match self {
            Self::Flex => open_flex(),
            Self::Cuda(index) => open_cuda(index).map_err(|reason| Error::Device {
                device: self.to_string(),
                reason,
            }),
            Self::Wgpu(index) => open_wgpu(index).map_err(|reason| Error::Device {
                device: self.to_string(),
                reason,
            }),
        }
    }
}

#[cfg(feature = "flex")]
fn open_flex() -> Result<Device, Error> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn open_flex() -> Result<Device, Error> {
    Err(Error::Device {
        device: "flex".into(),
        reason: "this program was built without the feature `flex`".into(),
    })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_index: usize) -> Result<Device, String> {
    Err(
        "this program was built without CUDA; build it again with `--features cuda`, or use \
         `--device flex`"
            .into(),
    )
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device, String> {
    let found = driver::device_count()?;
    if index >= found {
        return Err(format!(
            "expected a GPU number below {found}, found {index}"
        ));
    }
    driver::find_compiler()?;
    let device = Device::cuda(index);
    try_kernel(&device)?;
    Ok(device)
}

/// Whether all devices are NVIDIA's and there is the NCCL that Burn would call.
pub(crate) fn reaches_over_nccl(devices: &[Device]) -> bool {
    #[cfg(feature = "cuda")]
    return driver::device_count().is_ok_and(|found| {
        let is_cuda = |device: &Device| (0..found).any(|index| *device == Device::cuda(index));
        devices.iter().all(is_cuda) && driver::has_nccl()
    });
    #[cfg(not(feature = "cuda"))]
    {
        let _ = devices;
        false
    }
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_index: usize) -> Result<Device, String> {
    Err(
        "this program was built without wgpu; build it again with `--features wgpu`, or use \
         `--device flex`"
            .into(),
    )
}

#[cfg(feature = "wgpu")]
fn open_wgpu(index: usize) -> Result<Device, String> {
    let mut devices = Device::enumerate(burn::tensor::DeviceType::Wgpu).into_iter();
    let found = devices.len();
    let device = devices.nth(index).ok_or(format!(
        "expected a device number below {found}, found {index}"
    ))?;
    try_kernel(&device)?;
    Ok(device)
}

/// What else can be missing (a driver of this age, memory) shows at the first kernel.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn try_kernel(device: &Device) -> Result<(), String> {
    use std::panic;
    use std::sync::{Arc, Mutex, PoisonError};

    // Burn's threads panic one after the other; the first says why.
    let first = Arc::new(Mutex::new(None));
    let seen = first.clone();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("no message").to_owned();
        let mut first = seen.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(message);
    }));
    let trial = device.clone();
    let result = panic::catch_unwind(move || {
        let sum = burn::tensor::Tensor::<1>::ones([8], &trial)
            .sum()
            .into_scalar::<f32>();
        assert_eq!(sum, 8.0, "the GPU adds wrongly");
    });
    panic::set_hook(hook);
    result.map_err(|_| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        let message = first.take().unwrap_or("no message".to_owned());
        format!("a trial kernel failed: {message}")
    })
}

/// The driver and the compiler are looked for before Burn does, which panics without them.
#[cfg(feature = "cuda")]
mod driver {
    use std::ffi::{CStr, c_int, c_uint};
    use std::path::{Path, PathBuf};

    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;

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
}
