//! How the CPU kernels reach the values of Burn's Flex tensors.

use burn::backend::flex::FlexTensor;
use burn::backend::{BackendTensor, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};
use bytemuck::Pod;

use crate::with_gradient;

/// Whether kernels of this crate compute with `x`, on a device with or without autodiff.
pub fn handles(x: &Tensor<4>) -> bool {
    x.device() == Device::flex() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// What is on the CPU and part of no graph.
pub fn primitive(x: &Tensor<4>) -> Option<FlexTensor> {
    let ours = handles(x) && !x.device().is_autodiff();
    ours.then(|| with_gradient::primitive::<Flex>(x.clone().into_dispatch()))
}

/// As one of Burn's tensors.
pub fn floats(tensor: FlexTensor) -> Tensor<4> {
    Tensor::from_dispatch(dispatched(BackendTensor::Float(tensor)))
}

/// As one of Burn's tensors of integers.
pub fn integers<const D: usize>(tensor: FlexTensor) -> Tensor<D, Int> {
    Tensor::from_dispatch(dispatched(BackendTensor::Int(tensor)))
}

fn dispatched(tensor: BackendTensor<Flex>) -> DispatchTensor {
    <DispatchTensor as DispatchKindConversion<Flex>>::from_backend(tensor)
}

/// Calls `$body` with `$E` bound to the type of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            burn::tensor::DType::F32 => {
                type $E = f32;
                $body
            }
            burn::tensor::DType::F16 => {
                type $E = half::f16;
                $body
            }
            burn::tensor::DType::BF16 => {
                type $E = half::bf16;
                $body
            }
            other => panic!("kernels on the CPU take f32, f16 or bf16, not {other:?}"),
        }
    };
}
pub(crate) use with_element;

pub fn shape(tensor: &FlexTensor) -> [usize; 4] {
    let shape = tensor.layout().shape();
    std::array::from_fn(|axis| shape[axis])
}

/// Of a contiguous tensor.
pub fn values<E: Element + Pod>(tensor: &FlexTensor) -> &[E] {
    let layout = tensor.layout();
    &tensor.storage::<E>()[layout.start_offset()..][..layout.num_elements()]
}

pub fn tensor<E: Element, const D: usize>(values: Vec<E>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
