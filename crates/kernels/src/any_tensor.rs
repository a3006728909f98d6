//! Tensors whose rank is not part of their type.

use burn::backend::{DispatchTensor, TensorMetadata};
use burn::tensor::Tensor;

/// A float tensor of any rank, so that tensors of several ranks fit into one list.
#[derive(Clone, Debug)]
pub struct AnyTensor(pub(crate) DispatchTensor);

impl<const D: usize> From<Tensor<D>> for AnyTensor {
    fn from(tensor: Tensor<D>) -> Self {
        Self(tensor.into_dispatch())
    }
}

impl AnyTensor {
    /// The tensor that this was made of.
    ///
    /// # Panics
    /// If it has another rank.
    pub fn into_tensor<const D: usize>(self) -> Tensor<D> {
        let rank = self.0.shape().num_dims();
        assert_eq!(rank, D, "a tensor of rank {rank} is not one of rank {D}");
        Tensor::from_dispatch(self.0)
    }
}
