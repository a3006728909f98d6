//! Which pixel of one map a pixel of another has to do with, by way of one tap of a kernel.

use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::permute_nchw_to_nhwc;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Conv2dOptions;

/// One direction of a convolution, as kernels want it.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Side {
    /// Pixels of the map that is read.
    pub from: usize,
    /// Pixels of the map that is written or, in a weight gradient, of the output's gradient.
    pub to: usize,
    pub taps: usize,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
}

/// A number for rows and one for columns.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Pair {
    pub y: usize,
    pub x: usize,
}

/// The kernels' argument for rows and columns.
pub fn pair([y, x]: [usize; 2]) -> PairLaunch {
    PairLaunch::new(y, x)
}

/// A pixel's place along one direction.
#[derive(CubeType, Clone, Copy)]
pub struct Place {
    /// Whether there is such a pixel.
    pub inside: bool,
    pub at: usize,
}

/// What `pixel` of the map that is written reads through `tap`. `adjoint` is the input gradient's way: a
/// pixel of the input reads the outputs that it was read by.
#[cube]
pub fn source(pixel: usize, tap: usize, side: &Side, #[comptime] adjoint: bool) -> Place {
    if comptime!(adjoint) {
        let (sum, shift) = (pixel + side.padding, tap * side.dilation);
        let distance = select(sum >= shift, sum - shift, 0usize);
        let at = distance / side.stride;
        Place {
            inside: sum >= shift && at * side.stride == distance && at < side.from,
            at,
        }
    } else {
        let sum = pixel * side.stride + tap * side.dilation;
        let at = select(sum >= side.padding, sum - side.padding, 0usize);
        Place {
            inside: sum >= side.padding && at < side.from,
            at,
        }
    }
}

/// The kernels' arguments for rows and columns.
pub fn sides(
    from: [usize; 2],
    to: [usize; 2],
    kernel: [usize; 2],
    options: Conv2dOptions,
) -> [SideLaunch; 2] {
    [0, 1].map(|axis| {
        SideLaunch::new(
            from[axis],
            to[axis],
            kernel[axis],
            options.stride[axis],
            options.padding[axis],
            options.dilation[axis],
        )
    })
}

/// A map pixel by pixel, without gaps: `[n, c, h, w]` -> `[n, h, w, c]`.
pub fn pixels(map: CubeTensor) -> CubeTensor {
    into_contiguous(permute_nchw_to_nhwc(map))
}

/// Values beside each other, out of `run`, that a kernel reads at a time.
pub fn vector_size(tensor: &CubeTensor, run: usize) -> usize {
    tensor
        .client
        .io_optimized_vector_sizes(tensor.dtype.size())
        .filter(|size| run.is_multiple_of(*size))
        .max()
        .unwrap_or(1)
}
