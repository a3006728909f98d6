//! The dtypes that policies speak of.

use burn::tensor::{DType, FloatDType};
use serde::{Deserialize, Serialize};

/// A floating-point precision as policies name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// IEEE half: 11 bits of significand, largest value 65504, smallest normal 6.1e-5.
    F16,
    /// bfloat16: 8 bits of significand, the range of f32.
    Bf16,
    /// IEEE single.
    F32,
    /// Whatever the operation is given.
    Input,
}

impl Precision {
    pub(crate) const ALL: [Precision; 4] = [
        Precision::F16,
        Precision::Bf16,
        Precision::F32,
        Precision::Input,
    ];

    /// Burn's name of the precision, `None` for [`Precision::Input`].
    pub fn dtype(self) -> Option<FloatDType> {
        match self {
            Precision::F16 => Some(FloatDType::F16),
            Precision::Bf16 => Some(FloatDType::BF16),
            Precision::F32 => Some(FloatDType::F32),
            Precision::Input => None,
        }
    }
}

impl std::fmt::Display for Precision {
    /// The name used in policy files: `f16`, `bf16`, `f32` or `input`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// Whether casts apply to a dtype: f64 and quantized values are left alone.
pub(crate) fn castable(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Flex32)
}

/// Whether a dtype holds each value as a float of its own, as all do but the quantized ones.
pub(crate) fn is_plain(dtype: DType) -> bool {
    castable(dtype) || dtype == DType::F64
}
