//! The resize as one differentiable operation of a Burn backend.

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Shape, Tensor};

use super::Bilinear;

/// Runs the operation on a device that has it.
pub fn resize(x: Tensor<4>, resize: Bilinear) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::halfseg_resize(x.into_dispatch(), resize))
}

/// What this module adds to a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"), Autodiff)]
pub trait Resizing: Backend {
    /// See [`super::resize_bilinear`].
    #[fusion(meta = |x, resize| with_size(x, resize.output))]
    fn halfseg_resize(x: FloatTensor<Self>, resize: Bilinear) -> FloatTensor<Self>;

    /// The gradient of the input, given that of the output.
    #[fusion(meta = |gradient, resize| with_size(gradient, resize.input))]
    fn halfseg_resize_adjoint(gradient: FloatTensor<Self>, resize: Bilinear) -> FloatTensor<Self>;
}

/// What is known of a map, with another height and width.
pub fn with_size(map: &TensorSpec, [h, w]: [usize; 2]) -> TensorSpec {
    let [n, c, ..] = map.shape.dims::<4>();
    TensorSpec::new(Shape::new([n, c, h, w]), map.dtype)
}

#[derive(Debug)]
struct ResizeBackward;

impl<B: Resizing> Backward<B, 1> for ResizeBackward {
    type State = Bilinear;

    fn backward(self, ops: Ops<Bilinear, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            let gradient = B::halfseg_resize_adjoint(gradient, ops.state);
            grads.register::<B>(parent.id, gradient);
        }
    }
}

impl<B: Resizing, C: CheckpointStrategy> Resizing for Autodiff<B, C> {
    fn halfseg_resize(x: FloatTensor<Self>, resize: Bilinear) -> FloatTensor<Self> {
        let prepared = ResizeBackward.prepare::<C>([x.node()]);
        let output = B::halfseg_resize(x.into_primitive(), resize);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(resize, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn halfseg_resize_adjoint(_: FloatTensor<Self>, _: Bilinear) -> FloatTensor<Self> {
        unreachable!("Burn computes gradients of first order only")
    }
}
