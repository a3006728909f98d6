//! The normalisation as one differentiable operation of a Burn backend.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn::tensor::{DType, Shape};

use super::Running;
use super::forward::{Forward, is_made_again};
use super::passes::SharedNormalisation;
use crate::Activation;

/// Runs the operation; shapes and dtypes were checked, and the device is one that has it. The output, and the
/// running mean and variance, moved, or without any the batch's own.
pub fn batch_norm_train(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
    running: Option<Running>,
) -> (Tensor<4>, [Tensor<1>; 2]) {
    let [channels] = gamma.dims();
    let count = x.shape().num_elements() / channels;
    let wanted = running.is_some();
    // Where none are to be moved, parameters stand in for them: a few values more, and no other operation.
    let running = running.unwrap_or_else(|| Running {
        mean: gamma.clone().detach(),
        variance: beta.clone().detach(),
        momentum: 0.0,
    });
    let forward = Forward {
        epsilon,
        activation,
        moves: running.moves(count),
        again: is_made_again(&x),
    };
    let (mean, variance) = (
        running.mean.into_dispatch(),
        running.variance.into_dispatch(),
    );
    let (x, gamma, beta) = (
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
    );
    let (output, statistics, mean, variance) = match skip {
        Some(skip) => {
            let skip = skip.into_dispatch();
            Dispatch::halfseg_batch_norm_skip(x, gamma, beta, skip, mean, variance, forward)
        }
        None => Dispatch::halfseg_batch_norm(x, gamma, beta, mean, variance, forward),
    };
    let output = Tensor::from_dispatch(output);
    if wanted {
        let moved = [mean, variance].map(|row| Tensor::from_dispatch(row).detach());
        return (output, moved);
    }
    // Not taken where nobody reads them: on a GPU each row is a kernel.
    let statistics = Tensor::<2>::from_dispatch(statistics);
    let row = |index| {
        let values = statistics.clone().narrow(0, index, 1);
        values.reshape([channels]).detach()
    };
    (output, [row(0), row(1)])
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
    /// The output, the statistics and the running mean and variance, moved. See
    /// [`super::batch_norm_train_moving`].
    #[fusion(meta = |x, _gamma, _beta, mean, variance, _forward| {
        (x.clone(), statistics_of(x), mean.clone(), variance.clone())
    })]
    fn halfseg_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        forward: Forward,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );

    /// The output, the statistics and the running mean and variance, moved. See
    /// [`super::batch_norm_train_moving`].
    #[fusion(meta = |x, _gamma, _beta, _skip, mean, variance, _forward| {
        (x.clone(), statistics_of(x), mean.clone(), variance.clone())
    })]
    fn halfseg_batch_norm_skip(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        forward: Forward,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    );

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

/// Makes the output again, from its node's parents: input, gamma, beta.
#[derive(Debug)]
struct Again<B: Backend> {
    parents: [NodeId; 3],
    statistics: FloatTensor<B>,
    activation: Activation,
}

impl<B: SharedNormalisation> RetroForward for Again<B> {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        let [x, gamma, beta] = self
            .parents
            .map(|parent| states.get_state::<FloatTensor<B>>(&parent));
        let statistics = self.statistics.clone();
        let again = B::halfseg_norm_apply(x, gamma, beta, statistics, self.activation);
        states.save(output, again);
    }
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

/// The output's node, with what its backward pass reads.
fn finished<B: BatchNormalisation, C: CheckpointStrategy>(
    prepared: OpsKind<BatchNormBackward, B, Kept<FloatTensor<B>>, C, 3>,
    x: &FloatTensor<Autodiff<B, C>>,
    kept: impl FnOnce(NodeId) -> Kept<FloatTensor<B>>,
    output: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let kept = kept(prepared.checkpoint(x));
            prepared.finish(kept, output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

impl<B, C> BatchNormalisation for Autodiff<B, C>
where
    B: BatchNormalisation + SharedNormalisation,
    C: CheckpointStrategy,
{
    fn halfseg_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        forward: Forward,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (output, statistics, mean, variance) = B::halfseg_batch_norm(
            x.primitive().clone(),
            gamma.primitive().clone(),
            beta.primitive().clone(),
            mean.into_primitive(),
            variance.into_primitive(),
            forward,
        );
        let again = forward.again.then(|| Again::<B> {
            parents: nodes.each_ref().map(NodeGuard::id),
            statistics: statistics.clone(),
            activation: forward.activation,
        });
        let kept = |x| Kept {
            x,
            gamma: gamma.primitive().clone(),
            beta: beta.primitive().clone(),
            statistics: statistics.clone(),
            output: None,
            activation: forward.activation,
        };
        let output = match again {
            // Whatever the device's own strategy is.
            Some(again) => {
                let prepared =
                    Backward::<B, 3>::prepare::<BalancedCheckpointing>(BatchNormBackward, nodes);
                let prepared = prepared.memory_bound().retro_forward(again);
                let prepared = prepared.parents([&x, &gamma, &beta]);
                finished(prepared.stateful(), &x, kept, output)
            }
            None => {
                let prepared = Backward::<B, 3>::prepare::<C>(BatchNormBackward, nodes);
                finished(prepared.compute_bound().stateful(), &x, kept, output)
            }
        };
        let [statistics, mean, variance] = [statistics, mean, variance].map(Self::from_inner);
        (output, statistics, mean, variance)
    }

    fn halfseg_batch_norm_skip(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        forward: Forward,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let nodes = [x.node(), gamma.node(), beta.node(), skip.node()];
        let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
        let (output, statistics, mean, variance) = B::halfseg_batch_norm_skip(
            x.primitive().clone(),
            gamma.clone(),
            beta.clone(),
            skip.into_primitive(),
            mean.into_primitive(),
            variance.into_primitive(),
            forward,
        );
        let prepared = Backward::<B, 4>::prepare::<C>(BatchNormBackward, nodes);
        let output = match prepared.compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = Kept {
                    x: prepared.checkpoint(&x),
                    gamma,
                    beta,
                    statistics: statistics.clone(),
                    output: (forward.activation == Activation::Relu).then(|| output.clone()),
                    activation: forward.activation,
                };
                prepared.finish(kept, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        };
        let [statistics, mean, variance] = [statistics, mean, variance].map(Self::from_inner);
        (output, statistics, mean, variance)
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
