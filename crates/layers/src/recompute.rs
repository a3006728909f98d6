//! Trading a second forward pass for memory.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Gradients, Tensor};
use halfseg_amp::{autocast, current};
use halfseg_kernels::{AnyTensor, takes_gradients, with_gradient};

thread_local! {
    static REPEATING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread repeats a forward pass that has moved the running statistics before.
pub(crate) fn is_repeating() -> bool {
    REPEATING.get()
}

/// Runs `forward` as part of a training step without keeping what its backward pass needs, and runs
/// it a second time there ("gradient checkpointing", arXiv:1604.06174).
///
/// Between the two passes only `x` and the result are in memory. Values and gradients are those of
/// `forward(module, x)`, as far as its operations give the same result twice; the second pass runs
/// under the autocast policy of the first and leaves running statistics alone. `forward` must not draw
/// random numbers, and must reach all parameters that it uses through `module`.
///
/// On a device without autodiff, where nothing is trained, and where Burn's own gradient checkpointing is on, this is
/// `forward(module, x)`.
///
/// # Shapes
/// - `x`: `[n, c, h, w]`
/// - output: as that of `forward`
///
/// # Panics
/// If `module` has more than 15 parameters that are trained.
pub fn recomputed<M: Module + 'static>(
    module: &M,
    x: Tensor<4>,
    forward: fn(&M, Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    if !takes_gradients(&x.device()) {
        return forward(module, x);
    }
    let mut trained = Trained::default();
    module.visit(&mut trained);
    if trained.values.is_empty() && !x.is_tracked() {
        // Frozen, behind what is frozen: there is no backward pass to keep anything for.
        return forward(module, x);
    }
    let mut inputs = vec![AnyTensor::from(x.clone())];
    inputs.extend(trained.values);

    let (tracked, x) = (x.is_tracked(), x.inner());
    let ids = trained.ids;
    // It shares running statistics with `module`, and memory with its parameters, but no graph.
    let constant = module.clone().map(&mut Track(&ids, false));
    let output = forward(&constant, Tensor::from_inner(x.clone())).inner();

    let policy = current();
    let constant = Mutex::new(constant);
    with_gradient(inputs, output, move |gradient| {
        let constant = constant.lock().unwrap_or_else(PoisonError::into_inner);
        let leaf = constant.clone().map(&mut Track(&ids, true));
        drop(constant);
        let x = Tensor::from_inner(x.clone()).set_require_grad(tracked);
        let output = autocast(&policy, || repeat(|| forward(&leaf, x.clone())));
        let mut gradients = pulled_back(output, gradient).map(|all| Found {
            all,
            ids: &ids,
            found: Vec::with_capacity(1 + ids.len()),
        });
        let Some(gradients) = &mut gradients else {
            return vec![None; 1 + ids.len()];
        };
        let first = x.grad_remove(&mut gradients.all).map(AnyTensor::from);
        gradients.found.push(first);
        leaf.visit(gradients);
        std::mem::take(&mut gradients.found)
    })
}

/// `x`, as a node of its own: gradients of all that uses the result are summed before they are added to
/// those of what uses `x` itself.
///
/// So the sum is the same to the last bit whether the users of the result are recomputed (which sum
/// theirs by themselves) or not. Costs nothing.
///
/// # Shapes
/// - `x`, output: `[n, c, h, w]`
pub fn branch(x: Tensor<4>) -> Tensor<4> {
    if !takes_gradients(&x.device()) {
        return x;
    }
    let value = x.clone().inner();
    with_gradient(vec![x.into()], value, |gradient| {
        vec![Some(gradient.into())]
    })
}

/// The gradients of everything that `output` depends on, if it has the `gradient`; `None` if it
/// depends on nothing.
fn pulled_back(output: Tensor<4>, gradient: Tensor<4>) -> Option<Gradients> {
    if !output.is_tracked() {
        return None;
    }
    let scalar = Tensor::<1>::zeros([1], &gradient.device());
    let pullback = move |_| vec![Some(AnyTensor::from(gradient.clone()))];
    Some(with_gradient(vec![output.into()], scalar, pullback).backward())
}

/// Runs `body` with [`is_repeating`] true.
fn repeat<R>(body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            REPEATING.set(self.0);
        }
    }
    let _restore = Restore(REPEATING.replace(true));
    body()
}

/// Parameters that are trained, in the order of a visit.
#[derive(Default)]
struct Trained {
    ids: HashSet<ParamId>,
    values: Vec<AnyTensor>,
}

impl ModuleVisitor for Trained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if value.is_tracked() && self.ids.insert(param.id) {
            self.values.push(value.into());
        }
    }
}

/// Gives these parameters new nodes, which want a gradient or do not.
struct Track<'a>(&'a HashSet<ParamId>, bool);

impl ModuleMapper for Track<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.contains(&param.id) {
            true => param.map(|value| value.set_require_grad(self.1)),
            false => param,
        }
    }
}

/// Takes the gradients of these parameters, in the order of a visit.
struct Found<'a> {
    all: Gradients,
    ids: &'a HashSet<ParamId>,
    found: Vec<Option<AnyTensor>>,
}

impl ModuleVisitor for Found<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.ids.contains(&param.id) {
            let gradient = param.val().grad_remove(&mut self.all);
            self.found.push(gradient.map(AnyTensor::from));
        }
    }
}
