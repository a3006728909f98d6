//! Batch normalisation with the addition and the activation that follow it.

use burn::tensor::{DType, FloatDType, Tensor, activation::relu};

/// What follows a normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
}

/// The result of [`batch_norm_train`].
#[derive(Clone, Debug)]
pub struct BatchNormOutput {
    /// `act(gamma * (x - mean) / sqrt(variance + epsilon) + beta + skip)`, `[n, c, h, w]`, in `x`'s dtype.
    pub output: Tensor<4>,
    /// The batch's mean of each channel, f32 `[c]`, detached.
    pub mean: Tensor<1>,
    /// The batch's **biased** variance of each channel, f32 `[c]`, detached.
    pub variance: Tensor<1>,
}

/// Normalises `x` with the batch's own statistics, adds `skip`, applies `activation`: one
/// differentiable operation that keeps its input in the input's dtype and two f32 values a channel.
///
/// Statistics and arithmetic are f32 whatever `x`'s dtype is.
///
/// # Shapes
/// - `x`, `skip`, output: `[n, c, h, w]`, one dtype
/// - `gamma`, `beta`: f32 `[c]`
///
/// # Panics
/// If shapes or dtypes differ from these.
pub fn batch_norm_train(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
) -> BatchNormOutput {
    let dtype = x.dtype();
    let [n, c, h, w] = x.dims();
    let x = x.cast(FloatDType::F32);
    let flat = x.clone().swap_dims(0, 1).reshape([c, n * h * w]);
    let mean = flat.clone().mean_dim(1);
    let variance = (flat - mean.clone()).square().mean_dim(1);
    let per_channel = |t: Tensor<1>| t.reshape([1, c, 1, 1]);
    let (mean, variance) = (mean.reshape([c]), variance.reshape([c]));
    let scale = gamma / (variance.clone() + epsilon).sqrt();
    let shift = beta - mean.clone() * scale.clone();
    let mut y = x * per_channel(scale) + per_channel(shift);
    if let Some(skip) = skip {
        y = y + skip.cast(FloatDType::F32);
    }
    if activation == Activation::Relu {
        y = relu(y);
    }
    let output = match dtype {
        DType::F16 => y.cast(FloatDType::F16),
        DType::BF16 => y.cast(FloatDType::BF16),
        _ => y,
    };
    BatchNormOutput {
        output,
        mean: mean.detach(),
        variance: variance.detach(),
    }
}
