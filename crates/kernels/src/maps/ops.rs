//! Averages as one differentiable operation of a Burn backend.

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use crate::resize::ops::with_size;

/// Runs the operation on a device that has it.
pub fn averages(map: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::halfseg_averages(map.into_dispatch(), size))
}

/// Runs the operation on a device that has it.
pub fn plane_sums(map: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::halfseg_plane_sums(map.into_dispatch()))
}

/// What this module adds to a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"), Autodiff)]
pub trait Averaging: Backend {
    /// See [`super::averages`].
    #[fusion(meta = |map, size| with_size(map, *size))]
    fn halfseg_averages(map: FloatTensor<Self>, size: [usize; 2]) -> FloatTensor<Self>;

    /// The gradient of the input, whose height and width are `size`, given that of the output.
    #[fusion(meta = |gradient, size| with_size(gradient, *size))]
    fn halfseg_averages_adjoint(gradient: FloatTensor<Self>, size: [usize; 2])
    -> FloatTensor<Self>;

    /// See [`super::plane_sums`].
    #[fusion(meta = |map| with_size(map, [1, 1]))]
    fn halfseg_plane_sums(map: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[derive(Debug)]
struct AveragesBackward;

impl<B: Averaging> Backward<B, 1> for AveragesBackward {
    type State = [usize; 2];

    fn backward(self, ops: Ops<[usize; 2], 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            let gradient = B::halfseg_averages_adjoint(gradient, ops.state);
            grads.register::<B>(parent.id, gradient);
        }
    }
}

impl<B: Averaging, C: CheckpointStrategy> Averaging for Autodiff<B, C> {
    fn halfseg_averages(map: FloatTensor<Self>, size: [usize; 2]) -> FloatTensor<Self> {
        let prepared = AveragesBackward.prepare::<C>([map.node()]);
        let map = map.into_primitive();
        let [.., h, w] = map.shape().dims::<4>();
        let output = B::halfseg_averages(map, size);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish([h, w], output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn halfseg_averages_adjoint(_: FloatTensor<Self>, _: [usize; 2]) -> FloatTensor<Self> {
        unreachable!("Burn computes gradients of first order only")
    }

    fn halfseg_plane_sums(_: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("plane sums are taken of maps that are not part of a graph")
    }
}
