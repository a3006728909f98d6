//! The CPU kernels as one differentiable operation of Burn's Flex backend.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};

use super::Conv2dOptions;
use super::cpu::{self, Exactness, Geometry, Tail, Weight};
use crate::cpu::element::Element;
use crate::cpu::tensor::{shape, tensor, values, with_element};

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

/// Calls `$body` with `$W` bound to the type of `$weight`: that of `$map`, which is `$E`, or f32.
macro_rules! with_weight {
    ($map:expr, $weight:expr, $E:ident, $W:ident => $body:expr) => {
        if $weight.dtype() == $map.dtype() {
            type $W = $E;
            $body
        } else {
            if $weight.dtype() != DType::F32 {
                one_dtype(&[Some(&$map), Some(&$weight)]);
            }
            type $W = f32;
            $body
        }
    };
}

/// What a convolution does beside summing.
#[derive(Default)]
struct Extra {
    scale: Option<FlexTensor>,
    bias: Option<FlexTensor>,
    skip: Option<FlexTensor>,
    relu: bool,
}

fn run(
    x: FlexTensor,
    weight: FlexTensor,
    extra: Extra,
    options: Conv2dOptions,
    exactness: Exactness,
) -> FlexTensor {
    let geometry = Geometry::new(shape(&x), shape(&weight), options);
    let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
    let skip = extra.skip.map(|skip| skip.to_contiguous());
    one_dtype(&[Some(&x), skip.as_ref()]);
    let [scale, bias] = [extra.scale, extra.bias].map(|per_channel| {
        per_channel.map(|values| {
            let values = values.to_contiguous();
            with_element!(values.dtype(), E => widened::<E>(&values))
        })
    });
    with_element!(x.dtype(), E => {
        let tail = Tail {
            bias: bias.as_deref(),
            skip: skip.as_ref().map(values::<E>),
            relu: extra.relu,
        };
        let scale = scale.as_deref();
        let output = with_weight!(x, weight, E, W => {
            let weight = Weight { values: values::<W>(&weight), scale };
            cpu::forward::<E, W>(&geometry, values(&x), weight, tail, exactness)
        });
        tensor(output, geometry.output_shape())
    })
}

fn widened<E: Element + burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> Vec<f32> {
    values::<E>(tensor)
        .iter()
        .map(|value| value.widen())
        .collect()
}

impl Convolution for Flex {
    fn halfseg_conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        options: Conv2dOptions,
        exactness: Exactness,
    ) -> FlexTensor {
        run(x, weight, Extra::default(), options, exactness)
    }

    fn halfseg_conv2d_biased(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        options: Conv2dOptions,
        exactness: Exactness,
    ) -> FlexTensor {
        one_dtype(&[Some(&x), Some(&bias)]);
        let extra = Extra {
            bias: Some(bias),
            ..Extra::default()
        };
        run(x, weight, extra, options, exactness)
    }

    fn halfseg_conv2d_act(
        x: FlexTensor,
        weight: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        options: Conv2dOptions,
        relu: bool,
    ) -> FlexTensor {
        let extra = Extra {
            scale: Some(scale),
            bias: Some(shift),
            skip: None,
            relu,
        };
        run(x, weight, extra, options, Exactness::Output)
    }

    fn halfseg_conv2d_add_act(
        x: FlexTensor,
        weight: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        skip: FlexTensor,
        options: Conv2dOptions,
        relu: bool,
    ) -> FlexTensor {
        let extra = Extra {
            scale: Some(scale),
            bias: Some(shift),
            skip: Some(skip),
            relu,
        };
        run(x, weight, extra, options, Exactness::Output)
    }

    fn halfseg_conv2d_input_gradient(
        weight: FlexTensor,
        gradient: FlexTensor,
        size: [usize; 2],
        options: Conv2dOptions,
    ) -> FlexTensor {
        let [batch, ..] = shape(&gradient);
        let [_, per_group, ..] = shape(&weight);
        let x = [batch, per_group * options.groups, size[0], size[1]];
        let geometry = Geometry::new(x, shape(&weight), options);
        let (weight, gradient) = (weight.to_contiguous(), gradient.to_contiguous());
        with_element!(gradient.dtype(), E => {
            let result = with_weight!(gradient, weight, E, W => {
                cpu::input_gradient::<E, W>(&geometry, values(&weight), values(&gradient))
            });
            tensor(result, x)
        })
    }

    fn halfseg_conv2d_weight_gradient(
        x: FlexTensor,
        gradient: FlexTensor,
        kernel: [usize; 2],
        options: Conv2dOptions,
        dtype: DType,
    ) -> FlexTensor {
        let [_, c_in, ..] = shape(&x);
        let [_, c_out, ..] = shape(&gradient);
        let weight = [c_out, c_in / options.groups, kernel[0], kernel[1]];
        let geometry = Geometry::new(shape(&x), weight, options);
        let (x, gradient) = (x.to_contiguous(), gradient.to_contiguous());
        one_dtype(&[Some(&x), Some(&gradient)]);
        with_element!(x.dtype(), E => {
            if dtype == DType::F32 {
                let result = cpu::weight_gradient::<E, f32>;
                tensor(result(&geometry, values(&x), values(&gradient)), weight)
            } else {
                let result = cpu::weight_gradient::<E, E>;
                tensor(result(&geometry, values(&x), values(&gradient)), weight)
            }
        })
    }

    fn halfseg_conv2d_bias_gradient(gradient: FlexTensor) -> FlexTensor {
        let [_, channels, height, width] = shape(&gradient);
        let gradient = gradient.to_contiguous();
        with_element!(gradient.dtype(), E => {
            let mut sums = vec![0f64; channels];
            for (plane, values) in values::<E>(&gradient).chunks(height * width).enumerate() {
                // Rows first: f32 keeps sums of a few hundred values exact enough.
                let rows = values.chunks(width).map(|row| row.iter().map(|v| v.widen()).sum::<f32>());
                sums[plane % channels] += rows.map(f64::from).sum::<f64>();
            }
            tensor(sums.iter().map(|&sum| E::narrow(sum as f32)).collect(), [channels])
        })
    }
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

fn one_dtype(operands: &[Option<&FlexTensor>]) {
    let dtypes: Vec<DType> = operands.iter().flatten().map(|t| t.dtype()).collect();
    assert!(
        dtypes.iter().all(|dtype| *dtype == dtypes[0]),
        "operands of a convolution must have one dtype, not {dtypes:?}: cast them first"
    );
}
