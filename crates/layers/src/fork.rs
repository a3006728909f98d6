//! Two uses of one map.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;
use halfseg_kernels::{sum, takes_gradients, with_gradient};

/// `x` twice, for a branch and for the connection around it.
///
/// The gradients of both are added on all threads; Burn adds on one thread the gradients of what is
/// used twice, which took a 20th of a training step on the CPU. Costs nothing in the forward pass.
///
/// # Shapes
/// - `x`, both outputs: `[n, c, h, w]`
///
/// # Panics
/// In the backward pass, if the loss depends on the second output but not on the first.
pub fn fork(x: Tensor<4>) -> [Tensor<4>; 2] {
    if !takes_gradients(&x.device()) || !x.is_tracked() {
        return [x.clone(), x];
    }
    let value = x.clone().inner();
    let around = Arc::new(Mutex::new(None::<Tensor<4>>));
    let kept = around.clone();
    let branch = with_gradient(vec![x.into()], value.clone(), move |gradient| {
        let around = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gradient = match around {
            Some(around) => sum(gradient, around),
            None => gradient,
        };
        vec![Some(gradient.into())]
    });
    // It depends on the branch, so that its gradient is there before the branch's, but gives it none.
    let connection = with_gradient(vec![branch.clone().into()], value, move |gradient| {
        let mut around = around.lock().unwrap_or_else(PoisonError::into_inner);
        *around = Some(gradient);
        vec![None]
    });
    [branch, connection]
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

    use super::fork;

    /// The gradient is that of a map that is used twice, bit for bit, whichever use is deeper.
    #[test]
    fn gradients_of_both_branches_are_summed() {
        let device = Device::flex().autodiff();
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            let draw = || {
                let values = Tensor::<4>::random([2, 3, 37, 41], Distribution::Default, &device);
                values.cast(dtype).detach()
            };
            let (value, a, b) = (draw(), draw(), draw());
            let gradient = |split: &dyn Fn(Tensor<4>) -> [Tensor<4>; 2], deep_first: bool| {
                let x = value.clone().require_grad();
                let [first, second] = split(x.clone() * 2.0);
                let (deep, flat) = if deep_first {
                    (first, second)
                } else {
                    (second, first)
                };
                let deep = (deep * a.clone()).exp().sqrt() * 0.5;
                let sum = (deep + flat * b.clone()).sum();
                x.grad(&sum.backward()).unwrap().into_data()
            };
            for deep_first in [true, false] {
                let found = gradient(&fork, deep_first);
                let expected = gradient(&|x| [x.clone(), x], deep_first);
                assert_eq!(found.dtype(), DType::from(dtype));
                assert_eq!(found, expected, "{dtype:?}, {deep_first}");
            }
        }
    }

    /// Nothing is recorded where nothing is wanted.
    #[test]
    fn untracked_maps_stay_untracked() {
        let x = Tensor::<4>::zeros([1, 1, 2, 2], &Device::flex().autodiff());
        assert!(fork(x).iter().all(|x| !x.is_tracked()));
    }
}
