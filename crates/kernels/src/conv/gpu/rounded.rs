//! Weights that were rounded before the convolutions that read them, many in a kernel: starting one for each takes
//! longer than it runs.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

use burn::backend::autodiff::NodeId;
use burn::tensor::{DType, Tensor};

use super::ops;
use crate::AnyTensor;
use crate::lists::round_list;

thread_local! {
    /// Tensors of the backend below autodiff, by the node of the weight.
    static ROUNDED: RefCell<HashMap<NodeId, Box<dyn Any>>> = RefCell::default();
}

/// See [`crate::with_rounded_weights`].
pub fn with_rounded<R>(weights: Vec<(Tensor<4>, DType)>, body: impl FnOnce() -> R) -> R {
    /// Puts back what was there, so that nothing is kept longer than `body` runs.
    struct Restore(HashMap<NodeId, Box<dyn Any>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ROUNDED.set(std::mem::take(&mut self.0));
        }
    }
    let _restore = Restore(ROUNDED.take());
    for dtype in [DType::F16, DType::BF16] {
        let some = weights
            .iter()
            .filter(|(weight, to)| *to == dtype && is_rounded(weight));
        let some: Vec<_> = some.map(|(weight, _)| weight).collect();
        if some.is_empty() {
            continue;
        }
        let values = some
            .iter()
            .map(|weight| AnyTensor::from((*weight).clone().inner()));
        let rounded = round_list(values.collect(), dtype);
        for (weight, rounded) in some.into_iter().zip(rounded) {
            let rounded = Tensor::from_inner(rounded.into_tensor::<4>());
            drop(ops::remember(weight.clone(), rounded));
        }
    }
    body()
}

/// Whether the convolution by this weight keeps a rounded copy of it for its backward pass: that of one tap in f32.
fn is_rounded(weight: &Tensor<4>) -> bool {
    let [_, _, kh, kw] = weight.dims();
    [kh, kw] == [1, 1]
        && weight.dtype() == DType::F32
        && weight.is_tracked()
        && weight.shape().num_elements() > 0
        && crate::gpu::launch::handles(&weight.device(), DType::F32)
}

/// Keeps a weight's copy until the end of [`with_rounded`]'s body.
pub fn keep<T: 'static>(weight: NodeId, rounded: T) {
    ROUNDED.with_borrow_mut(|all| all.insert(weight, Box::new(rounded)));
}

/// The weight's copy, if there is one.
pub fn kept<T: Clone + 'static>(weight: NodeId) -> Option<T> {
    ROUNDED.with_borrow(|all| all.get(&weight)?.downcast_ref::<T>().cloned())
}
