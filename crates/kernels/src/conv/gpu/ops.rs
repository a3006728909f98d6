//! The kernels as one differentiable operation of a Burn backend.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Shape, Tensor};

use super::super::Conv2dOptions;
use super::rounded;

/// Runs the operation on a device that has it; shapes and dtypes were checked.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, options: Conv2dOptions) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::halfseg_gpu_conv2d(x, weight, options))
}

/// Keeps `rounded` for the convolution by `weight`; both are on an autodiff device.
pub fn remember(weight: Tensor<4>, rounded: Tensor<4>) -> Tensor<4> {
    let (weight, rounded) = (weight.into_dispatch(), rounded.into_dispatch());
    Tensor::from_dispatch(Dispatch::halfseg_gpu_remember_rounded(weight, rounded))
}

/// The gradient of a bias in f32, from the output's `[n, c, h, w]`; without autodiff.
pub fn bias_gradient(gradient: Tensor<4>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::halfseg_gpu_bias_gradient(
        gradient.into_dispatch(),
    ))
}

/// What this module adds to a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"), Autodiff)]
pub trait GpuConvolution: Backend {
    /// See [`crate::conv2d`].
    #[fusion(meta = |x, weight, options| {
        let (x, weight) = (x.clone(), weight.clone());
        let size = options.output_size(x.shape.dims(), weight.shape.dims());
        spec(&x, [x.shape[0], weight.shape[0]], size)
    })]
    fn halfseg_gpu_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: Conv2dOptions,
    ) -> FloatTensor<Self>;

    /// A weight in another dtype, as a view of what [`Self::halfseg_gpu_conv2d`] reads.
    #[fusion(meta = |weight, dtype| TensorSpec::new(weight.shape.clone(), *dtype))]
    fn halfseg_gpu_round_weight(weight: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self>;

    /// Below autodiff nothing is known of nodes, and nothing is done; returns `rounded`. See [`remember`].
    #[fusion(meta = |_weight, rounded| rounded.clone())]
    fn halfseg_gpu_remember_rounded(
        weight: FloatTensor<Self>,
        rounded: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The gradient of the input, `[n, c_in, *size]`.
    #[fusion(meta = |weight, gradient, size, options| {
        let channels = weight.shape[1] * options.groups;
        spec(gradient, [gradient.shape[0], channels], *size)
    })]
    fn halfseg_gpu_conv2d_input_gradient(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: [usize; 2],
        options: Conv2dOptions,
    ) -> FloatTensor<Self>;

    /// See [`bias_gradient`].
    #[fusion(meta = |gradient| TensorSpec::new(Shape::new([gradient.shape[1]]), DType::F32))]
    fn halfseg_gpu_bias_gradient(gradient: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradient of the weight, `[c_out, c_in / groups, *kernel]`, in `dtype`.
    #[fusion(meta = |x, gradient, kernel, dtype, options| {
        let shape = [gradient.shape[1], x.shape[1] / options.groups, kernel[0], kernel[1]];
        TensorSpec::new(Shape::new(shape), *dtype)
    })]
    fn halfseg_gpu_conv2d_weight_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        kernel: [usize; 2],
        dtype: DType,
        options: Conv2dOptions,
    ) -> FloatTensor<Self>;
}

/// Height and width of a map or a kernel.
fn size_of(shape: &Shape) -> [usize; 2] {
    [shape[2], shape[3]]
}

fn spec(like: &TensorSpec, [n, c]: [usize; 2], [h, w]: [usize; 2]) -> TensorSpec {
    TensorSpec::new(Shape::new([n, c, h, w]), like.dtype)
}

#[derive(Debug)]
struct ConvolutionBackward;

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Kept<T> {
    /// Through the checkpointer, as a weight that was not rounded. Not where the weight takes no gradient, which alone needs it.
    x: Option<NodeId>,
    weight: Weight<T>,
    /// Of the weight's gradient.
    dtype: DType,
    size: [usize; 2],
    kernel: [usize; 2],
    options: Conv2dOptions,
}

