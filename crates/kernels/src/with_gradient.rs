//! Operations whose gradients are computed with tensors.
#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(dead_code, unused_variables, reason = "no backend makes use of it")
)]

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "cube")]
use burn::backend::Cube;
#[cfg(feature = "flex")]
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, BackendTensor, DispatchAutodiffContext, DispatchDevice,
    DispatchKindConversion, DispatchTensor,
};
use burn::tensor::{Device, GradientCheckpointingStrategy, Tensor};

use crate::AnyTensor;

/// Inputs of an operation at most: Burn counts them in a type.
const INPUTS: usize = 16;

/// Whether [`with_gradient`] works for tensors on `device`: on the CPU and on GPUs, with autodiff and
/// without Burn's own gradient checkpointing.
pub fn takes_gradients(device: &Device) -> bool {
    let DispatchDevice::Autodiff(autodiff) = device.as_dispatch() else {
        return false;
    };
    let inner = match &**autodiff {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns, reason = "other backends may be compiled in")]
        _ => false,
    };
    inner && autodiff.gradient_checkpointing_strategy() == GradientCheckpointingStrategy::Disabled
}

/// Makes `output` a differentiable function of `inputs`.
///
/// In the backward pass, `gradients` gets the gradient of the output, and returns one for each input,
/// in its shape and dtype; what it returns for an input that is not tracked is dropped. `None` stands
/// for zero. Neither the output that it was made from nor the inputs are kept: what `gradients` needs
/// of them it must own. It may run backward passes of its own, over graphs that share no tensor with
/// the one that it is part of, but no tensor that it owns may be part of that graph (Burn could not
/// free it).
///
/// The result is tracked if one of the inputs is.
///
/// # Panics
/// If there are no inputs or more than 16, if `output` is on an autodiff device, or the inputs are on a
/// device of which [`takes_gradients`] says that it cannot; in the backward pass, if another number of
/// gradients is returned.
pub fn with_gradient<const D: usize>(
    inputs: Vec<AnyTensor>,
    output: Tensor<D>,
    gradients: impl Fn(Tensor<D>) -> Vec<Option<AnyTensor>> + Send + Sync + 'static,
) -> Tensor<D> {
    assert!(
        (1..=INPUTS).contains(&inputs.len()),
        "an operation has 1 to {INPUTS} inputs, not {}",
        inputs.len()
    );
    assert!(
        !output.device().is_autodiff(),
        "the output of an operation with a gradient of its own must not be part of a graph"
    );
    let gradients = Pullback(Arc::new(move |gradient| {
        let gradients = gradients(Tensor::from_dispatch(gradient));
        gradients.into_iter().map(|g| g.map(|g| g.0)).collect()
    }));
    let inputs: Vec<DispatchTensor> = inputs.into_iter().map(|input| input.0).collect();
    let output = output.into_dispatch();
    #[cfg(feature = "flex")]
    if matches!(output.kind, burn::backend::DispatchTensorKind::Flex(_)) {
        return Tensor::from_dispatch(record::<Flex>(inputs, output, gradients));
    }
    #[cfg(feature = "cube")]
    if matches!(output.kind, burn::backend::DispatchTensorKind::Cube(_)) {
        return Tensor::from_dispatch(record::<Cube>(inputs, output, gradients));
    }
    let _ = (inputs, gradients);
    panic!("operations with a gradient of their own run on the CPU and on GPUs only")
}

/// From the gradient of the output to those of the inputs.
#[derive(Clone)]
struct Pullback(Arc<dyn Fn(DispatchTensor) -> Vec<Option<DispatchTensor>> + Send + Sync>);

impl fmt::Debug for Pullback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pullback")
    }
}

#[derive(Debug)]
struct WithGradient;

impl<B: Backend> Backward<B, INPUTS> for WithGradient
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = (Pullback, usize);

    fn backward(
        self,
        ops: Ops<Self::State, INPUTS>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let (pullback, inputs) = ops.state;
        let gradient = BackendTensor::Float(grads.consume::<B>(&ops.node));
        let results = pullback.0(<DispatchTensor as DispatchKindConversion<B>>::from_backend(
            gradient,
        ));
        assert_eq!(
            results.len(),
            inputs,
            "an operation of {inputs} inputs has as many gradients"
        );
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                grads.register::<B>(parent.id, primitive::<B>(result));
            }
        }
    }
}

/// The tensor of one backend.
pub(crate) fn primitive<B: Backend>(tensor: DispatchTensor) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(tensor)
        .unwrap_or_else(|error| panic!("a tensor of an operation is elsewhere: {error}"))
        .float()
}

fn record<B: Backend>(
    inputs: Vec<DispatchTensor>,
    output: DispatchTensor,
    pullback: Pullback,
) -> DispatchTensor
where
    DispatchTensor:
        DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, NoCheckpointing>>,
{
    type Recorded<B> = Autodiff<B, NoCheckpointing>;
    let output = primitive::<B>(output);
    let count = inputs.len();
    // Constants stand for the rest of the fixed number.
    let constant = || Recorded::<B>::from_inner(output.clone()).node();
    let nodes: [NodeGuard; INPUTS] = {
        let mut inputs = inputs.into_iter();
        std::array::from_fn(|_| match inputs.next() {
            Some(input) if input.autodiff != DispatchAutodiffContext::Disabled => {
                primitive::<Recorded<B>>(input).node()
            }
            _ => constant(),
        })
    };
    let prepared = Backward::<B, INPUTS>::prepare::<NoCheckpointing>(WithGradient, nodes);
    let output = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish((pullback, count), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    <DispatchTensor as DispatchKindConversion<Recorded<B>>>::from_backend(BackendTensor::Float(
        output,
    ))
}
