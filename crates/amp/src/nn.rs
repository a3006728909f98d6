//! Layers of burn-nn under the policy in force.
//!
//! A model made of burn-nn layers adopts autocast by calling these in its forward pass,
//! `nn::conv2d(&self.conv, x)` in place of `self.conv.forward(x)`. The layers, their parameters and
//! their checkpoints stay what they are; without a scope the functions are their `forward`.
//! Activations such as ReLU need no counterpart: they run in the dtype of their input.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d};
use burn::nn::loss::CrossEntropyLoss;
use burn::nn::{BatchNorm, GroupNorm, InstanceNorm, LayerNorm, Linear, PRelu};
use burn::tensor::{FloatDType, Int, Tensor, activation};

use crate::observe::is_idle;
use crate::promote::widen;
use crate::statistics::statistics_ids;
use crate::{Op, cast, cast_param, observe, operands};

/// Whether a layer's own `forward` does what is wanted: nothing is in force, and nothing is mixed.
fn as_it_is<const D: usize, const E: usize>(x: &Tensor<D>, weight: &Param<Tensor<E>>) -> bool {
    is_idle() && x.dtype() == weight.dtype()
}

/// An input and a weight in one dtype, the weight as a stand-in for its parameter.
fn with_weight<const D: usize, const E: usize>(
    op: Op,
    x: Tensor<D>,
    weight: &Param<Tensor<E>>,
) -> (Tensor<D>, Param<Tensor<E>>) {
    let (x, value) = operands(op, x, weight);
    (x, Param::initialized(weight.id, value))
}

/// A further parameter in the dtype of the input that [`with_weight`] returned.
fn further<const D: usize, const E: usize>(
    op: Op,
    x: &Tensor<D>,
    param: &Param<Tensor<E>>,
) -> Param<Tensor<E>> {
    let value = widen(cast_param(op, param), FloatDType::from(x.dtype()));
    Param::initialized(param.id, value)
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
        activation::prelu(x, alpha)
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

/// A copy of a layer whose parameters are cast to what the policy prescribes for `op`.
///
/// For layers that have no function of their own here, such as attention blocks and embeddings.
/// The casts are the shared ones of [`cast_param`]; the input is the caller's to [`cast`](crate::cast()).
///
/// Burn's recurrent layers cannot be cast this way: they write into f32 buffers of their own.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{DType, Device, Tensor};
/// use halfseg_amp::{Op, Policy, autocast, cast, nn};
///
/// let device = Device::flex();
/// let layer = LinearConfig::new(4, 8).init(&device);
/// let x = Tensor::<2>::ones([2, 4], &device);
/// let y = autocast(&Policy::bf16(), || {
///     nn::cast_module(Op::Linear, &layer).forward(cast(Op::Linear, x))
/// });
/// assert_eq!(y.dtype(), DType::BF16);
/// ```
///
/// # Panics
///
/// If the layer has running statistics, which all copies share and which stay f32: use
/// [`batch_norm`].
pub fn cast_module<M: Module>(op: Op, layer: &M) -> M {
    struct Caster(Op);
    impl ModuleMapper for Caster {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            Param::initialized(param.id, cast_param(self.0, &param))
        }
    }
    assert!(
        statistics_ids(layer).is_empty(),
        "a layer with running statistics cannot be cast as a whole: use `nn::batch_norm`"
    );
    layer.clone().map(&mut Caster(op))
}
