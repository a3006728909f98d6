//! The normalisation as one differentiable operation of a Burn backend.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn::tensor::{DType, Shape};

use super::BatchNormOutput;
use crate::Activation;

/// Runs the operation; shapes and dtypes were checked, and the device is one that has it.
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
    let row = |index| {
        let values = statistics.clone().narrow(0, index, 1);
        values.reshape([channels]).detach()
    };
    BatchNormOutput {
        output: Tensor::from_dispatch(output),
        mean: row(0),
        variance: row(1),
    }
}

/// What this module adds to a backend.
///
/// Statistics are f32 `[4, c]`: the mean, the biased variance, `1 / sqrt(variance + epsilon)`, and
/// the true mean less the first row (where the mean is a thousand deviations, its rounding to f32
/// would be seen in the output).
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Autodiff
)]
pub trait BatchNormalisation: Backend {
    /// The output and the statistics. See [`super::batch_norm_train`].
    #[fusion(meta = |x, _gamma, _beta, _epsilon, _activation| (x.clone(), statistics_of(x)))]
    fn halfseg_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The output and the statistics. See [`super::batch_norm_train`].
    #[fusion(meta = |x, _gamma, _beta, _skip, _epsilon, _activation| (x.clone(), statistics_of(x)))]
    fn halfseg_batch_norm_skip(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of `x`, gamma and beta, where nothing was added before the activation, or the
    /// activation is none. A ReLU's mask is computed again from `x`.
    #[fusion(meta = |x, gamma, beta, _statistics, _gradient, _activation| {
        (x.clone(), gamma.clone(), beta.clone())
    })]
    fn halfseg_batch_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of `x`, gamma, beta and the skip connection behind a ReLU, whose mask is read
    /// from `output`.
    #[fusion(meta = |x, gamma, _statistics, _output, _gradient| {
        (x.clone(), gamma.clone(), gamma.clone(), x.clone())
    })]
    fn halfseg_batch_norm_skip_relu_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        output: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );
}

#[cfg(feature = "cube")]
fn statistics_of(x: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([4, x.shape[1]]), DType::F32)
}

#[derive(Debug)]
struct BatchNormBackward;

/// What the backward pass needs. Of map size are only the input, through the checkpointer, and for
/// a ReLU after a skip connection the output, which the layer that reads it keeps as well.
#[derive(Clone, Debug)]
struct Kept<T> {
    x: NodeId,
    gamma: T,
    beta: T,
    statistics: T,
    output: Option<T>,
    activation: Activation,
}

/// Parents: input, gamma, beta.
impl<B: BatchNormalisation> Backward<B, 3> for BatchNormBackward {
    type State = Kept<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        backward::<B, 3>(ops, grads, checkpointer);
    }
}

/// Parents: input, gamma, beta, skip connection.
impl<B: BatchNormalisation> Backward<B, 4> for BatchNormBackward {
    type State = Kept<FloatTensor<B>>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        backward::<B, 4>(ops, grads, checkpointer);
    }
}

fn backward<B: BatchNormalisation, const PARENTS: usize>(
    ops: Ops<Kept<FloatTensor<B>>, PARENTS>,
    grads: &mut Gradients,
    checkpointer: &mut Checkpointer,
) {
    let Kept {
        x,
        gamma,
        beta,
        statistics,
        output,
        activation,
    } = ops.state;
    let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
    let gradient = grads.consume::<B>(&ops.node);
    let (dx, dgamma, dbeta, dskip) = match output {
        Some(output) => {
            let (dx, dgamma, dbeta, dskip) =
                B::halfseg_batch_norm_skip_relu_backward(x, gamma, statistics, output, gradient);
            (dx, dgamma, dbeta, Some(dskip))
        }
        None => {
            // Behind a skip connection without an activation, its gradient is the output's.
            let dskip = (PARENTS == 4).then(|| gradient.clone());
            let (dx, dgamma, dbeta) =
                B::halfseg_batch_norm_backward(x, gamma, beta, statistics, gradient, activation);
            (dx, dgamma, dbeta, dskip)
        }
    };
    let results = [Some(dx), Some(dgamma), Some(dbeta), dskip];
    for (parent, result) in ops.parents.into_iter().zip(results) {
        if let (Some(parent), Some(result)) = (parent, result) {
            grads.register::<B>(parent.id, result);
        }
    }
}

impl<B: BatchNormalisation, C: CheckpointStrategy> BatchNormalisation for Autodiff<B, C> {
    fn halfseg_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f64,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
        let (output, statistics) = B::halfseg_batch_norm(
            x.primitive().clone(),
            gamma.clone(),
            beta.clone(),
            epsilon,
            activation,
        );
        let prepared = Backward::<B, 3>::prepare::<C>(BatchNormBackward, nodes);
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
        let (output, statistics) = B::halfseg_batch_norm_skip(
            x.primitive().clone(),
            gamma.clone(),
            beta.clone(),
            skip.into_primitive(),
            epsilon,
            activation,
        );
        let prepared = Backward::<B, 4>::prepare::<C>(BatchNormBackward, nodes);
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

    fn halfseg_batch_norm_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }

    fn halfseg_batch_norm_skip_relu_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        unreachable!("{FIRST_ORDER}")
    }
}

const FIRST_ORDER: &str = "Burn computes gradients of first order only";
