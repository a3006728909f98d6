//! Convolution on the CPU as one differentiable operation of a Burn backend.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};

use super::Conv2dOptions;
use super::cpu::Exactness;

pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: Conv2dOptions,
) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let output = match bias {
        Some(bias) => {
            let bias = bias.into_dispatch();
            Dispatch::halfseg_conv2d_biased(x, weight, bias, options, Exactness::Output)
        }
        None => Dispatch::halfseg_conv2d(x, weight, options, Exactness::Output),
    };
    Tensor::from_dispatch(output)
}

/// As [`super::conv2d_act`], on a device without autodiff.
pub fn conv2d_act(
    x: Tensor<4>,
    weight: Tensor<4>,
    affine: [Tensor<1>; 2],
    skip: Option<Tensor<4>>,
    relu: bool,
    options: Conv2dOptions,
) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let [scale, shift] = affine.map(|tensor| tensor.into_dispatch());
    let output = match skip {
        Some(skip) => {
            let skip = skip.into_dispatch();
            Dispatch::halfseg_conv2d_add_act(x, weight, scale, shift, skip, options, relu)
        }
        None => Dispatch::halfseg_conv2d_act(x, weight, scale, shift, options, relu),
    };
    Tensor::from_dispatch(output)
}

/// What this crate adds to a backend.
#[backend_extension(Flex, Autodiff)]
pub trait Convolution: Backend {
    /// See [`super::conv2d`].
    fn halfseg_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: Conv2dOptions,
        exactness: Exactness,
    ) -> FloatTensor<Self>;

    /// See [`super::conv2d`].
    // Not an `Option` in the other one: the macro does not map optional tensors.
    fn halfseg_conv2d_biased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Conv2dOptions,
        exactness: Exactness,
    ) -> FloatTensor<Self>;

    /// See [`conv2d_act`].
    fn halfseg_conv2d_act(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        options: Conv2dOptions,
        relu: bool,
    ) -> FloatTensor<Self>;

    /// See [`conv2d_act`].
    fn halfseg_conv2d_add_act(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        options: Conv2dOptions,
        relu: bool,
    ) -> FloatTensor<Self>;

    /// The gradient of the input, `[n, c_in, *size]`.
    fn halfseg_conv2d_input_gradient(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: [usize; 2],
        options: Conv2dOptions,
    ) -> FloatTensor<Self>;

    /// The gradient of the weight, `[c_out, c_in / groups, *kernel]`, in the maps' dtype or f32.
    fn halfseg_conv2d_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        kernel: [usize; 2],
        options: Conv2dOptions,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// The gradient of the bias: `gradient` summed over all but channels, in f32.
    fn halfseg_conv2d_bias_gradient(gradient: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Nodes of the input and the weight, and the sizes that their gradients have.
type Kept = (NodeId, NodeId, [usize; 2], [usize; 2], Conv2dOptions);

#[derive(Debug)]
struct ConvolutionBackward;

impl<B: Convolution> Backward<B, 3> for ConvolutionBackward {
    type State = Kept;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        backward::<B, 3>(ops, grads, checkpointer);
    }
}

impl<B: Convolution> Backward<B, 2> for ConvolutionBackward {
    type State = Kept;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        backward::<B, 2>(ops, grads, checkpointer);
    }
}

fn backward<B: Convolution, const PARENTS: usize>(
    ops: Ops<Kept, PARENTS>,
    grads: &mut Gradients,
    checkpointer: &mut Checkpointer,
) {
    let (x, weight, size, kernel, options) = ops.state;
    let gradient = grads.consume::<B>(&ops.node);
    // Both are retrieved even where one is not needed: the checkpointer counts.
    let x = checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(x);
    let weight = checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(weight);
    let dtype = weight.dtype();
    let mut parents = ops.parents.into_iter();
    if let Some(Some(node)) = parents.next() {
        let result = B::halfseg_conv2d_input_gradient(weight, gradient.clone(), size, options);
        grads.register::<B>(node.id, result);
    }
    if let Some(Some(node)) = parents.next() {
        let result = B::halfseg_conv2d_weight_gradient(x, gradient.clone(), kernel, options, dtype);
        grads.register::<B>(node.id, result);
    }
    if let Some(Some(node)) = parents.next() {
        grads.register::<B>(node.id, B::halfseg_conv2d_bias_gradient(gradient));
    }
}

/// Height and width of a map or a kernel.
fn size<T: TensorMetadata>(tensor: &T) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[2], shape[3]]
}

/// Gradients follow a pass that is recorded.
const EXACT: Exactness = Exactness::Summed;

impl<B: Convolution, C: CheckpointStrategy> Convolution for Autodiff<B, C> {
    fn halfseg_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: Conv2dOptions,
        _: Exactness,
    ) -> FloatTensor<Self> {
        let sizes = (size(&x), size(&weight));
        let nodes = [x.node(), weight.node()];
        let prepared = Backward::<B, 2>::prepare::<C>(ConvolutionBackward, nodes);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = (prepared.checkpoint(&x), prepared.checkpoint(&weight));
                let state = (kept.0, kept.1, sizes.0, sizes.1, options);
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prepared.finish(state, B::halfseg_conv2d(x, weight, options, EXACT))
            }
            OpsKind::UnTracked(prepared) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prepared.finish(B::halfseg_conv2d(x, weight, options, EXACT))
            }
        }
    }

    fn halfseg_conv2d_biased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Conv2dOptions,
        _: Exactness,
    ) -> FloatTensor<Self> {
        let sizes = (size(&x), size(&weight));
        let nodes = [x.node(), weight.node(), bias.node()];
        let prepared = Backward::<B, 3>::prepare::<C>(ConvolutionBackward, nodes);
        let bias = bias.into_primitive();
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = (prepared.checkpoint(&x), prepared.checkpoint(&weight));
                let state = (kept.0, kept.1, sizes.0, sizes.1, options);
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prepared.finish(
                    state,
                    B::halfseg_conv2d_biased(x, weight, bias, options, EXACT),
                )
            }
            OpsKind::UnTracked(prepared) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prepared.finish(B::halfseg_conv2d_biased(x, weight, bias, options, EXACT))
            }
        }
    }

    fn halfseg_conv2d_act(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Conv2dOptions,
        _: bool,
    ) -> FloatTensor<Self> {
        unreachable!("{INFERENCE}")
    }

    fn halfseg_conv2d_add_act(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Conv2dOptions,
        _: bool,
    ) -> FloatTensor<Self> {
        unreachable!("{INFERENCE}")
    }

    fn halfseg_conv2d_input_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: [usize; 2],
        _: Conv2dOptions,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn halfseg_conv2d_weight_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: [usize; 2],
        _: Conv2dOptions,
        _: DType,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn halfseg_conv2d_bias_gradient(_: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }
}

const INFERENCE: &str = "with autodiff, each operation is recorded by itself";
const FIRST_ORDER: &str = "Burn computes gradients of first order only";
