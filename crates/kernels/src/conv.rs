//! Two-dimensional convolution.

use burn::tensor::{DType, Tensor, module, ops::ConvOptions};

/// How a convolution's window moves over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dOptions {
    /// Step between neighbouring outputs, in input pixels: `[vertical, horizontal]`.
    pub stride: [usize; 2],
    /// Zeros added on each side, in pixels.
    pub padding: [usize; 2],
    /// Distance between neighbouring taps of the kernel, in input pixels.
    pub dilation: [usize; 2],
    /// Number of groups that channels are split into; `channels` for a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv2dOptions {
    fn default() -> Self {
        Self {
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
            groups: 1,
        }
    }
}

/// Convolves `x` with `weight`, and adds `bias`. Differentiable in all three.
///
/// All operands have one dtype, which is the output's; sums are kept in f32.
///
/// # Shapes
/// - `x`: `[n, c_in, h, w]`
/// - `weight`: `[c_out, c_in / groups, kh, kw]`
/// - `bias`: `[c_out]`
/// - output: `[n, c_out, h_out, w_out]`
///
/// # Panics
/// If the shapes do not fit each other, or the dtypes differ.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: Conv2dOptions,
) -> Tensor<4> {
    let Conv2dOptions {
        stride,
        padding,
        dilation,
        groups,
    } = options;
    let options = ConvOptions::new(stride, padding, dilation, groups);
    let dtype = x.dtype();
    if !computes_in_f32(&x) {
        return module::conv2d(x, weight, bias, options);
    }
    let [x, weight] = [x, weight].map(|operand| operand.cast(DType::F32));
    let bias = bias.map(|bias| bias.cast(DType::F32));
    module::conv2d(x, weight, bias, options).cast(dtype)
}

/// Whether half-precision operands are better widened first. On the CPU, Flex's backward pass in
/// f16 adds products one by one and rounds each sum, which is four times slower than f32 and less
/// exact. Widening is exact, so only the result is rounded.
fn computes_in_f32(x: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    let on_flex = x.device() == burn::tensor::Device::flex();
    #[cfg(not(feature = "flex"))]
    let on_flex = false;
    on_flex && matches!(x.dtype(), DType::F16 | DType::BF16)
}
