//! A step of stochastic gradient descent.

#[cfg(feature = "flex")]
mod flex;

use burn::tensor::Tensor;

/// The numbers of a step of stochastic gradient descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f32,
    /// What is left of the velocity after a step.
    pub momentum: f32,
    /// Share of the parameter that is added to its gradient.
    pub weight_decay: f32,
}

/// Moves a parameter as PyTorch's `SGD` does without dampening, and returns it with its velocity:
/// `g = gradient + weight_decay * value`, `v = momentum * velocity + g` (or `g`, where there is no
/// velocity yet), `value - lr * v`.
///
/// On the CPU one pass over the memory does all of it, in place where nothing else holds the
/// tensors; elsewhere it is composed. Both round alike.
///
/// Not recorded for gradients: all tensors are on a device without autodiff.
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn sgd_step<const D: usize>(
    value: Tensor<D>,
    gradient: Tensor<D>,
    velocity: Option<Tensor<D>>,
    step: SgdStep,
) -> [Tensor<D>; 2] {
    #[cfg(feature = "flex")]
    if flex::handles(&value) {
        return flex::sgd_step(value, gradient, velocity, step);
    }
    let mut change = gradient;
    if step.weight_decay != 0.0 {
        change = value.clone().mul_scalar(step.weight_decay).add(change);
    }
    if let Some(velocity) = velocity {
        change = velocity.mul_scalar(step.momentum).add(change);
    }
    [value - change.clone().mul_scalar(step.lr), change]
}
