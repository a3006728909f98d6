//! What the GPU kernels share: how maps lie in memory, and how many units a kernel is started with.
//!
//! Kernels are written in CubeCL and compiled at run time for whichever runtime a tensor's device
//! names (CUDA, Vulkan, Metal, ...).

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{DispatchDevice, TensorMetadata};
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
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

/// The order of a map's values in memory. Burn's convolutions on GPUs leave theirs pixel by pixel,
/// and reordering a map would cost as much as normalising it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// `[n, c, h, w]`: all pixels of a channel, then the next channel.
    Planes,
    /// `[n, h, w, c]`: all channels of a pixel, then the next pixel.
    Pixels,
}

/// Shape and order of a map without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub order: Order,
    pub shape: [usize; 4],
}

impl Layout {
    /// Brings `map` into an order without gaps: its own, if it has one.
    pub fn of(map: CubeTensor) -> (CubeTensor, Self) {
        let shape = map.shape().dims();
        if map.is_contiguous() {
            return (
                map,
                Self {
                    order: Order::Planes,
                    shape,
                },
            );
        }
        let pixels = permute_nchw_to_nhwc(map.clone());
        if pixels.is_contiguous() {
            return (
                pixels,
                Self {
                    order: Order::Pixels,
                    shape,
                },
            );
        }
        let layout = Self {
            order: Order::Planes,
            shape,
        };
        (into_contiguous(map), layout)
    }

    /// Brings another `map` of the same shape into this order.
    pub fn arrange(&self, map: CubeTensor) -> CubeTensor {
        match self.order {
            Order::Planes => into_contiguous(map),
            Order::Pixels => into_contiguous(permute_nchw_to_nhwc(map)),
        }
    }

    /// A map of this layout with no values yet, beside `like`.
    pub fn empty(&self, like: &CubeTensor) -> CubeTensor {
        let [n, c, h, w] = self.shape;
        let shape = match self.order {
            Order::Planes => [n, c, h, w],
            Order::Pixels => [n, h, w, c],
        };
        empty(like, shape, like.dtype)
    }

    /// The same order with planes of another size.
    pub fn resized(&self, [h, w]: [usize; 2]) -> Self {
        let [n, c, ..] = self.shape;
        Self {
            order: self.order,
            shape: [n, c, h, w],
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The `[n, c, h, w]` view of a map of this layout.
    pub fn view(&self, map: CubeTensor) -> CubeTensor {
        match self.order {
            Order::Planes => map,
            Order::Pixels => permute_nhwc_to_nchw(map),
        }
    }

    /// Values that can be read at a time without leaving a channel's plane or a pixel.
    pub fn vector_size(&self, map: &CubeTensor) -> usize {
        let [_, c, h, w] = self.shape;
        let run = match self.order {
            Order::Planes => h * w,
            Order::Pixels => c,
        };
        map.client
            .io_optimized_vector_sizes(map.dtype.size())
            .filter(|size| run % size == 0)
            .max()
            .unwrap_or(1)
    }
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

/// Units of a kernel that works on each of `count` things by itself.
pub fn elementwise(tensor: &CubeTensor, count: usize) -> (CubeCount, CubeDim) {
    // Kernels index with 32 bits.
    assert!(
        u32::try_from(count).is_ok(),
        "a map of {count} values is too large for the GPU kernels"
    );
    let dim = CubeDim::new(&tensor.client, count);
    (
        cubecl::calculate_cube_count_elemwise(&tensor.client, count, dim),
        dim,
    )
}
