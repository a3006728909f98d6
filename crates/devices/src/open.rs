//! Opening the device that is asked for.

use burn::tensor::Device;

use crate::{Bytes, DeviceChoice, available_memory};

/// A device that this build or this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device `{device}`: {reason}")]
#[non_exhaustive]
pub struct DeviceError {
    /// What was asked for.
    pub device: DeviceChoice,
    /// Why there is no such device, and what to do.
    pub reason: String,
}

impl DeviceChoice {
    /// Opens the device, without autodiff.
    ///
    /// # Errors
    ///
    /// A backend that this build lacks, a driver that this machine lacks, or a GPU number beyond
    /// those that it has. Burn itself would panic in a background thread instead.
    pub fn open(self) -> Result<Device, DeviceError> {
        let opened = match self {
            Self::Flex => open_flex(),
            Self::Cuda(index) => open_cuda(index),
            Self::Wgpu(index) => open_wgpu(index),
        };
        opened.map_err(|reason| DeviceError {
            device: self,
            reason,
        })
    }
}

#[cfg(feature = "flex")]
fn open_flex() -> Result<Device, String> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn open_flex() -> Result<Device, String> {
    Err("this program was built without the feature `flex`".into())
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
    let found = crate::driver::device_count()?;
    if index >= found {
        return Err(format!(
            "expected a GPU number below {found}, found {index}"
        ));
    }
    crate::driver::find_compiler()?;
    let device = Device::cuda(index);
    try_kernel(&device)?;
    Ok(device)
}

impl DeviceChoice {
    /// What this device can hold, where that is known: of the CPU the memory that is available, of a GPU of NVIDIA all
    /// that it has.
    pub fn memory(self) -> Option<Bytes> {
        match self {
            Self::Flex => available_memory(),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => crate::driver::total_memory(index).map(Bytes),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => None,
            Self::Wgpu(_) => None,
        }
    }
}

/// GPUs of NVIDIA that this process sees.
pub(crate) fn visible_cuda() -> usize {
    #[cfg(feature = "cuda")]
    return crate::driver::device_count().unwrap_or(0);
    #[cfg(not(feature = "cuda"))]
    0
}

/// GPUs that this process sees through wgpu.
pub(crate) fn visible_wgpu() -> usize {
    #[cfg(feature = "wgpu")]
    return Device::enumerate(burn::tensor::DeviceType::Wgpu).len();
    #[cfg(not(feature = "wgpu"))]
    0
}

/// Whether tensors on `device` are in the host's memory.
pub fn is_host(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return *device == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Whether all devices are NVIDIA's and there is the NCCL that Burn would call.
pub(crate) fn reaches_over_nccl(devices: &[Device]) -> bool {
    #[cfg(feature = "cuda")]
    return crate::driver::device_count().is_ok_and(|found| {
        let is_cuda = |device: &Device| (0..found).any(|index| *device == Device::cuda(index));
        devices.iter().all(is_cuda) && crate::driver::has_nccl()
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
        // No sum: Burn would tune it, which takes a second and thousands of kernels.
        let ones = burn::tensor::Tensor::<1>::ones([8], &trial);
        let twos = (ones.clone() + ones).into_data().convert::<f32>();
        assert!(
            twos.iter::<f32>().all(|two| two == 2.0),
            "the GPU adds wrongly"
        );
    });
    panic::set_hook(hook);
    result.map_err(|_| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        let message = first.take().unwrap_or("no message".to_owned());
        format!("a trial kernel failed: {message}")
    })
}
