//! What the candidates for a convolution of one group are given.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::super::Conv2dOptions;

/// A forward pass or a weight gradient.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The map that is read, `[n, h, w, c]`.
    pub map: CubeTensor,
    /// The weight, `[c_out, kh, kw, c]`, or in a weight gradient the output's gradient,
    /// `[n, h_out, w_out, c_out]`.
    pub other: CubeTensor,
    /// Height and width of the output, or in a weight gradient of the kernel.
    pub size: [usize; 2],
    /// Of the output.
    pub dtype: DType,
    pub options: Conv2dOptions,
    /// Whether a candidate only shows how fast it is, and may decline.
    pub trial: bool,
}

impl Problem {
    /// Whether an output is wanted that ends before the padding does, as input gradients want it.
    pub fn ends_early(&self) -> bool {
        let ([_, h, w, _], [_, kh, kw, _]) =
            (self.map.meta.shape().dims(), self.other.meta.shape().dims());
        ends_early(self.size, [h, w], [kh, kw], self.options)
    }
}

/// Whether an output of `size` ends before the padding around a map `from` does.
pub fn ends_early(
    size: [usize; 2],
    from: [usize; 2],
    kernel: [usize; 2],
    options: Conv2dOptions,
) -> bool {
    [0, 1].into_iter().any(|axis| {
        let all = options.outputs(axis, from[axis], kernel[axis]);
        all.is_some_and(|all| size[axis] < all)
    })
}

/// Why a candidate cannot be launched.
pub type Declined = String;
