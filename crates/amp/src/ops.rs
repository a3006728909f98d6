//! Tensor operations that obey the policy in force.
//!
//! Each casts its operands to what [`current`](crate::current) prescribes for its
//! [`Op`] and then calls Burn's function of the same name; without a scope it is that
//! function. Operations with weights are in [`nn`](crate::nn), those that promote mixed operands
//! (`add`, `cat`, ...) at the root of the crate.

use burn::tensor::ops::{AttentionModuleOptions, InterpolateOptions};
use burn::tensor::{Bool, Int, Tensor, activation, module};

use crate::{Op, cast, matmul_operands, observe, promote};

/// Matrix product of the last two dimensions.
pub fn matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    observe(Op::Matmul, "matmul", (a, b), |(a, b)| {
        let (a, b) = matmul_operands(a, b);
        a.matmul(b)
    })
}

/// Scaled dot-product attention of `[batch, heads, length, channels]`, in the compute dtype.
///
/// `mask` is true where a position must not be attended to.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
    options: AttentionModuleOptions,
) -> Tensor<4> {
    observe(
        Op::Attention,
        "attention",
        (query, key, value),
        |(query, key, value)| {
            let (query, key) = promote(cast(Op::Attention, query), cast(Op::Attention, key));
            let (query, value) = promote(query, cast(Op::Attention, value));
            let (key, value) = promote(key, value);
            module::attention(query, key, value, mask.clone(), None, options)
        },
    )
}

/// Exponential of each element, in f32.
pub fn exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Exp, "exp", x, |x| cast(Op::Exp, x).exp())
}

/// Hyperbolic sine of each element, in f32.
pub fn sinh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Exp, "sinh", x, |x| cast(Op::Exp, x).sinh())
}

/// Hyperbolic cosine of each element, in f32.
pub fn cosh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Exp, "cosh", x, |x| cast(Op::Exp, x).cosh())
}

/// Tangent of each element, in f32.
pub fn tan<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Exp, "tan", x, |x| cast(Op::Exp, x).tan())
}

/// Inverse cosine of each element, in f32.
pub fn acos<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::InverseTrig, "acos", x, |x| {
        cast(Op::InverseTrig, x).acos()
    })
}

/// Inverse sine of each element, in f32.
pub fn asin<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::InverseTrig, "asin", x, |x| {
        cast(Op::InverseTrig, x).asin()
    })
}

/// Natural logarithm of each element, in f32.
pub fn log<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Log, "log", x, |x| cast(Op::Log, x).log())
}

/// `log(1 + x)` of each element, in f32.
pub fn log1p<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Log, "log1p", x, |x| cast(Op::Log, x).log1p())
}

/// Each element to the power of the element of `exponent` at its place, in f32.
pub fn powf<const D: usize>(x: Tensor<D>, exponent: Tensor<D>) -> Tensor<D> {
    observe(Op::Pow, "powf", (x, exponent), |(x, exponent)| {
        let (x, exponent) = promote(cast(Op::Pow, x), cast(Op::Pow, exponent));
        x.powf(exponent)
    })
}

/// Each element to the power `exponent`, in f32.
pub fn powf_scalar<const D: usize>(x: Tensor<D>, exponent: f32) -> Tensor<D> {
    observe(Op::Pow, "powf_scalar", x, |x| {
        cast(Op::Pow, x).powf_scalar(exponent)
    })
}

/// Reciprocal of each element, in f32.
pub fn recip<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Pow, "recip", x, |x| cast(Op::Pow, x).recip())
}

/// Softmax along `dim`, in f32.
pub fn softmax<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Softmax, "softmax", x, |x| {
        activation::softmax(cast(Op::Softmax, x), dim)
    })
}

/// Softmax of the negated values along `dim`, in f32.
pub fn softmin<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Softmax, "softmin", x, |x| {
        activation::softmin(cast(Op::Softmax, x), dim)
    })
}

/// Logarithm of the softmax along `dim`, in f32.
pub fn log_softmax<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::LogSoftmax, "log_softmax", x, |x| {
        activation::log_softmax(cast(Op::LogSoftmax, x), dim)
    })
}

/// `log(1 + exp(beta x)) / beta`, in f32.
pub fn softplus<const D: usize>(x: Tensor<D>, beta: f64) -> Tensor<D> {
    observe(Op::Softplus, "softplus", x, |x| {
        activation::softplus(cast(Op::Softplus, x), beta)
    })
}

/// Sum of all elements, in f32.
pub fn sum<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    observe(Op::Sum, "sum", x, |x| cast(Op::Sum, x).sum())
}

/// Sum along `dim`, which keeps length 1, in f32.
pub fn sum_dim<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Sum, "sum_dim", x, |x| cast(Op::Sum, x).sum_dim(dim))
}

/// Cumulative sum along `dim`, in f32.
pub fn cumsum<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Sum, "cumsum", x, |x| cast(Op::Sum, x).cumsum(dim))
}

