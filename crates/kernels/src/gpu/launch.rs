//! What a kernel is launched with: tensors without values, types, numbers of units.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Backend, DTypeUsage, Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Whether kernels of this crate run on `device`, with or without autodiff, for maps of `dtype`.
pub fn handles(device: &Device, dtype: DType) -> bool {
    let on_cube = match device.as_dispatch() {
        DispatchDevice::Cube(_) => true,
        DispatchDevice::Autodiff(device) => matches!(**device, DispatchDevice::Cube(_)),
        #[allow(unreachable_patterns, reason = "other backends may be compiled in")]
        _ => false,
    };
    on_cube && matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Whether `device` has units that multiply matrices of `dtype`.
pub fn multiplies(device: &Device, dtype: DType) -> bool {
    let usage = Dispatch::dtype_usage(device.as_dispatch(), dtype);
    usage.contains(DTypeUsage::Accelerated)
}

/// A tensor with no values yet, on the device of `like`.
pub fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::new(shape), dtype)
}

/// The CubeCL type of a tensor's values.
pub fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype)
}

/// # Panics
/// If `count` is beyond 32 bits, with which kernels index.
pub fn check_indexable(count: usize) {
    assert!(
        u32::try_from(count).is_ok(),
        "a map of {count} values is too large for the GPU kernels"
    );
}

/// Units of a kernel that works on each of `count` things by itself.
pub fn elementwise(tensor: &CubeTensor, count: usize) -> (CubeCount, CubeDim) {
    check_indexable(count);
    let dim = CubeDim::new(&tensor.client, count);
    (
        cubecl::calculate_cube_count_elemwise(&tensor.client, count, dim),
        dim,
    )
}

/// A tensor as a kernel's argument that is indexed by position alone.
///
/// # Panics
/// If it has gaps, which the kernel would read: matrix products on CUDA leave rows apart.
pub fn buffer(tensor: CubeTensor) -> BufferArg {
    assert!(
        tensor.is_contiguous() && !tensor.meta.is_tiled(),
        "a kernel that indexes by position was given a tensor {:?} with strides {:?}",
        tensor.meta.shape(),
        tensor.meta.strides()
    );
    tensor.into_buffer_arg()
}

/// A buffer that a kernel may do without.
pub fn optional<A: From<Option<BufferArg>>>(tensor: Option<CubeTensor>) -> A {
    tensor.map(buffer).into()
}