#[derive(Clone, Debug)]
enum Weight<T> {
    Node(NodeId),
    /// In the dtype of the maps. Both passes of a kernel of one tap read it as it lies, so that rounding it
    /// once saves a kernel; that it is kept takes little beside the maps.
    Rounded(T),
}

/// Parents: input, weight.
impl<B: GpuConvolution> Backward<B, 2> for ConvolutionBackward {
    type State = Kept<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let Kept {
            x,
            weight,
            dtype,
            size,
            kernel,
            options,
        } = ops.state;
        let gradient = grads.consume::<B>(&ops.node);
        // What was kept is retrieved even where it is not needed: the checkpointer counts.
        let x = x.map(|x| checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(x));
        let weight = match weight {
            Weight::Node(node) => {
                checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(node)
            }
            Weight::Rounded(weight) => weight,
        };
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            let result =
                B::halfseg_gpu_conv2d_input_gradient(weight, gradient.clone(), size, options);
            grads.register::<B>(node.id, result);
        }
        if let Some(node) = weight_node {
            let x = x.expect("the map is kept for a weight that takes a gradient");
            let result = B::halfseg_gpu_conv2d_weight_gradient(x, gradient, kernel, dtype, options);
            grads.register::<B>(node.id, result);
        }
    }
}

impl<B: GpuConvolution, C: CheckpointStrategy> GpuConvolution for Autodiff<B, C> {
    fn halfseg_gpu_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: Conv2dOptions,
    ) -> FloatTensor<Self> {
        let (size, kernel) = (size_of(&x.shape()), size_of(&weight.shape()));
        let nodes = [x.node(), weight.node()];
        let prepared = Backward::<B, 2>::prepare::<C>(ConvolutionBackward, nodes);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let (dtype, map_dtype) = (weight.dtype(), x.dtype());
                let takes_gradient = weight.is_tracked();
                let node = takes_gradient.then(|| prepared.checkpoint(&x));
                let (weight, read) =
                    if kernel == [1, 1] && options.groups == 1 && dtype != map_dtype {
                        let kept = rounded::kept::<FloatTensor<B>>(weight.node().id());
                        let kept = kept.filter(|kept| kept.dtype() == map_dtype);
                        let rounded = kept.unwrap_or_else(|| {
                            B::halfseg_gpu_round_weight(weight.into_primitive(), map_dtype)
                        });
                        (Weight::Rounded(rounded.clone()), rounded)
                    } else {
                        let node = prepared.checkpoint(&weight);
                        (Weight::Node(node), weight.into_primitive())
                    };
                let kept = Kept {
                    x: node,
                    weight,
                    dtype,
                    size,
                    kernel,
                    options,
                };
                let output = B::halfseg_gpu_conv2d(x.into_primitive(), read, options);
                prepared.finish(kept, output)
            }
            OpsKind::UnTracked(prepared) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                prepared.finish(B::halfseg_gpu_conv2d(x, weight, options))
            }
        }
    }

    fn halfseg_gpu_round_weight(_: FloatTensor<Self>, _: DType) -> FloatTensor<Self> {
        unreachable!("the backward pass rounds what it keeps below autodiff")
    }

    fn halfseg_gpu_remember_rounded(
        weight: FloatTensor<Self>,
        rounded: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        rounded::keep(weight.node().id(), rounded.primitive().clone());
        rounded
    }

    fn halfseg_gpu_conv2d_input_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: [usize; 2],
        _: Conv2dOptions,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn halfseg_gpu_bias_gradient(_: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn halfseg_gpu_conv2d_weight_gradient(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: [usize; 2],
        _: DType,
        _: Conv2dOptions,
    ) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }
}

const FIRST_ORDER: &str = "Burn computes gradients of first order only";
