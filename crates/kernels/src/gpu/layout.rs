//! How maps lie in a GPU's memory: plane by plane, or pixel by pixel.

use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;

use super::launch::empty;

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

    /// The shape in the order of memory.
    pub fn dims(&self) -> [usize; 4] {
        let [n, c, h, w] = self.shape;
        match self.order {
            Order::Planes => [n, c, h, w],
            Order::Pixels => [n, h, w, c],
        }
    }

    /// A map of this layout with no values yet, beside `like`.
    pub fn empty(&self, like: &CubeTensor) -> CubeTensor {
        empty(like, self.dims(), like.dtype)
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

    /// Vectors of a pixel and values of a vector, of values of `bytes`, for kernels that come by their place in a map: 1 and 1
    /// where planes lie one after another.
    pub fn pixel(&self, map: &CubeTensor, bytes: usize) -> (usize, usize) {
        let channels = match self.order {
            Order::Planes => 1,
            Order::Pixels => self.shape[1],
        };
        let vector = longest_vector(map, bytes, channels);
        (channels / vector, vector)
    }

    /// Values that can be read at a time without leaving a channel's plane or a pixel.
    pub fn vector_size(&self, map: &CubeTensor) -> usize {
        let [_, c, h, w] = self.shape;
        let run = match self.order {
            Order::Planes => h * w,
            Order::Pixels => c,
        };
        longest_vector(map, map.dtype.size(), run)
    }
}

/// The longest vector of values of `bytes` that the GPU of `map` reads at a time and that divides a run.
fn longest_vector(map: &CubeTensor, bytes: usize, run: usize) -> usize {
    let sizes = map.client.io_optimized_vector_sizes(bytes);
    sizes
        .filter(|size| run.is_multiple_of(*size))
        .max()
        .unwrap_or(1)
}
