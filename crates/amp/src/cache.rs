//! Casts of weights, made once per step.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, FloatDType, Gradients, Tensor};

use crate::cast::convert;
use crate::precision::castable;
use crate::report::count_hit;
use crate::scope::{keeps_casts, target};
use crate::{Op, OpClass};

/// The casts of every thread that made any: a backward pass and a step concern the casts of all
/// threads, whichever thread runs them, but only those of their own weights.
static CACHES: Mutex<Vec<Weak<Mutex<Cache>>>> = Mutex::new(Vec::new());

thread_local! {
    static CACHE: Arc<Mutex<Cache>> = {
        let cache = Arc::default();
        let mut caches = lock(&CACHES);
        caches.retain(|cache| cache.strong_count() > 0);
        caches.push(Arc::downgrade(&cache));
        cache
    };
}

type Cache = HashMap<Key, Entry>;

#[derive(PartialEq, Eq, Hash)]
struct Key {
    id: ParamId,
    dtype: FloatDType,
    /// A cast made without gradients is not one that gradients flow through.
    require_grad: bool,
}

struct Entry {
    /// The address of the value that was cast, which `source` keeps from being given to another:
    /// an optimizer step, a loaded checkpoint or `valid()` put the value elsewhere.
    cell: usize,
    source: Box<dyn Source>,
    cast: Box<dyn Any + Send>,
}

/// A parameter of any rank.
trait Source: Send {
    /// Whether a backward pass that gave `grads` went through the casts of the parameter.
    fn is_part_of(&self, grads: &Gradients) -> bool;
}

impl<const D: usize> Source for Param<Tensor<D>> {
    fn is_part_of(&self, grads: &Gradients) -> bool {
        let value = self.base();
        // Only leaves keep their gradient; of a computed value nobody can tell.
        value.is_tracked() && (!value.is_require_grad() || value.grad(grads).is_some())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code in between leaves a cache half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets all casts of weights, on all threads.
///
/// Inside a scope casts are forgotten by [`ScaledLoss::backward`](crate::ScaledLoss::backward) and
/// by the steps of [`GradScaler`](crate::GradScaler), as far as they concern their weights, and
/// never used for a weight that was replaced. So this is needed only in a scope that spans several
/// steps, after Burn's own `backward` (the casts are part of the graph that it consumes, and Burn
/// panics when it meets them again) or after changing weights behind Burn's back.
pub fn invalidate_casts() {
    forget(|_, _| true);
}

/// Forgets the casts that are part of the graph that gave `grads`.
pub(crate) fn forget_consumed(grads: &Gradients) {
    forget(|_, entry| entry.source.is_part_of(grads));
}

/// Forgets the casts of the weights of `model`.
pub(crate) fn forget_weights<M: Module>(model: &M) {
    struct Visitor(HashSet<ParamId>);
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(param.id);
        }
    }
    // Under a disabled policy nothing is kept, and the model need not be visited.
    if caches().iter().all(|cache| lock(cache).is_empty()) {
        return;
    }
    let mut visitor = Visitor(HashSet::new());
    model.visit(&mut visitor);
    forget(|key, _| visitor.0.contains(&key.id));
}

/// The casts of each thread that is alive.
fn caches() -> Vec<Arc<Mutex<Cache>>> {
    lock(&CACHES).iter().filter_map(Weak::upgrade).collect()
}

fn forget(is_stale: impl Fn(&Key, &Entry) -> bool) {
    for cache in caches() {
        let stale: Vec<_> = lock(&cache)
            .extract_if(|key, entry| is_stale(key, entry))
            .collect();
        // After the lock is released: dropping tensors may run code that casts.
        drop(stale);
    }
}

/// Forgets the casts of this thread.
pub(crate) fn clear_thread() {
    let entries = CACHE.with(|cache| std::mem::take(&mut *lock(cache)));
    drop(entries);
}

/// The value of a parameter, cast to what the current policy prescribes for `op`.
///
/// Inside a scope a weight is cast once per step and dtype, and all uses share that cast: in the
/// graph it is one node, so the gradients of all uses meet in it and reach the f32 parameter with
/// one cast. The cast is made anew after an optimizer step, and for a forward pass with gradients
/// if the one at hand has none. Outside scopes nothing is cast or kept.
///
/// Parameters of [`Op::BatchNorm`] stay as they are.
pub fn cast_param<const D: usize>(op: Op, param: &Param<Tensor<D>>) -> Tensor<D> {
    let dtype = param_dtype(op, param);
    if dtype == param.dtype() {
        return param.val();
    }
    let dtype = FloatDType::from(dtype);
    if !keeps_casts() || is_reparameterized(param) {
        return convert(param.val(), dtype);
    }

    let key = Key {
        id: param.id,
        dtype,
        require_grad: param.is_require_grad(),
    };
    let cell = std::ptr::from_ref::<Tensor<D>>(param).addr();
    let hit = CACHE.with(|cache| {
        let cache = lock(cache);
        let entry = cache.get(&key).filter(|entry| entry.cell == cell)?;
        entry.cast.downcast_ref::<Tensor<D>>().cloned()
    });
    if let Some(cast) = hit {
        count_hit();
        return cast;
    }
    let cast = convert(param.val(), dtype);
    let entry = Entry {
        cell,
        source: Box::new(param.clone()),
        cast: Box::new(cast.clone()),
    };
    let replaced = CACHE.with(|cache| lock(cache).insert(key, entry));
    drop(replaced);
    cast
}

/// The dtype of what [`cast_param`] gives. For operations that round a weight while they read it, so
/// that no copy is made, counted or kept.
pub fn param_dtype<const D: usize>(op: Op, param: &Param<Tensor<D>>) -> DType {
    let stored = param.dtype();
    match target(op) {
        Some(dtype) if op.class() != OpClass::Input && castable(stored) => dtype.into(),
        _ => stored,
    }
}

/// Whether the value of `param` is computed (LoRA, say): the cell of its base is then no identity.
fn is_reparameterized<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    #[derive(Default)]
    struct Visitor(bool);
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, _: &str, _: &str) {
            self.0 = true;
        }
    }
    let mut visitor = Visitor::default();
    param.visit(&mut visitor);
    visitor.0
}
