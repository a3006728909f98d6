//! Scoped casting policies.

use std::cell::RefCell;

use burn::module::Param;
use burn::tensor::{FloatDType, Tensor};

/// The operations that a policy tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// Convolutions.
    Conv2d,
    /// Batch normalisation: input in its own dtype, statistics in f32.
    BatchNorm,
    /// Interpolation.
    Interpolate,
    /// Log-softmax, cross-entropy and other losses.
    Loss,
}

/// Which dtype each operation computes in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    compute: Option<FloatDType>,
}

impl Policy {
    /// Everything stays as it is.
    pub fn disabled() -> Self {
        Self { compute: None }
    }
    /// Matrix operations in f16.
    pub fn f16() -> Self {
        Self { compute: Some(FloatDType::F16) }
    }
    /// Matrix operations in bf16.
    pub fn bf16() -> Self {
        Self { compute: Some(FloatDType::BF16) }
    }
}

thread_local! {
    static SCOPES: RefCell<Vec<Policy>> = const { RefCell::new(Vec::new()) };
}

/// The policy of the innermost scope of this thread.
pub fn current() -> Policy {
    SCOPES.with_borrow(|scopes| scopes.last().cloned().unwrap_or_default())
}

/// Runs `body` under `policy`.
pub fn autocast<R>(policy: &Policy, body: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPES.with_borrow_mut(|scopes| scopes.pop());
        }
    }
    SCOPES.with_borrow_mut(|scopes| scopes.push(policy.clone()));
    let _restore = Restore;
    body()
}

/// Casts an activation to what the current policy prescribes for `op`.
pub fn cast<const D: usize>(op: Op, x: Tensor<D>) -> Tensor<D> {
    match (current().compute, op) {
        (None, _) | (_, Op::BatchNorm) => x,
        (Some(dtype), Op::Conv2d) => x.cast(dtype),
        (Some(_), _) => x.cast(FloatDType::F32),
    }
}

/// The value of a parameter, cast to what the current policy prescribes for `op`; one cast per
/// parameter and step.
pub fn cast_param<const D: usize>(op: Op, param: &Param<Tensor<D>>) -> Tensor<D> {
    cast(op, param.val())
}
