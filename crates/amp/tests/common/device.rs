//! The device that tests run on; those of other crates share this file.

use std::sync::OnceLock;

use burn::tensor::{Device, FloatDType, Tensor};

/// What tests run on: with the feature `cuda` or `wgpu` the first GPU that Burn finds, a simulated one or
/// one in software too, and the CPU otherwise. Where there is no GPU this says so and gives the CPU, unless
/// `HALFSEG_REQUIRE_GPU` is set: then it fails.
pub fn plain_device() -> Device {
    static FOUND: OnceLock<Device> = OnceLock::new();
    let find = || {
        let Some(gpu) = gpu() else {
            return Device::flex();
        };
        gpu.unwrap_or_else(|| {
            assert!(
                std::env::var_os("HALFSEG_REQUIRE_GPU").is_none(),
                "no GPU was found, not even a software one, and HALFSEG_REQUIRE_GPU is set"
            );
            eprintln!("no GPU was found, not even a software one: the CPU takes its place");
            Device::flex()
        })
    };
    FOUND.get_or_init(find).clone()
}

/// The GPU of the backend that a feature asks for, if one does.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
fn gpu() -> Option<Option<Device>> {
    None
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn gpu() -> Option<Option<Device>> {
    use burn::tensor::DeviceType;
    #[cfg(feature = "cuda")]
    let wanted = DeviceType::Cuda;
    #[cfg(not(feature = "cuda"))]
    let wanted = DeviceType::Wgpu;
    Some(Device::enumerate(wanted).into_iter().next())
}

/// Whether tests run on a GPU, whose logarithms are approximations and which may take subnormal numbers for
/// zero, as WGSL allows.
pub fn on_gpu() -> bool {
    gpu().flatten().is_some()
}

/// Whether the device takes the mean of all of `count` values. Burn takes some means in a single loop, and
/// Mesa's GPU in software ends each loop after 65,535 turns.
pub fn takes_means_of(count: usize, dtype: FloatDType) -> bool {
    let ones = Tensor::<1>::ones([count], (&plain_device(), dtype.into()));
    let mean = ones.mean().cast(FloatDType::F32).into_scalar::<f32>();
    if mean != 1.0 {
        eprintln!("left out: this device takes {mean} for the mean of {count} ones in {dtype:?}");
    }
    mean == 1.0
}

/// A loss scale that is no power of two, or one that is where products of f32 see what it does to the last digits:
/// Burn 0.22's kernels for CUDA cut factors to TF32, and 77.7 times a number is cut elsewhere than the number.
pub fn odd_scale() -> f32 {
    if cfg!(feature = "cuda") && on_gpu() {
        64.0
    } else {
        77.7
    }
}

/// [`plain_device`] with gradients.
pub fn device() -> Device {
    plain_device().autodiff()
}

/// Whether the device computes in a dtype. Few GPUs do so in f64, and none through Vulkan in bf16.
pub fn computes_in(dtype: FloatDType) -> bool {
    plain_device().supports_dtype(dtype)
}
