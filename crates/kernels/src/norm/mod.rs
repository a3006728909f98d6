//! Batch normalisation with the addition and the activation that follow it.

#[cfg(feature = "cube")]
mod affine;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod cpu_passes;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod flex_passes;
#[cfg(any(feature = "flex", feature = "cube"))]
mod forward;
#[cfg(feature = "cube")]
mod gpu;
#[cfg(any(feature = "flex", feature = "cube"))]
mod ops;
mod parts;
#[cfg(any(feature = "flex", feature = "cube"))]
mod passes;
mod shared;

#[cfg(feature = "cube")]
pub use affine::affine;
pub use parts::BatchParts;
pub use shared::batch_norm_shared;

use burn::tensor::{DType, FloatDType, Tensor, activation::relu};

use crate::Activation;

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

/// Running statistics that [`batch_norm_train_moving`] moves.
#[derive(Clone, Debug)]
pub struct Running {
    /// Mean of each channel, f32 `[c]`.
    pub mean: Tensor<1>,
    /// **Unbiased** variance of each channel, f32 `[c]`, as PyTorch stores it.
    pub variance: Tensor<1>,
    /// Share that the batch's statistics have in the moved ones.
    pub momentum: f64,
}

/// As [`batch_norm_train`], and the running mean and variance moved by the batch's, detached:
/// `running * (1 - momentum) + batch * momentum`. Where kernels of this crate run, that costs none of its own.
///
/// # Shapes
/// As [`batch_norm_train`]; running statistics are on the device of `x`
///
/// # Panics
/// As [`batch_norm_train`], and if there is one value a channel, which has no unbiased variance.
pub fn batch_norm_train_moving(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
    running: Running,
) -> (Tensor<4>, [Tensor<1>; 2]) {
    let [n, c, h, w] = x.dims();
    let count = n * h * w;
    assert!(
        count > 1,
        "one value a channel has no unbiased variance: {:?}",
        x.dims()
    );
    check(&x, [&gamma, &beta], skip.as_ref());
    for state in [&running.mean, &running.variance] {
        assert!(
            state.dims() == [c] && state.dtype() == DType::F32,
            "running statistics must be F32 [{c}], not {:?} {:?}",
            state.dtype(),
            state.dims()
        );
    }
    #[cfg(any(feature = "flex", feature = "cube"))]
    if has_kernel(&x) {
        return ops::batch_norm_train(x, gamma, beta, epsilon, skip, activation, Some(running));
    }
    let output = compose(x, gamma, beta, epsilon, skip, activation);
    let unbiased = count as f64 / (count - 1) as f64;
    let Running {
        mean,
        variance,
        momentum,
    } = running;
    let moved = [
        mean * (1.0 - momentum) + output.mean * momentum,
        variance * (1.0 - momentum) + output.variance * (momentum * unbiased),
    ];
    (output.output, moved.map(Tensor::detach))
}

#[cfg(any(feature = "flex", feature = "cube"))]
fn has_kernel(x: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    if crate::cpu::tensor::handles(x) {
        return true;
    }
    #[cfg(feature = "cube")]
    if crate::gpu::launch::handles(&x.device(), x.dtype()) {
        return true;
    }
    false
}

/// Normalises `x` with the batch's own statistics, adds `skip`, applies `activation`.
///
/// Statistics and arithmetic are f32 whatever `x`'s dtype is, sums f64, on GPUs pairwise in f32. A
/// mean of many deviations costs no accuracy, and in f16 nothing overflows that the output can hold. NaN stays NaN behind a
/// ReLU too.
///
/// # Memory
/// On the CPU (Burn's Flex backend) and on GPUs that Burn reaches through CubeCL (features `cuda` and
/// `wgpu`) this is one differentiable operation. It keeps `x` in its own dtype and four f32 values a
/// channel; a ReLU's mask is computed from `x` again. Behind a skip connection the mask is read from
/// the output, which is kept by reference: the convolution that follows keeps the same tensor as its
/// input, so that a mask of one bit an element would come on top of it and not in its place. A
/// convolution, its normalisation and its activation therefore keep two values an element, `x` and
/// the output, with skip connection or without: 4 bytes in f16 and bf16, 8 in f32, if the convolution
/// keeps its input in that dtype.
///
/// The backward pass overwrites the output's gradient with that of `x` (on the CPU, behind a skip
/// connection, with that of `skip`), if nothing else holds it.
///
/// On other backends it is composed of Burn's operations, which keep several f32 maps.
///
/// # Shapes
/// - `x`, `skip`, output: `[n, c, h, w]`, one dtype
/// - `gamma`, `beta`: f32 `[c]`
///
/// # Panics
/// If shapes or dtypes differ from these, or a map is empty.
pub fn batch_norm_train(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
) -> BatchNormOutput {
    check(&x, [&gamma, &beta], skip.as_ref());
    #[cfg(any(feature = "flex", feature = "cube"))]
    if has_kernel(&x) {
        let (output, [mean, variance]) =
            ops::batch_norm_train(x, gamma, beta, epsilon, skip, activation, None);
        return BatchNormOutput {
            output,
            mean,
            variance,
        };
    }
    compose(x, gamma, beta, epsilon, skip, activation)
}

fn check(x: &Tensor<4>, [gamma, beta]: [&Tensor<1>; 2], skip: Option<&Tensor<4>>) {
    let [n, c, h, w] = x.dims();
    assert!(n * c * h * w > 0, "a map {:?} has no values", x.dims());
    for (name, parameter) in [("gamma", gamma), ("beta", beta)] {
        assert!(
            parameter.dims() == [c] && parameter.dtype() == DType::F32,
            "{name} of a batch normalisation must be F32 [{c}], not {:?} {:?}",
            parameter.dtype(),
            parameter.dims()
        );
    }
    if let Some(skip) = skip {
        assert!(
            skip.dims() == x.dims() && skip.dtype() == x.dtype(),
            "a skip connection must be as the map it is added to, {:?} {:?}, not {:?} {:?}",
            x.dtype(),
            x.dims(),
            skip.dtype(),
            skip.dims()
        );
    }
}

/// The same of Burn's operations.
fn compose(
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
    let mean_of = |map: Tensor<4>| {
        let rows = map.swap_dims(0, 1).reshape([c, n * h * w]);
        rows.mean_dim(1).reshape([c])
    };
    let per_channel = |t: Tensor<1>| t.reshape([1, c, 1, 1]);
    let mean = mean_of(x.clone());
    let centred = x - per_channel(mean.clone());
    let variance = mean_of(centred.clone().square());
    let scale = gamma / (variance.clone() + epsilon).sqrt();
    let mut y = centred * per_channel(scale) + per_channel(beta);
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
