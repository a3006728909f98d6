//! How channels are shared out to units, and where a channel's values lie.

use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::gpu::launch::check_indexable;
use crate::gpu::layout::{Layout, Order};
use crate::gpu::reduce::{UNITS, across};

/// Groups of units that a map is split over at most: a few times what large GPUs run at once.
const GROUPS: usize = 1024;
/// Vectors that a unit reads at least before a channel is split: what is known of a channel is read once for them.
const READS: usize = 8;

/// Sizes of a reduction over each channel, in vectors.
pub struct Plan {
    pub order: Order,
    /// Values of a vector.
    pub vector: usize,
    /// Channels, or in a map that lies pixel by pixel vectors of a pixel.
    pub channels: usize,
    /// Vectors from one channel's plane to the next; 1 in a map that lies pixel by pixel.
    pub inner: usize,
    /// Vectors of one channel, or of one vector of channels.
    pub length: usize,
    /// Parts that each channel is split into.
    pub splits: usize,
    /// Units of a group that are beside each other, at other channels.
    pub across: usize,
}

impl Plan {
    /// Of a map that lies so.
    pub fn new(layout: &Layout, map: &CubeTensor) -> Self {
        let [n, c, h, w] = layout.shape;
        let vector = layout.vector_size(map);
        let (channels, inner, length) = match layout.order {
            Order::Planes => (c, h * w / vector, n * h * w / vector),
            Order::Pixels => (c / vector, 1, n * h * w),
        };
        check_indexable(channels * length);
        let across = match layout.order {
            Order::Planes => 1,
            Order::Pixels => across(channels),
        };
        let groups = channels.div_ceil(across);
        let splits = length
            .div_ceil(UNITS / across * READS)
            .min(GROUPS.div_ceil(groups))
            .max(1);
        Self {
            order: layout.order,
            vector,
            channels,
            inner,
            length,
            splits,
            across,
        }
    }

    /// Values that a vector of one number a channel has: a vector of a map in one read.
    pub fn numbers(&self) -> usize {
        columns(self.order, self.vector)
    }

    /// Groups of units, and units of a group.
    pub fn launch(&self) -> (CubeCount, CubeDim) {
        let groups = self.channels.div_ceil(self.across) as u32;
        (
            CubeCount::Static(groups, self.splits as u32, 1),
            CubeDim::new_2d(self.across as u32, (UNITS / self.across) as u32),
        )
    }
}

/// Channels that a vector of `lanes` values holds.
pub const fn columns(order: Order, lanes: usize) -> usize {
    match order {
        Order::Planes => 1,
        Order::Pixels => lanes,
    }
}

/// Where the `k`-th vector of a channel is.
#[cube]
pub fn place(
    k: usize,
    channel: usize,
    channels: usize,
    inner: usize,
    #[comptime] order: Order,
) -> usize {
    if comptime!(order == Order::Planes) {
        (k / inner * channels + channel) * inner + k % inner
    } else {
        k * channels + channel
    }
}

/// For each value of a vector the number of its channel from `values`, of which each vector belongs to a channel, or to
/// the channels of a vector of a map; from the vector at `start` on.
#[cube]
pub fn per_channel<N: Size, M: Size>(
    values: &[Vector<f32, M>],
    start: usize,
    channel: usize,
    #[comptime] order: Order,
) -> Vector<f32, N> {
    let found = values[start + channel];
    if comptime!(order == Order::Planes) {
        Vector::new(found.extract(0usize))
    } else {
        let mut vector = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            vector.insert(lane, found.extract(lane));
        }
        vector
    }
}
