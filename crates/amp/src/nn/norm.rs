//! Normalisation.

use burn::module::Param;
use burn::nn::norm::Normalization;
use burn::nn::{BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm};
use burn::tensor::{FloatDType, Tensor};

use super::operands::{as_it_is, further, with_weight};
use crate::{Op, Site, cast, observe};

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
    if as_it_is(&x, &layer.gamma) {
        return layer.forward(x);
    }
    observe(Op::LayerNorm, &layer.gamma, x, |x| {
        let mut layer = layer.clone();
        let (x, gamma) = with_weight(Op::LayerNorm, x, &layer.gamma);
        layer.gamma = gamma;
        layer.beta = layer.beta.map(|beta| further(Op::LayerNorm, &x, &beta));
        layer.forward(x)
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
        let mut x = cast(Op::GroupNorm, x);
        if let Some(gamma) = &layer.gamma {
            let (promoted, gamma) = with_weight(Op::GroupNorm, x, gamma);
            x = promoted;
            layer.gamma = Some(gamma);
        }
        layer.beta = layer.beta.map(|beta| further(Op::GroupNorm, &x, &beta));
        layer.forward(x)
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
        let mut x = cast(Op::GroupNorm, x);
        if let Some(gamma) = &layer.gamma {
            let (promoted, gamma) = with_weight(Op::GroupNorm, x, gamma);
            x = promoted;
            layer.gamma = Some(gamma);
        }
        layer.beta = layer.beta.map(|beta| further(Op::GroupNorm, &x, &beta));
        layer.forward(x)
    })
}

fn site<'a>(param: &Option<Param<Tensor<1>>>, name: &'a str) -> Site<'a> {
    param
        .as_ref()
        .map_or(Site::Name(name), |param| param.into())
}

/// [`RmsNorm::forward`] in f32.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn rms_norm<const D: usize>(layer: &RmsNorm, x: Tensor<D>) -> Tensor<D> {
    if as_it_is(&x, &layer.gamma) {
        return layer.forward(x);
    }
    observe(Op::LayerNorm, &layer.gamma, x, |x| {
        let mut layer = layer.clone();
        let (x, gamma) = with_weight(Op::LayerNorm, x, &layer.gamma);
        layer.gamma = gamma;
        layer.forward(x)
    })
}

/// [`Normalization::forward`], by the function here of the layer that it holds.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn normalization<const D: usize>(layer: &Normalization, x: Tensor<D>) -> Tensor<D> {
    match layer {
        Normalization::Batch(layer) => batch_norm(layer, x),
        Normalization::Group(layer) => group_norm(layer, x),
        Normalization::Instance(layer) => instance_norm(layer, x),
        Normalization::Layer(layer) => layer_norm(layer, x),
        Normalization::Rms(layer) => rms_norm(layer, x),
        // Without arithmetic of its own.
        other => other.forward(x),
    }
}
