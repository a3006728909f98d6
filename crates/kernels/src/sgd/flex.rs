//! The step on the CPU, as one operation of Burn's Flex backend.

use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;

use super::SgdStep;

/// Values of a task: few enough to share small tensors, enough to be worth a task.
const CHUNK: usize = 1 << 15;

/// Whether `value` is a parameter that this operation takes.
pub fn handles<const D: usize>(value: &Tensor<D>) -> bool {
    value.device() == Device::flex() && !value.device().is_autodiff() && value.dtype() == DType::F32
}

pub fn sgd_step<const D: usize>(
    value: Tensor<D>,
    gradient: Tensor<D>,
    velocity: Option<Tensor<D>>,
    step: SgdStep,
) -> [Tensor<D>; 2] {
    let (value, gradient) = (value.into_dispatch(), gradient.into_dispatch());
    let (value, velocity) = match velocity {
        Some(velocity) => Dispatch::halfseg_sgd(value, gradient, velocity.into_dispatch(), step),
        None => Dispatch::halfseg_sgd_first(value, gradient, step),
    };
    [value, velocity].map(Tensor::from_dispatch)
}

/// What this module adds to a backend.
#[backend_extension(Flex)]
pub trait GradientDescent: Backend {
    /// The moved value and the velocity. See [`super::sgd_step`].
    fn halfseg_sgd(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        step: SgdStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The first step, which makes the velocity.
    fn halfseg_sgd_first(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        step: SgdStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl GradientDescent for Flex {
    fn halfseg_sgd(
        value: FlexTensor,
        gradient: FlexTensor,
        velocity: FlexTensor,
        step: SgdStep,
    ) -> (FlexTensor, FlexTensor) {
        let [mut value, gradient, mut velocity] = operands([value, gradient, velocity]);
        let gradient = gradient.storage::<f32>();
        each_chunk(&mut value, &mut velocity, |at, values, velocities| {
            let gradient = &gradient[at..at + values.len()];
            for ((value, velocity), gradient) in values.iter_mut().zip(velocities).zip(gradient) {
                let change = step.decayed(*value, *gradient);
                *velocity = *velocity * step.momentum + change;
                *value -= *velocity * step.lr;
            }
        });
        (value, velocity)
    }

    fn halfseg_sgd_first(
        value: FlexTensor,
        gradient: FlexTensor,
        step: SgdStep,
    ) -> (FlexTensor, FlexTensor) {
        let [mut value, mut velocity] = operands([value, gradient]);
        each_chunk(&mut value, &mut velocity, |_, values, velocities| {
            for (value, velocity) in values.iter_mut().zip(velocities) {
                *velocity = step.decayed(*value, *velocity);
                *value -= *velocity * step.lr;
            }
        });
        (value, velocity)
    }
}

impl SgdStep {
    #[inline(always)]
    fn decayed(&self, value: f32, gradient: f32) -> f32 {
        value * self.weight_decay + gradient
    }
}

/// Contiguous from the first value of their storage on.
fn operands<const N: usize>(tensors: [FlexTensor; N]) -> [FlexTensor; N] {
    let tensors = tensors.map(|tensor| {
        let tensor = tensor.to_contiguous();
        let count = tensor.layout().num_elements();
        if tensor.layout().start_offset() == 0 && tensor.storage::<f32>().len() == count {
            return tensor;
        }
        // A view of a larger tensor.
        FlexTensor::from_data(tensor.into_data())
    });
    for tensor in &tensors {
        assert!(
            tensor.layout().shape() == tensors[0].layout().shape(),
            "a parameter, its gradient and its velocity have one shape, not {:?} and {:?}",
            tensors[0].layout().shape(),
            tensor.layout().shape()
        );
    }
    tensors
}

/// Calls `body` with the position and the values of parts of both tensors, on all threads.
fn each_chunk(
    value: &mut FlexTensor,
    velocity: &mut FlexTensor,
    body: impl Fn(usize, &mut [f32], &mut [f32]) + Send + Sync,
) {
    let values = value.storage_mut::<f32>().par_chunks_mut(CHUNK);
    let velocities = velocity.storage_mut::<f32>().par_chunks_mut(CHUNK);
    values
        .zip(velocities)
        .enumerate()
        .for_each(|(index, (values, velocities))| body(index * CHUNK, values, velocities));
}
