//! Casts of values, as the scope in force asks for them.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::Op;
use crate::precision::castable;
use crate::report::count_cast;
use crate::scope::target;
use crate::support::require;

/// Casts and counts, if there is something to cast.
///
/// # Panics
///
/// If the device does not compute in `dtype`.
pub(crate) fn convert<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let from = x.dtype();
    if from == DType::from(dtype) || !castable(from) {
        return x;
    }
    require(&x.device(), dtype);
    count_cast(x.shape().num_elements() * DType::from(dtype).size());
    x.cast(dtype)
}

/// Casts an activation to what the current policy prescribes for `op`.
///
/// f64 and quantized values stay as they are. Under a disabled policy this returns `x` itself.
///
/// # Panics
///
/// For [`Op::BinaryCrossEntropy`] under an enabled policy, and where the device does not compute in
/// the dtype, which [`Policy::check`](crate::Policy::check) tells beforehand.
pub fn cast<const D: usize>(op: Op, x: Tensor<D>) -> Tensor<D> {
    match target(op) {
        Some(dtype) => convert(x, dtype),
        None => x,
    }
}
