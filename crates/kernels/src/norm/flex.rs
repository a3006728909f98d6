//! The CPU kernels as one differentiable operation of Burn's Flex backend.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData, bf16, f16};

use super::cpu::{self, Channels, Mask, Sizes, Statistics};
use super::{Activation, BatchNormOutput};

/// Whether `x` is a map that these kernels compute with.
pub fn handles(x: &Tensor<4>) -> bool {
    x.device() == Device::flex() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// Runs the operation; shapes and dtypes were checked.
pub fn batch_norm_train(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
) -> BatchNormOutput {
    let [channels] = gamma.dims();
    let (x, gamma, beta) = (
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
    );
    let (output, statistics) = match skip {
        Some(skip) => {
            let skip = skip.into_dispatch();
            Dispatch::halfseg_batch_norm_skip(x, gamma, beta, skip, epsilon, activation)
        }
        None => Dispatch::halfseg_batch_norm(x, gamma, beta, epsilon, activation),
    };
    let statistics = Tensor::<2>::from_dispatch(statistics);
    let column = |index| {
        let values = statistics.clone().slice([0..channels, index..index + 1]);
        values.reshape([channels]).detach()
    };
    BatchNormOutput {
        output: Tensor::from_dispatch(output),
        mean: column(0),
        variance: column(1),
    }
}

/// What this module adds to a backend. Results are the output and the fields of [`Statistics`],
/// f32 `[c, 4]`.
#[backend_extension(Flex, Autodiff)]
pub trait BatchNormalisation: Backend {
    /// See [`super::batch_norm_train`].
    fn halfseg_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`super::batch_norm_train`].
    fn halfseg_batch_norm_skip(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Calls `$body` with `$E` bound to the type of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $E = f32;
                $body
            }
            DType::F16 => {
                type $E = f16;
                $body
            }
            DType::BF16 => {
                type $E = bf16;
                $body
            }
            other => unreachable!("{other:?} is not handled here"),
        }
    };
}

fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    skip: Option<FlexTensor>,
    epsilon: f64,
    activation: Activation,
) -> (FlexTensor, FlexTensor) {
    let (sizes, shape) = (sizes(&x), shape(&x));
    let (x, gamma, beta) = (
        x.to_contiguous(),
        gamma.to_contiguous(),
        beta.to_contiguous(),
    );
    let skip = skip.map(|skip| skip.to_contiguous());
    let relu = activation == Activation::Relu;
    let (output, statistics) = with_element!(x.dtype(), E => {
        let parameters = [gamma.storage(), beta.storage()];
        let skip = skip.as_ref().map(|skip| skip.storage::<E>());
        let (output, statistics) =
            cpu::forward::<E>(sizes, x.storage(), skip, parameters, epsilon, relu);
        (tensor(output, shape), statistics)
    });
    let rows = statistics
        .iter()
        .flat_map(|s| [s.mean, s.variance, s.inverse_deviation, s.remainder]);
    let statistics = tensor(rows.collect(), [sizes.channels, 4]);
    (output, statistics)
}

impl BatchNormalisation for Flex {
    fn halfseg_batch_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        epsilon: f64,
        activation: Activation,
    ) -> (FlexTensor, FlexTensor) {
        forward(x, gamma, beta, None, epsilon, activation)
    }

    fn halfseg_batch_norm_skip(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        skip: FlexTensor,
        epsilon: f64,
        activation: Activation,
    ) -> (FlexTensor, FlexTensor) {
        forward(x, gamma, beta, Some(skip), epsilon, activation)
    }
}

#[derive(Debug)]
struct BatchNormBackward;

/// What the backward pass needs. Of map size are only the input, through the checkpointer, and for
/// a ReLU after a skip connection the output, which the layer that reads it keeps as well.
#[derive(Clone, Debug)]
struct Kept {
    x: NodeId,
    gamma: FlexTensor,
    beta: FlexTensor,
    statistics: FlexTensor,
    output: Option<FlexTensor>,
    activation: Activation,
}

/// Parents: input, gamma, beta.
impl Backward<Flex, 3> for BatchNormBackward {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        backward(ops, grads, checkpointer);
    }
}

/// Parents: input, gamma, beta, skip connection.
impl Backward<Flex, 4> for BatchNormBackward {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        backward(ops, grads, checkpointer);
    }
}

