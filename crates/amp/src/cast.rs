//! Casts of values, as the scope in force asks for them.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::Op;
use crate::report::count_cast;
use crate::scope::target;

/// Whether casts apply to a dtype: f64 and quantized values are left alone.
pub(crate) fn castable(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Flex32)
}

/// Casts and counts, if there is something to cast.
pub(crate) fn convert<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let from = x.dtype();
    if from == DType::from(dtype) || !castable(from) {
        return x;
    }
    count_cast(x.shape().num_elements() * DType::from(dtype).size());
    x.cast(dtype)
}

/// Casts an activation to what the current policy prescribes for `op`.
///
/// f64 stays f64. Under a disabled policy this returns `x` itself.
///
/// # Panics
///
/// For [`Op::BinaryCrossEntropy`] under an enabled policy.
pub fn cast<const D: usize>(op: Op, x: Tensor<D>) -> Tensor<D> {
    match target(op) {
        Some(dtype) => convert(x, dtype),
        None => x,
    }
}
