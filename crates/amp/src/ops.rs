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

/// Each element to the whole power `exponent`, in f32.
pub fn powi_scalar<const D: usize>(x: Tensor<D>, exponent: i32) -> Tensor<D> {
    observe(Op::Pow, "powi_scalar", x, |x| {
        cast(Op::Pow, x).powi_scalar(exponent)
    })
}

/// Square of each element, in f32: that of 256 is infinite in f16.
pub fn square<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    observe(Op::Pow, "square", x, |x| cast(Op::Pow, x).square())
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

/// Variance along `dim`, which keeps length 1, in f32, with the divisor `n - 1` as [`Tensor::var`].
pub fn var<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    observe(Op::Mean, "var", x, |x| cast(Op::Mean, x).var(dim))
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

/// Euclidean norm of all elements, in f32. Its gradient at the zero vector is zero.
pub fn norm<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    observe(Op::Norm, "norm", x, |x| {
        let x = cast(Op::Norm, x);
        root(x.clone().mul(x).sum(), Tensor::sqrt)
    })
}

/// The norm along `dim`, which keeps length 1, in f32: `(sum |x|^p)^(1/p)`, for `p` infinite the
/// largest absolute value. Its gradient at zero vectors is zero.
///
/// # Panics
///
/// If `p` is not positive.
pub fn vector_norm<const D: usize>(x: Tensor<D>, p: f32, dim: usize) -> Tensor<D> {
    assert!(p > 0.0, "the order of a norm must be positive, got {p}");
    observe(Op::Norm, "vector_norm", x, |x| {
        let x = cast(Op::Norm, x);
        match p {
            1.0 => x.abs().sum_dim(dim),
            2.0 => root(x.clone().mul(x).sum_dim(dim), Tensor::sqrt),
            f32::INFINITY => x.abs().max_dim(dim),
            _ => root(x.abs().powf_scalar(p).sum_dim(dim), |sum| {
                sum.powf_scalar(p.recip())
            }),
        }
    })
}

/// A root that is steep at zero, with the gradient zero there in place of infinity times zero.
fn root<const D: usize>(sum: Tensor<D>, root: impl Fn(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    let zero = sum.clone().equal_scalar(0.0);
    root(sum.mask_fill(zero.clone(), 1.0)).mask_fill(zero, 0.0)
}

/// Cosine of the angle between vectors along `dim`, which keeps length 1, in f32. Norms below `eps`
/// count as `eps`.
pub fn cosine_similarity<const D: usize>(
    a: Tensor<D>,
    b: Tensor<D>,
    dim: usize,
    eps: f32,
) -> Tensor<D> {
    observe(Op::Norm, "cosine_similarity", (a, b), |(a, b)| {
        let (a, b) = promote(cast(Op::Norm, a), cast(Op::Norm, b));
        let norm = |x: Tensor<D>| {
            let squares = x.clone().mul(x).sum_dim(dim);
            root(squares, Tensor::sqrt).clamp_min(eps)
        };
        let norms = norm(a.clone()).mul(norm(b.clone()));
        a.mul(b).sum_dim(dim).div(norms)
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

/// Mean binary cross-entropy of probabilities. As in PyTorch no logarithm is below -100, and the
/// gradient is `(p - y) / max(p (1 - p), 1e-12)`, which is finite at 0 and 1 as well.
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
    let one_minus = |x: Tensor<D>| x.neg().add_scalar(1.0);
    let (p0, y0) = (p.clone().detach(), y.clone().detach());
    let log_p = p0.clone().log().clamp_min(-100.0);
    let log_q = one_minus(p0.clone()).log().clamp_min(-100.0);
    let gain = y0.clone().mul(log_p.clone());
    let gain = gain.add(one_minus(y0.clone()).mul(log_q.clone()));
    // The value has no gradient of its own; differences that are zero bring those of `p` and `y`.
    let spread = p0.clone().mul(one_minus(p0.clone())).clamp_min(1e-12);
    let of_p = p0.clone().sub(y0.clone()).div(spread).mul(p.sub(p0));
    let of_y = log_q.sub(log_p).mul(y.sub(y0));
    of_p.add(of_y).sub(gain).mean()
}

/// Resizes maps `[n, c, h, w]`, in f32.
///
/// # Panics
///
/// As Burn's: its GPU backends have no gradient of modes other than the nearest one (Burn 0.22.1), and panic
/// in the backward pass.
#[allow(
    clippy::disallowed_methods,
    reason = "the wrapper of it, for programs whose resizing is Burn's"
)]
pub fn interpolate(x: Tensor<4>, options: InterpolateOptions) -> Tensor<4> {
    observe(Op::Interpolate, "interpolate", x, |x| {
        module::interpolate(cast(Op::Interpolate, x), options.clone())
    })
}
