//! The operations that a policy tells apart.

use serde::{Deserialize, Serialize};

/// An operation, or a family of operations that autocast treats alike.
///
/// The classes follow PyTorch's CUDA autocast lists (`aten/src/ATen/autocast_mode.h`). Deviations:
/// `Mean` is in the f32 class here, because Burn's mean may accumulate in its input's dtype;
/// `Attention`, `Rnn` and `PRelu` stand for the functions of that name, and `Model` for what PyTorch has no
/// need of. Variances count as means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Op {
    /// One-dimensional convolution.
    Conv1d,
    /// Two-dimensional convolution.
    Conv2d,
    /// Three-dimensional convolution.
    Conv3d,
    /// Transposed convolution of any rank.
    ConvTranspose,
    /// Matrix products, batched or not.
    Matmul,
    /// Matrix product with a weight, and bias.
    Linear,
    /// Scaled dot-product attention.
    Attention,
    /// Cells of recurrent networks.
    Rnn,
    /// A model that cannot be edited, as [one operation](crate::nn::whole).
    Model,
    /// Parametric ReLU.
    #[serde(rename = "prelu", alias = "p_relu")]
    PRelu,
    /// Exponential, and `expm1`, `sinh`, `cosh`, `tan`, which grow as fast.
    Exp,
    /// Inverse sine and cosine, which are steep at 1.
    InverseTrig,
    /// Logarithms of any base.
    Log,
    /// Powers, squares among them, and reciprocals.
    Pow,
    /// Softmax and softmin.
    Softmax,
    /// Logarithm of the softmax.
    LogSoftmax,
    /// Softplus.
    Softplus,
    /// Sums and cumulative sums.
    Sum,
    /// Means and variances.
    Mean,
    /// Products and cumulative products.
    Prod,
    /// Vector norms, distances and cosine similarity.
    Norm,
    /// Layer normalisation, and that by the root mean square.
    LayerNorm,
    /// Group and instance normalisation.
    GroupNorm,
    /// Every loss but `BinaryCrossEntropy`.
    Loss,
    /// Cross-entropy on probabilities, which autocast rejects: the f16 backward overflows.
    BinaryCrossEntropy,
    /// Upsampling and other interpolation.
    Interpolate,
    /// Batch normalisation: input in its own dtype, parameters and statistics in f32.
    BatchNorm,
    /// Pooling.
    Pool,
    /// Rows of a table that indices choose.
    Embedding,
    /// Sums, products, comparisons, concatenations, cross products, sampling and scattering: whatever
    /// combines several operands that are not in the lists above.
    Promote,
}

/// How a policy treats an [`Op`] unless it overrides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpClass {
    /// Runs in the compute dtype of the policy.
    Compute,
    /// Runs in f32.
    Full,
    /// Runs in the dtype of its input; parameters stay f32.
    Input,
    /// Runs in the widest dtype among its operands.
    Widest,
    /// Is an error under an enabled policy.
    Rejected,
}

impl Op {
    /// Every operation, in the order of the declaration.
    pub const ALL: &[Op] = &[
        Op::Conv1d,
        Op::Conv2d,
        Op::Conv3d,
        Op::ConvTranspose,
        Op::Matmul,
        Op::Linear,
        Op::Attention,
        Op::Rnn,
        Op::Model,
        Op::PRelu,
        Op::Exp,
        Op::InverseTrig,
        Op::Log,
        Op::Pow,
        Op::Softmax,
        Op::LogSoftmax,
        Op::Softplus,
        Op::Sum,
        Op::Mean,
        Op::Prod,
        Op::Norm,
        Op::LayerNorm,
        Op::GroupNorm,
        Op::Loss,
        Op::BinaryCrossEntropy,
        Op::Interpolate,
        Op::BatchNorm,
        Op::Pool,
        Op::Embedding,
        Op::Promote,
    ];

    /// The class of the operation.
    pub fn class(self) -> OpClass {
        match self {
            Op::Conv1d
            | Op::Conv2d
            | Op::Conv3d
            | Op::ConvTranspose
            | Op::Matmul
            | Op::Linear
            | Op::Attention
            | Op::Rnn
            | Op::Model
            | Op::PRelu => OpClass::Compute,
            Op::Exp
            | Op::InverseTrig
            | Op::Log
            | Op::Pow
            | Op::Softmax
            | Op::LogSoftmax
            | Op::Softplus
            | Op::Sum
            | Op::Mean
            | Op::Prod
            | Op::Norm
            | Op::LayerNorm
            | Op::GroupNorm
            | Op::Loss
            | Op::Interpolate => OpClass::Full,
            Op::BatchNorm | Op::Pool | Op::Embedding => OpClass::Input,
            Op::Promote => OpClass::Widest,
            Op::BinaryCrossEntropy => OpClass::Rejected,
        }
    }
}

impl std::fmt::Display for Op {
    /// The name used in policy files, such as `log_softmax`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}
