//! Two-dimensional convolution.

#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cube")]
mod gpu;
#[cfg(feature = "flex")]
mod ops;
#[cfg(feature = "flex")]
mod times;

#[cfg(feature = "flex")]
pub use cpu::PackedWeights;
#[cfg(feature = "flex")]
pub use times::{ConvolutionPass, TimedConvolution, time_convolutions};

use burn::tensor::{DType, Device, Tensor, activation::relu, module, ops::ConvOptions};

use crate::Activation;

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

impl From<Conv2dOptions> for ConvOptions<2> {
    /// Burn's.
    fn from(options: Conv2dOptions) -> Self {
        let Conv2dOptions {
            stride,
            padding,
            dilation,
            groups,
        } = options;
        Self::new(stride, padding, dilation, groups)
    }
}

#[cfg(any(feature = "flex", feature = "cube"))]
impl Conv2dOptions {
    /// Outputs along one axis, `None` where the window is larger than the padded input.
    fn outputs(&self, axis: usize, input: usize, kernel: usize) -> Option<usize> {
        let window = self.dilation[axis] * kernel.checked_sub(1)? + 1;
        let room = (input + 2 * self.padding[axis]).checked_sub(window)?;
        Some(room.checked_div(self.stride[axis])? + 1)
    }

    /// Height and width of the output of `x` `[n, c_in, h, w]` and `weight`
    /// `[c_out, c_in / groups, kh, kw]`.
    ///
    /// # Panics
    /// If these do not fit each other, a step is 0, or the window is larger than the padded input.
    fn output_size(&self, x: [usize; 4], weight: [usize; 4]) -> [usize; 2] {
        let groups = self.groups;
        assert!(
            [self.stride, self.dilation]
                .as_flattened()
                .iter()
                .all(|step| *step > 0),
            "stride and dilation of a convolution are at least 1, not {self:?}"
        );
        assert!(
            groups > 0 && x[1] == weight[1] * groups && weight[0].is_multiple_of(groups),
            "a weight {weight:?} in {groups} groups does not fit a map {x:?}"
        );
        [0, 1].map(|axis| {
            let outputs = self.outputs(axis, x[2 + axis], weight[2 + axis]);
            outputs.unwrap_or_else(|| {
                panic!("the window of a weight {weight:?} with {self:?} does not fit a map {x:?}")
            })
        })
    }
}

/// Convolves `x` with `weight`, and adds `bias`. Differentiable in all three.
///
/// All operands have one dtype, which is the output's; sums are kept in f32. On the CPU (Burn's Flex
/// backend) the kernels of this crate run, which keep `x` and `weight` for the backward pass in their
/// own dtype and make no column buffer. On GPUs, convolutions in f16 and bf16 and all depthwise ones run in
/// kernels that sum in f32; Burn's own convolution runs elsewhere, and for the others. 3x3 kernels of stride 1
/// may use Winograd's F(2x2, 3x3) (arXiv:1509.09308), which is as exact as sums, and on a device without
/// autodiff F(4x4, 3x3), whose results stay within 1e-4 (2-norm).
///
/// # Shapes
/// - `x`: `[n, c_in, h, w]`
/// - `weight`: `[c_out, c_in / groups, kh, kw]`
/// - `bias`: `[c_out]`
/// - output: `[n, c_out, h_out, w_out]`
///
/// All have one dtype; but where [`rounds_weight`], an f32 weight is rounded to the dtype of `x` while
/// it is read, and its gradient is f32, rounded likewise on the CPU: as with a cast before, without its copy.
///
/// # Numbers that are not finite
/// An output of which some product is not finite is not finite either. There may be more of them on the CPU:
/// Winograd's transforms spread what is not finite over the 2x2 or 4x4 outputs of a tile, and a zero of the
/// padding may be multiplied with an infinite weight, which makes NaN of outputs at the border.
///
/// # Panics
/// If the shapes do not fit each other, a stride or dilation is 0, or the dtypes differ.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: Conv2dOptions,
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if crate::cpu::tensor::handles(&x) {
        return ops::conv2d(x, weight, bias, options);
    }
    #[cfg(feature = "cube")]
    if gpu::handles(&x, &weight, options) {
        return gpu::conv2d(x, weight, bias, options);
    }
    module::conv2d(x, weight, bias, ConvOptions::from(options))
}

