//! Layers that multiply their input by weights, and activations.

use burn::nn::activation::Activation;
use burn::nn::conv::{
    Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, DeformConv2d,
};
use burn::nn::loss::CrossEntropyLoss;
use burn::nn::{Embedding, Linear, PRelu, SwiGlu};
use burn::tensor::{FloatDType, Int, Tensor, activation as functions};

use super::operands::{as_it_is, further, with_weight};
use crate::{Op, cast, mul, observe, operands};

macro_rules! weighted {
    ($(
        $(#[$doc:meta])*
        $name:ident, $layer:ident, $op:ident, [$($rank:tt)*]: $d:expr;
    )*) => {$(
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// As the layer's `forward`.
        pub fn $name $($rank)* (layer: &$layer, x: Tensor<$d>) -> Tensor<$d> {
            if as_it_is(&x, &layer.weight) {
                return layer.forward(x);
            }
            observe(Op::$op, &layer.weight, x, |x| {
                let mut layer = layer.clone();
                let (x, weight) = with_weight(Op::$op, x, &layer.weight);
                layer.weight = weight;
                layer.bias = layer.bias.map(|bias| further(Op::$op, &x, &bias));
                layer.forward(x)
            })
        }
    )*};
}

weighted! {
    /// [`Conv1d::forward`] in the compute dtype.
    conv1d, Conv1d, Conv1d, []: 3;
    /// [`Conv2d::forward`] in the compute dtype.
    conv2d, Conv2d, Conv2d, []: 4;
    /// [`Conv3d::forward`] in the compute dtype.
    conv3d, Conv3d, Conv3d, []: 5;
    /// [`ConvTranspose1d::forward`] in the compute dtype.
    conv_transpose1d, ConvTranspose1d, ConvTranspose, []: 3;
    /// [`ConvTranspose2d::forward`] in the compute dtype.
    conv_transpose2d, ConvTranspose2d, ConvTranspose, []: 4;
    /// [`ConvTranspose3d::forward`] in the compute dtype.
    conv_transpose3d, ConvTranspose3d, ConvTranspose, []: 5;
}

/// [`Linear::forward`] in the compute dtype.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    if as_it_is(&x, &layer.weight) {
        return layer.forward(x);
    }
    observe(Op::Linear, &layer.weight, x, |x| {
        let (x, weight) = with_weight(Op::Linear, x, &layer.weight);
        let bias = layer
            .bias
            .as_ref()
            .map(|bias| further(Op::Linear, &x, bias));
        Linear { weight, bias }.forward(x)
    })
}

/// [`PRelu::forward`] in the compute dtype.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn prelu<const D: usize>(layer: &PRelu, x: Tensor<D>) -> Tensor<D> {
    if as_it_is(&x, &layer.alpha) {
        return layer.forward(x);
    }
    observe(Op::PRelu, &layer.alpha, x, |x| {
        let (x, alpha) = operands(Op::PRelu, x, &layer.alpha);
        functions::prelu(x, alpha)
    })
}

/// [`DeformConv2d::forward`] in the compute dtype, `offset` and `mask` included.
///
/// # Shapes
/// - `x`: `[n, c_in, h, w]`
/// - `offset`: `[n, 2 * offset_groups * kernel_h * kernel_w, h_out, w_out]`
/// - `mask`: `[n, offset_groups * kernel_h * kernel_w, h_out, w_out]`
/// - output: `[n, c_out, h_out, w_out]`
///
/// # Panics
///
/// As the layer's `forward`.
pub fn deform_conv2d(
    layer: &DeformConv2d,
    x: Tensor<4>,
    offset: Tensor<4>,
    mask: Option<Tensor<4>>,
) -> Tensor<4> {
    let of_one_dtype = [Some(&offset), mask.as_ref()]
        .into_iter()
        .flatten()
        .all(|other| other.dtype() == x.dtype());
    if of_one_dtype && as_it_is(&x, &layer.weight) {
        return layer.forward(x, offset, mask);
    }
    let inputs = (x, offset, mask);
    observe(Op::Conv2d, &layer.weight, inputs, |(x, offset, mask)| {
        let mut layer = layer.clone();
        let (x, weight) = with_weight(Op::Conv2d, x, &layer.weight);
        layer.weight = weight;
        layer.bias = layer.bias.map(|bias| further(Op::Conv2d, &x, &bias));
        let dtype = FloatDType::from(x.dtype());
        let as_x = |other: Tensor<4>| other.cast(dtype);
        let (offset, mask) = (as_x(offset), mask.map(as_x));
        layer.forward(x, offset, mask)
    })
}

/// [`SwiGlu::forward`] with its products in the compute dtype.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn swiglu<const D: usize>(layer: &SwiGlu, x: Tensor<D>) -> Tensor<D> {
    let inner = functions::silu(linear(&layer.linear_inner, x.clone()));
    mul(inner, linear(&layer.linear_outer, x))
}

/// [`Activation::forward`]: what has weights runs in the compute dtype, softplus in f32, all others in
/// the dtype of their input.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn activation<const D: usize>(layer: &Activation, x: Tensor<D>) -> Tensor<D> {
    match layer {
        Activation::PRelu(layer) => prelu(layer, x),
        Activation::SwiGlu(layer) => swiglu(layer, x),
        Activation::Softplus(layer) => observe(Op::Softplus, "softplus", x, |x| {
            layer.forward(cast(Op::Softplus, x))
        }),
        other => other.forward(x),
    }
}

/// [`Embedding::forward`]: rows of the table in its own dtype, f32 as a rule, as in PyTorch. A policy
/// that gives [`Op::Embedding`] or the module a precision has the rows cast, not the table.
///
/// # Shapes
/// - `x`: `[batch, length]`
/// - output: `[batch, length, d_model]`
pub fn embedding(layer: &Embedding, x: Tensor<2, Int>) -> Tensor<3> {
    observe(Op::Embedding, &layer.weight, x, |x| {
        cast(Op::Embedding, layer.forward(x))
    })
}

/// [`CrossEntropyLoss::forward`] in f32, of logits `[n, classes]` and class numbers `[n]`.
///
/// # Panics
///
/// As the loss's `forward`.
pub fn cross_entropy(
    loss: &CrossEntropyLoss,
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    observe(
        Op::Loss,
        "cross_entropy",
        (logits, targets),
        |(logits, targets)| loss.forward(cast(Op::Loss, logits), targets),
    )
}
