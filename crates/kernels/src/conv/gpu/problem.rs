//! What the candidates for a convolution of one group are given.

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
    pub options: Conv2dOptions,
}

/// Why a candidate cannot be launched.
pub type Declined = String;
