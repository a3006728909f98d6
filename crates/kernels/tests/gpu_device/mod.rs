//! The device that tests of GPU code run on; other crates' tests share this file.

use burn::tensor::{Device, DeviceType};

/// The first GPU that Burn's CUDA backend finds, if it is built, or else its wgpu backend. Without one the
/// test says that it is skipped, unless `HALFSEG_REQUIRE_GPU` is set: then it fails.
pub fn gpu() -> Option<Device> {
    #[cfg(feature = "cuda")]
    let backend = DeviceType::Cuda;
    #[cfg(not(feature = "cuda"))]
    let backend = DeviceType::Wgpu;
    let device = Device::enumerate(backend).into_iter().next();
    if device.is_none() {
        assert!(
            std::env::var_os("HALFSEG_REQUIRE_GPU").is_none(),
            "no GPU was found, not even a software one, and HALFSEG_REQUIRE_GPU is set"
        );
        eprintln!("skipped: no GPU was found, not even a software one");
    }
    device
}