/// Whether Burn's convolutions and matrix products round f32 to TF32 on `device`, where [`conv2d`] does not: on GPUs that
/// have matrix units, unless `HALFSEG_TF32=1` asks for it.
///
/// # Panics
/// If `HALFSEG_TF32` is neither 0 nor 1.
#[cfg_attr(not(feature = "cube"), allow(unused_variables))]
pub fn rounds_products(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    {
        gpu::rounds_products(device)
    }
    #[cfg(not(feature = "cube"))]
    false
}

/// Whether [`conv2d`] takes an f32 weight with `x`, whatever the dtype of `x`: on the CPU, and on GPUs with
/// f16 and bf16.
pub fn rounds_weight(x: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    if crate::cpu::tensor::handles(x) {
        return true;
    }
    #[cfg(feature = "cube")]
    if gpu::rounds_weight(x) {
        return true;
    }
    let _ = x;
    false
}

/// Runs `body`, a forward pass of training, with weights that are rounded before it: those of the convolutions in half
/// precision of a kernel of one tap, which keep a copy of their weight, with the dtype of the maps that each is for.
///
/// On GPUs many of them share a kernel, where [`conv2d`] starts one for each; the results are the same. Weights that
/// no graph tracks, of more taps, in another dtype than f32 or elsewhere are left to [`conv2d`].
pub fn with_rounded_weights<R>(weights: Vec<(Tensor<4>, DType)>, body: impl FnOnce() -> R) -> R {
    #[cfg(feature = "cube")]
    return gpu::with_rounded(weights, body);
    #[cfg(not(feature = "cube"))]
    {
        drop(weights);
        body()
    }
}

/// A convolution and what follows it in a network that is not trained:
/// `activation(conv2d(x, scale * weight) + shift + skip)`. Differentiable.
///
/// On the CPU, where no operand takes part in a graph, this is one operation that rounds once and makes no map
/// but its output, and no copy of the weight but the packed one. On GPUs, likewise, it is a convolution, whose output is rounded
/// before it is scaled, and one kernel for all that follows. Elsewhere it is composed, and each step rounds.
///
/// # Shapes
/// As [`conv2d`]; `scale` and `shift` are `[c_out]`, `skip` has the output's shape. `x` and `skip` have
/// one dtype. The others may be f32 instead: the scaled weight is rounded to the dtype of `x`, and the
/// shift of a folded normalisation can be much larger than what it leaves.
///
/// # Panics
/// As [`conv2d`].
pub fn conv2d_act(
    x: Tensor<4>,
    weight: Tensor<4>,
    [scale, shift]: [Tensor<1>; 2],
    skip: Option<Tensor<4>>,
    activation: Activation,
    options: Conv2dOptions,
) -> Tensor<4> {
    let [autodiff, tracked] = {
        let maps = || {
            [Some(&x), Some(&weight), skip.as_ref()]
                .into_iter()
                .flatten()
        };
        let affine = [&scale, &shift];
        let mut devices = maps().map(Tensor::device).chain(affine.map(Tensor::device));
        let autodiff = devices.any(|device| device.is_autodiff());
        let tracked = maps().any(Tensor::is_tracked) || affine.into_iter().any(Tensor::is_tracked);
        [autodiff, tracked]
    };
    if autodiff && !tracked {
        // What is frozen needs no graph.
        let (x, weight) = (plain(x), plain(weight));
        let (affine, skip) = ([plain(scale), plain(shift)], skip.map(plain));
        let y = conv2d_act(x, weight, affine, skip, activation, options);
        return Tensor::from_inner(y);
    }
    #[cfg(feature = "flex")]
    if crate::cpu::tensor::handles(&x) && !autodiff {
        let relu = activation == Activation::Relu;
        return ops::conv2d_act(x, weight, [scale, shift], skip, relu, options);
    }
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&x.device(), x.dtype()) && !autodiff {
        let affine = [scale, shift].map(|values| values.cast(DType::F32));
        let weight = match rounds_weight(&x) {
            true => weight,
            false => weight.cast(x.dtype()),
        };
        return crate::norm::affine(conv2d(x, weight, None, options), affine, skip, activation);
    }
    let c_out = weight.dims()[0];
    let scale = scale.cast(weight.dtype()).reshape([c_out, 1, 1, 1]);
    let weight = (weight * scale).cast(x.dtype());
    let shift = shift.cast(x.dtype());
    let mut y = conv2d(x, weight, Some(shift), options);
    if let Some(skip) = skip {
        y = y + skip;
    }
    match activation {
        Activation::Relu => relu(y),
        Activation::None => y,
    }
}

/// `tensor` without autodiff.
fn plain<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.device().is_autodiff() {
        true => tensor.inner(),
        false => tensor,
    }
}
