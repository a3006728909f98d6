//! Convolutions on GPUs that sum in f32, whatever the dtype of their maps: Burn's choose among kernels by
//! speed alone, and some of those sum f16 in f16.
//!
//! Depthwise convolutions have kernels of their own. Others go through matrix products and in f16 and bf16 through
//! implicit ones (`dense`), and grouped ones through kernels of one value a unit (`direct`). Those in f32 that are not
//! depthwise are left to Burn where it does not round them to TF32, or where `HALFSEG_TF32=1` allows it.

mod bias;
#[cfg(feature = "cudnn")]
mod cudnn;
mod dense;
mod depthwise;
mod direct;
mod ops;
mod phases;
mod problem;
mod product;
mod rounded;
mod split;
mod tried;
mod weight;
mod window;

use std::sync::OnceLock;

use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::permute_nhwc_to_nchw;
use burn_cubecl::tensor::CubeTensor;

use self::ops::GpuConvolution;
pub use self::rounded::with_rounded;
use self::weight::{by_input, by_output, by_tap};
use self::window::pixels;
use super::Conv2dOptions;

/// Whether a convolution runs here.
pub fn handles(x: &Tensor<4>, weight: &Tensor<4>, options: Conv2dOptions) -> bool {
    let (channels, [c_out, depth, ..]) = (x.dims()[1], weight.dims());
    crate::gpu::launch::handles(&x.device(), x.dtype())
        && (x.dtype() != DType::F32
            || is_depthwise(channels, c_out, depth, options)
            || rounds_products(&x.device()))
}

/// See [`super::rounds_products`].
pub fn rounds_products(device: &Device) -> bool {
    static ASKED_FOR: OnceLock<bool> = OnceLock::new();
    let asked_for = ASKED_FOR.get_or_init(|| {
        let value = std::env::var_os("HALFSEG_TF32");
        assert!(
            value
                .as_ref()
                .is_none_or(|value| value == "0" || value == "1"),
            "HALFSEG_TF32: expected 0 or 1, found {value:?}"
        );
        value.is_some_and(|value| value == "1")
    });
    let launch = crate::gpu::launch::handles(device, DType::F32);
    launch && !asked_for && crate::gpu::launch::multiplies(device, DType::F32)
}

fn is_depthwise(c_in: usize, c_out: usize, depth: usize, options: Conv2dOptions) -> bool {
    options.groups > 1 && c_in == options.groups && c_out == options.groups && depth == 1
}

/// Whether the weight of `x` may be f32: see [`super::rounds_weight`].
pub fn rounds_weight(x: &Tensor<4>) -> bool {
    x.dtype() != DType::F32 && crate::gpu::launch::handles(&x.device(), x.dtype())
}

/// See [`super::conv2d`].
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: Conv2dOptions,
) -> Tensor<4> {
    let dtype = x.dtype();
    let rounded = weight.dtype() == DType::F32 && rounds_weight(&x);
    assert!(
        (weight.dtype() == dtype || rounded)
            && bias.as_ref().is_none_or(|bias| bias.dtype() == dtype),
        "operands of a convolution must have one dtype, not {dtype:?} and {:?}: cast them first",
        weight.dtype()
    );
    // What does not fit is refused here, and not in the thread that launches kernels.
    assert!(
        !x.dims().contains(&0) && !weight.dims().contains(&0),
        "a GPU convolves no map {:?} by a weight {:?}: one of them has no values",
        x.dims(),
        weight.dims()
    );
    options.output_size(x.dims(), weight.dims());
    let y = ops::conv2d(x, weight, options);
    match bias {
        Some(bias) => bias::add(y, bias),
        None => y,
    }
}

impl GpuConvolution for CubeBackend {
    fn halfseg_gpu_conv2d(x: CubeTensor, weight: CubeTensor, options: Conv2dOptions) -> CubeTensor {
        let (shape, kernel) = (x.meta.shape().dims(), weight.meta.shape().dims());
        let to = options.output_size(shape, kernel);
        let ([_, c_in, ..], [c_out, depth, kh, kw]) = (shape, kernel);
        let dtype = x.dtype;
        let x = pixels(x);
        let output = if is_depthwise(c_in, c_out, depth, options) {
            depthwise::convolve(x, by_tap(weight, dtype), [kh, kw], to, options, false)
        } else if options.groups == 1 {
            dense::correlate(x, by_output(weight, dtype), to, options)
        } else {
            direct::convolve(x, by_output(weight, dtype), to, options, false)
        };
        permute_nhwc_to_nchw(output)
    }

    fn halfseg_gpu_round_weight(weight: CubeTensor, dtype: DType) -> CubeTensor {
        permute_nhwc_to_nchw(by_output(weight, dtype))
    }

    fn halfseg_gpu_remember_rounded(_: CubeTensor, rounded: CubeTensor) -> CubeTensor {
        rounded
    }

    fn halfseg_gpu_conv2d_input_gradient(
        weight: CubeTensor,
        gradient: CubeTensor,
        size: [usize; 2],
        options: Conv2dOptions,
    ) -> CubeTensor {
        let [c_out, depth, kh, kw] = weight.meta.shape().dims();
        let groups = options.groups;
        let dtype = gradient.dtype;
        let gradient = pixels(gradient);
        let output = if is_depthwise(depth * groups, c_out, depth, options) {
            let weight = by_tap(weight, dtype);
            depthwise::convolve(gradient, weight, [kh, kw], size, options, true)
        } else if groups == 1 {
            phases::input_gradient(weight, gradient, size, options)
        } else {
            let weight = by_input(weight, groups, dtype);
            direct::convolve(gradient, weight, size, options, true)
        };
        permute_nhwc_to_nchw(output)
    }

    fn halfseg_gpu_bias_gradient(gradient: CubeTensor) -> CubeTensor {
        bias::gradient(gradient)
    }

    fn halfseg_gpu_conv2d_weight_gradient(
        x: CubeTensor,
        gradient: CubeTensor,
        kernel: [usize; 2],
        dtype: DType,
        options: Conv2dOptions,
    ) -> CubeTensor {
        let [c_in, c_out] = [&x, &gradient].map(|map| map.meta.shape()[1]);
        let depth = c_in / options.groups;
        let (x, gradient) = (pixels(x), pixels(gradient));
        let taps = kernel[0] * kernel[1];
        if is_depthwise(c_in, c_out, depth, options) && taps <= depthwise::TAPS {
            return depthwise::weight_gradient(x, gradient, kernel, dtype, options);
        }
        match options.groups {
            1 => dense::weight_gradient(x, gradient, kernel, dtype, options),
            _ => direct::weight_gradient(x, gradient, kernel, dtype, options),
        }
    }
}
