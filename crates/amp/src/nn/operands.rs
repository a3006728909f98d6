//! What a layer computes with: its input and parameters in one dtype.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};

use crate::observe::is_idle;
use crate::precision::is_plain;
use crate::promote::widen;
use crate::statistics::statistics_ids;
use crate::{Op, cast_param, operands};

/// Whether a layer's own `forward` does what is wanted: nothing is in force, and nothing is mixed.
pub(super) fn as_it_is<const D: usize, const E: usize>(
    x: &Tensor<D>,
    weight: &Param<Tensor<E>>,
) -> bool {
    is_idle() && x.dtype() == weight.dtype()
}

/// An input and a weight in one dtype, the weight as a stand-in for its parameter.
pub(super) fn with_weight<const D: usize, const E: usize>(
    op: Op,
    x: Tensor<D>,
    weight: &Param<Tensor<E>>,
) -> (Tensor<D>, Param<Tensor<E>>) {
    let (x, value) = operands(op, x, weight);
    (x, Param::initialized(weight.id, value))
}

/// A further parameter in the dtype of the input that [`with_weight`] returned.
pub(super) fn further<const D: usize, const E: usize>(
    op: Op,
    x: &Tensor<D>,
    param: &Param<Tensor<E>>,
) -> Param<Tensor<E>> {
    let value = match is_plain(param.dtype()) {
        true => widen(cast_param(op, param), FloatDType::from(x.dtype())),
        false => param.val(),
    };
    Param::initialized(param.id, value)
}

/// As [`cast_module`], with the parameters widened to `dtype` where the policy leaves them narrower.
pub(super) fn module_in<M: Module>(op: Op, layer: &M, dtype: FloatDType) -> M {
    struct Caster(Op, FloatDType);
    impl ModuleMapper for Caster {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            Param::initialized(param.id, widen(cast_param(self.0, &param), self.1))
        }
    }
    layer.clone().map(&mut Caster(op, dtype))
}

/// A copy of a layer whose parameters are cast to what the policy prescribes for `op`.
///
/// For layers that have no function of their own here, and for models that cannot be edited. The casts
/// are the shared ones of [`cast_param`]; the input is the caller's to [`cast`](crate::cast()). All of
/// the layer then runs in that dtype, norms and softmax too.
///
/// burn-nn's recurrent layers cannot be cast this way, since they write into f32 buffers of their own:
/// use [`lstm`](super::lstm), [`gru`](super::gru) and [`rnn`](super::rnn).
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
/// [`batch_norm`](super::batch_norm).
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