/// Mean of all elements, in f32.
pub fn mean<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    observe(Op::Mean, "mean", x, |x| cast(Op::Mean, x).mean())
}

/// Mean along `dim`, which keeps length 1, in f32.
pub fn mean_dim<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Mean, "mean_dim", x, |x| cast(Op::Mean, x).mean_dim(dim))
}

/// Product of all elements, in f32.
pub fn prod<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    observe(Op::Prod, "prod", x, |x| cast(Op::Prod, x).prod())
}

/// Product along `dim`, which keeps length 1, in f32.
pub fn prod_dim<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Prod, "prod_dim", x, |x| cast(Op::Prod, x).prod_dim(dim))
}

/// Cumulative product along `dim`, in f32.
pub fn cumprod<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Prod, "cumprod", x, |x| cast(Op::Prod, x).cumprod(dim))
}

/// Euclidean norm of all elements, in f32.
pub fn norm<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    observe(Op::Norm, "norm", x, |x| {
        let x = cast(Op::Norm, x);
        x.clone().mul(x).sum().sqrt()
    })
}

/// Any loss of values and targets of one shape, in f32, under a name of its own.
///
/// ```
/// use burn::nn::loss::{HuberLossConfig, Reduction};
/// use burn::tensor::{Device, FloatDType, Tensor};
/// use halfseg_amp::{Policy, autocast, ops};
///
/// let device = Device::flex();
/// let huber = HuberLossConfig::new(1.0).init();
/// let x = Tensor::<2>::ones([4, 2], &device).cast(FloatDType::F16);
/// let target = Tensor::<2>::zeros([4, 2], &device);
/// let loss = autocast(&Policy::f16(), || {
///     ops::loss("huber", x, target, |x, target| huber.forward(x, target, Reduction::Mean))
/// });
/// assert_eq!(loss.into_scalar::<f32>(), 0.5);
/// ```
pub fn loss<const D: usize, const E: usize>(
    name: &str,
    x: Tensor<D>,
    target: Tensor<D>,
    body: impl Fn(Tensor<D>, Tensor<D>) -> Tensor<E>,
) -> Tensor<E> {
    observe(Op::Loss, name, (x, target), |(x, target)| {
        let (x, target) = promote(cast(Op::Loss, x), cast(Op::Loss, target));
        body(x, target)
    })
}

/// Mean cross-entropy of class logits `[n, classes]` against class numbers `[n]`, in f32.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    observe(
        Op::Loss,
        "cross_entropy",
        (logits, targets),
        |(logits, targets)| {
            let logits = activation::log_softmax(cast(Op::Loss, logits), 1);
            logits.gather(1, targets.unsqueeze_dim(1)).mean().neg()
        },
    )
}

/// Mean squared error, in f32.
pub fn mse<const D: usize>(x: Tensor<D>, target: Tensor<D>) -> Tensor<1> {
    loss("mse", x, target, |x, target| x.sub(target).square().mean())
}

/// Mean binary cross-entropy of logits, in f32.
pub fn binary_cross_entropy_with_logits<const D: usize>(
    logits: Tensor<D>,
    targets: Tensor<D>,
) -> Tensor<1> {
    loss(
        "binary_cross_entropy_with_logits",
        logits,
        targets,
        |x, y| {
            // log(1 + e^x) - x y without overflow: max(x, 0) - x y + log(1 + e^-|x|).
            let tail = x.clone().abs().neg().exp().log1p();
            x.clone().clamp_min(0.0).sub(x.mul(y)).add(tail).mean()
        },
    )
}

/// Mean binary cross-entropy of probabilities.
///
/// # Panics
///
/// Under an enabled policy, as in PyTorch: the gradient overflows in half precision. Use
/// [`binary_cross_entropy_with_logits`].
pub fn binary_cross_entropy<const D: usize>(
    probabilities: Tensor<D>,
    targets: Tensor<D>,
) -> Tensor<1> {
    let p = cast(Op::BinaryCrossEntropy, probabilities);
    let (p, y) = promote(p, targets);
    // As PyTorch, no logarithm is below -100.
    let log_p = p.clone().log().clamp_min(-100.0);
    let log_q = p.neg().add_scalar(1.0).log().clamp_min(-100.0);
    let q = y.clone().neg().add_scalar(1.0);
    y.mul(log_p).add(q.mul(log_q)).mean().neg()
}

/// Resizes maps `[n, c, h, w]`, in f32.
#[allow(
    clippy::disallowed_methods,
    reason = "the wrapper of it, for programs whose resizing is Burn's"
)]
pub fn interpolate(x: Tensor<4>, options: InterpolateOptions) -> Tensor<4> {
    observe(Op::Interpolate, "interpolate", x, |x| {
        module::interpolate(cast(Op::Interpolate, x), options.clone())
    })
}
