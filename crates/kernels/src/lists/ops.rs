//! The kernels as operations of a Burn backend.

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Shape, Tensor};

use super::list::Tensors;
use crate::{AnyTensor, SgdStep};

fn list(tensors: impl IntoIterator<Item = AnyTensor>) -> Tensors<Dispatch> {
    Tensors(tensors.into_iter().map(|tensor| tensor.0).collect())
}

/// See [`super::scale_list`].
pub fn scale(tensors: Vec<AnyTensor>, factor: f32) -> (Vec<AnyTensor>, Tensor<2>) {
    let Tensors(mut results) = Dispatch::halfseg_scale_list(list(tensors), factor);
    let report = results.pop().expect("the report comes last");
    let results = results.into_iter().map(AnyTensor).collect();
    (results, Tensor::from_dispatch(report))
}

/// See [`super::measure_list`].
pub fn measure(tensors: Vec<AnyTensor>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::halfseg_measure_list(list(tensors)))
}

/// See [`super::sgd_step_list`]; with no gradients, the velocities hold them.
pub fn descend(
    parameters: Vec<AnyTensor>,
    velocities: Vec<AnyTensor>,
    gradients: Vec<AnyTensor>,
    steps: Vec<SgdStep>,
) -> Vec<[AnyTensor; 2]> {
    let count = steps.len();
    let operands = list(parameters.into_iter().chain(velocities).chain(gradients));
    let Tensors(mut parameters) = Dispatch::halfseg_descend_list(operands, steps);
    let velocities = parameters.split_off(count);
    let pairs = parameters.into_iter().zip(velocities);
    pairs
        .map(|(parameter, velocity)| [parameter, velocity].map(AnyTensor))
        .collect()
}

/// See [`super::round_list`].
pub fn round(tensors: Vec<AnyTensor>, dtype: DType) -> Vec<AnyTensor> {
    let Tensors(rounded) = Dispatch::halfseg_round_list(list(tensors), dtype);
    rounded.into_iter().map(AnyTensor).collect()
}

/// What this module adds to a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait Lists: Backend {
    /// The products, and at the end their report: f32 `[n, 2]`.
    #[fusion(meta = |tensors, _factor| {
        tensors.iter().cloned().chain([report(tensors.len())]).collect::<Vec<_>>()
    })]
    fn halfseg_scale_list(#[extension_type] tensors: Tensors<Self>, factor: f32) -> Tensors<Self>;

    /// The report: f32 `[n, 2]`.
    #[fusion(meta = |tensors| report(tensors.len()))]
    fn halfseg_measure_list(#[extension_type] tensors: Tensors<Self>) -> FloatTensor<Self>;

    /// The tensors in another dtype, those of four dimensions pixel by pixel in memory.
    #[fusion(meta = |tensors, dtype| {
        let rounded = tensors.iter().map(|tensor| TensorSpec::new(tensor.shape.clone(), *dtype));
        rounded.collect::<Vec<_>>()
    })]
    fn halfseg_round_list(#[extension_type] tensors: Tensors<Self>, dtype: DType) -> Tensors<Self>;

    /// `operands` are parameters, as many as steps, then their velocities and then their gradients; the
    /// result the new parameters and velocities. Without gradients, the velocities hold them.
    #[fusion(meta = |operands, steps| {
        operands[..2 * steps.len()].to_vec()
    })]
    fn halfseg_descend_list(
        #[extension_type] operands: Tensors<Self>,
        steps: Vec<SgdStep>,
    ) -> Tensors<Self>;
}

fn report(tensors: usize) -> TensorSpec {
    TensorSpec::new(Shape::new([tensors, 2]), DType::F32)
}
