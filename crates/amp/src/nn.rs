//! Layers of burn-nn under the policy in force.
//!
//! A model made of burn-nn layers adopts autocast by calling these in its forward pass,
//! `nn::conv2d(&self.conv, x)` in place of `self.conv.forward(x)`. The layers, their parameters and
//! their checkpoints stay what they are; without a scope the functions are their `forward`.
//! Activations such as ReLU need no counterpart: they run in the dtype of their input.

use burn::module::Param;
use burn::nn::conv::{Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d};
use burn::nn::loss::CrossEntropyLoss;
use burn::nn::{BatchNorm, GroupNorm, InstanceNorm, LayerNorm, Linear};
use burn::tensor::{FloatDType, Int, Tensor};

use crate::{Op, cast, cast_param, observe};

/// A stand-in for a parameter, holding its cast.
fn stand_in<const D: usize>(op: Op, param: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    Param::initialized(param.id, cast_param(op, param))
}

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
            observe(Op::$op, &layer.weight, x, |x| {
                let mut layer = layer.clone();
                layer.weight = stand_in(Op::$op, &layer.weight);
                layer.bias = layer.bias.map(|bias| stand_in(Op::$op, &bias));
                layer.forward(cast(Op::$op, x))
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
    observe(Op::Linear, &layer.weight, x, |x| {
        let layer = Linear {
            weight: stand_in(Op::Linear, &layer.weight),
            bias: layer.bias.as_ref().map(|bias| stand_in(Op::Linear, bias)),
        };
        layer.forward(cast(Op::Linear, x))
    })
}

/// [`BatchNorm::forward`] with f32 arithmetic and statistics; the output has the dtype of the input.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn batch_norm<const D: usize>(layer: &BatchNorm, x: Tensor<D>) -> Tensor<D> {
    observe(Op::BatchNorm, &layer.gamma, x, |x| {
        let x = cast(Op::BatchNorm, x);
        let dtype = FloatDType::from(x.dtype());
        match dtype {
            // f16 overflows as soon as a value is 256 away from the mean.
            FloatDType::F16 | FloatDType::BF16 => {
                layer.forward(x.cast(FloatDType::F32)).cast(dtype)
            }
            _ => layer.forward(x),
        }
    })
}

/// [`LayerNorm::forward`] in f32.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn layer_norm<const D: usize>(layer: &LayerNorm, x: Tensor<D>) -> Tensor<D> {
    observe(Op::LayerNorm, &layer.gamma, x, |x| {
        let mut layer = layer.clone();
        layer.gamma = stand_in(Op::LayerNorm, &layer.gamma);
        layer.beta = layer.beta.map(|beta| stand_in(Op::LayerNorm, &beta));
        layer.forward(cast(Op::LayerNorm, x))
    })
}

/// [`GroupNorm::forward`] in f32.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn group_norm<const D: usize>(layer: &GroupNorm, x: Tensor<D>) -> Tensor<D> {
    observe(Op::GroupNorm, site(&layer.gamma, "group_norm"), x, |x| {
        let mut layer = layer.clone();
        layer.gamma = layer.gamma.map(|gamma| stand_in(Op::GroupNorm, &gamma));
        layer.beta = layer.beta.map(|beta| stand_in(Op::GroupNorm, &beta));
        layer.forward(cast(Op::GroupNorm, x))
    })
}

/// [`InstanceNorm::forward`] in f32.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn instance_norm<const D: usize>(layer: &InstanceNorm, x: Tensor<D>) -> Tensor<D> {
    observe(Op::GroupNorm, site(&layer.gamma, "instance_norm"), x, |x| {
        let mut layer = layer.clone();
        layer.gamma = layer.gamma.map(|gamma| stand_in(Op::GroupNorm, &gamma));
        layer.beta = layer.beta.map(|beta| stand_in(Op::GroupNorm, &beta));
        layer.forward(cast(Op::GroupNorm, x))
    })
}

fn site<'a>(param: &Option<Param<Tensor<1>>>, name: &'a str) -> crate::Site<'a> {
    param
        .as_ref()
        .map_or(crate::Site::Name(name), |param| param.into())
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
