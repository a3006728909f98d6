//! A normalisation whose statistics are of more maps than its own: those of several devices.

use std::sync::Arc;

use burn::tensor::{FloatDType, Tensor};

use super::parts::{BatchParts, shared_statistics};
use super::{BatchNormOutput, check};
use crate::{Activation, AnyTensor, takes_gradients, with_gradient};

/// [`batch_norm_train`](super::batch_norm_train) with the statistics of all parts of a batch, which are of
/// one size: two numbers a channel are exchanged in each direction, first the parts' means and sums of
/// squared deviations, `[2 * c]`, then the sums of the gradients of beta and gamma, `[2 * c]`. The
/// gradients of gamma and beta are those of this part.
///
/// On the CPU and on GPUs kernels do it, which keep what those for a single device keep. Elsewhere it is composed of
/// Burn's operations in f32, and keeps `x`, and with a ReLU the output, in their own dtype.
///
/// # Shapes
/// As [`batch_norm_train`](super::batch_norm_train).
///
/// # Panics
/// As [`batch_norm_train`](super::batch_norm_train), as `parts` does, and for what
/// [`takes_gradients`] refuses.
pub fn batch_norm_shared(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
    parts: Arc<dyn BatchParts>,
) -> BatchNormOutput {
    check(&x, [&gamma, &beta], skip.as_ref());
    assert!(
        takes_gradients(&x.device()),
        "synchronised batch normalisation needs the CPU or a GPU, with autodiff and without Burn's \
         gradient checkpointing, not {:?}",
        x.device()
    );
    #[cfg(feature = "flex")]
    if crate::cpu::tensor::handles(&x) {
        return super::passes::batch_norm(x, [gamma, beta], epsilon, skip, activation, parts);
    }
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&x.device(), x.dtype()) {
        return super::passes::batch_norm(x, [gamma, beta], epsilon, skip, activation, parts);
    }
    compose(x, [gamma, beta], epsilon, skip, activation, parts)
}

/// The same of Burn's operations.
fn compose(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
    parts: Arc<dyn BatchParts>,
) -> BatchNormOutput {
    let [n, c, h, w] = x.dims();
    let count = (n * h * w) as f64;
    let dtype = FloatDType::from(x.dtype());
    let sum = move |map: Tensor<4>| {
        let rows = map.swap_dims(0, 1).reshape([c, n * h * w]);
        rows.sum_dim(1).reshape([c])
    };
    let per_channel = move |values: Tensor<1>| values.reshape([1, c, 1, 1]);

    let mut inputs = vec![
        AnyTensor::from(x.clone()),
        gamma.clone().into(),
        beta.clone().into(),
    ];
    inputs.extend(skip.clone().map(AnyTensor::from));
    let (x, gamma, beta) = (x.inner(), gamma.inner(), beta.inner());

    let wide = x.clone().cast(FloatDType::F32);
    let own = sum(wide.clone()) / count;
    let squares = sum((wide.clone() - per_channel(own.clone())).square());
    let ([mean, variance], total) = shared_statistics(&*parts, own, squares, count);
    let inverse = (variance.clone() + epsilon).sqrt().recip();

    let scale = per_channel(gamma * inverse.clone());
    let mut y = (wide - per_channel(mean.clone())) * scale.clone() + per_channel(beta);
    let skipped = skip.is_some();
    if let Some(skip) = skip {
        y = y + skip.inner().cast(FloatDType::F32);
    }
    if activation == Activation::Relu {
        // Not `max`, which may turn NaN into 0 and hide an overflow from the gradient scaler.
        let negative = y.clone().lower_scalar(0.0);
        y = y.mask_fill(negative, 0.0);
    }
    let output = y.cast(dtype);

    let result = BatchNormOutput {
        output: output.clone(),
        mean: mean.clone(),
        variance,
    };
    let kept = (activation == Activation::Relu).then_some(output);
    let (mean, inverse) = (per_channel(mean), per_channel(inverse));
    let output = with_gradient(inputs, result.output, move |gradient| {
        let mut gradient = gradient.cast(FloatDType::F32);
        if let Some(output) = &kept {
            gradient = gradient.mask_fill(output.clone().lower_equal_scalar(0.0), 0.0);
        }
        let normalised = (x.clone().cast(FloatDType::F32) - mean.clone()) * inverse.clone();
        let dbeta = sum(gradient.clone());
        let dgamma = sum(gradient.clone() * normalised.clone());
        // The parameters' gradients are those of this part; the statistics belong to all parts.
        let sums = parts.sum(Tensor::cat(vec![dbeta.clone(), dgamma.clone()], 0)) / total;
        let [sum, product] = [0, c].map(|start| per_channel(sums.clone().narrow(0, start, c)));
        let dx = (gradient.clone() - sum - normalised * product) * scale.clone();
        let mut gradients = vec![
            Some(dx.cast(dtype).into()),
            Some(dgamma.into()),
            Some(dbeta.into()),
        ];
        if skipped {
            gradients.push(Some(gradient.cast(dtype).into()));
        }
        gradients
    });
    BatchNormOutput { output, ..result }
}