fn backward<const PARENTS: usize>(
    ops: Ops<Kept, PARENTS>,
    grads: &mut Gradients,
    checkpointer: &mut Checkpointer,
) {
    let kept = ops.state;
    let x: FlexTensor = checkpointer.retrieve_node_output(kept.x);
    let gradient = grads.consume::<Flex>(&ops.node);
    let (sizes, shape) = (sizes(&x), shape(&x));
    let x = x.to_contiguous();
    // The original goes before the gradient is written to: what it alone owns is not copied.
    let mut gradient = {
        let contiguous = gradient.to_contiguous();
        drop(gradient);
        contiguous
    };
    let (gamma, beta) = (kept.gamma.to_contiguous(), kept.beta.to_contiguous());
    let statistics: Vec<Statistics> = {
        let (rows, _) = kept.statistics.storage::<f32>().as_chunks();
        let row = |&[mean, variance, inverse_deviation, remainder]: &[f32; 4]| Statistics {
            mean,
            variance,
            inverse_deviation,
            remainder,
        };
        rows.iter().map(row).collect()
    };
    let channels = Channels {
        gamma: gamma.storage(),
        beta: beta.storage(),
        statistics: &statistics,
    };
    let (dx, dskip, dgamma, dbeta) = with_element!(x.dtype(), E => {
        let mask = match (kept.activation, &kept.output) {
            (Activation::None, _) => Mask::None,
            (Activation::Relu, None) => Mask::FromInput,
            (Activation::Relu, Some(output)) => Mask::FromOutput(output.storage::<E>()),
        };
        let mut target = (PARENTS == 4).then(|| vec![E::default(); x.storage::<E>().len()]);
        let values = gradient.storage_mut::<E>();
        let (dgamma, dbeta) =
            cpu::backward(sizes, x.storage(), channels, mask, values, target.as_deref_mut());
        match target {
            Some(target) => (tensor(target, shape), Some(gradient), dgamma, dbeta),
            None => (gradient, None, dgamma, dbeta),
        }
    });
    let results = [
        Some(dx),
        Some(tensor(dgamma, [sizes.channels])),
        Some(tensor(dbeta, [sizes.channels])),
        dskip,
    ];
    for (parent, result) in ops.parents.into_iter().zip(results) {
        if let (Some(parent), Some(result)) = (parent, result) {
            grads.register::<Flex>(parent.id, result);
        }
    }
}

impl<C: CheckpointStrategy> BatchNormalisation for Autodiff<Flex, C> {
    fn halfseg_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
        let (output, statistics) = forward(
            x.primitive().clone(),
            gamma.clone(),
            beta.clone(),
            None,
            epsilon,
            activation,
        );
        let prepared = Backward::<Flex, 3>::prepare::<C>(BatchNormBackward, nodes);
        let output = match prepared.compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = Kept {
                    x: prepared.checkpoint(&x),
                    gamma,
                    beta,
                    statistics: statistics.clone(),
                    output: None,
                    activation,
                };
                prepared.finish(kept, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        };
        (output, Self::from_inner(statistics))
    }

    fn halfseg_batch_norm_skip(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), gamma.node(), beta.node(), skip.node()];
        let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
        let (output, statistics) = forward(
            x.primitive().clone(),
            gamma.clone(),
            beta.clone(),
            Some(skip.into_primitive()),
            epsilon,
            activation,
        );
        let prepared = Backward::<Flex, 4>::prepare::<C>(BatchNormBackward, nodes);
        let output = match prepared.compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = Kept {
                    x: prepared.checkpoint(&x),
                    gamma,
                    beta,
                    statistics: statistics.clone(),
                    output: (activation == Activation::Relu).then(|| output.clone()),
                    activation,
                };
                prepared.finish(kept, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        };
        (output, Self::from_inner(statistics))
    }
}

fn shape(tensor: &FlexTensor) -> [usize; 4] {
    let shape = tensor.layout().shape();
    std::array::from_fn(|axis| shape[axis])
}

fn sizes(tensor: &FlexTensor) -> Sizes {
    let [batch, channels, height, width] = shape(tensor);
    Sizes {
        batch,
        channels,
        pixels: height * width,
    }
}

fn tensor<E: burn::tensor::Element, const D: usize>(
    values: Vec<E>,
    shape: [usize; D],
) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
