//! Casts of weights, made once per step.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, FloatDType, Tensor};

use crate::report::count_hit;
use crate::scope::{convert, in_scope, target};
use crate::{Op, OpClass};

/// Counts the events after which no cast may be used again, on any thread.
static GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(Cache::default());
}

#[derive(Default)]
struct Cache {
    generation: u64,
    entries: HashMap<Key, Entry>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    id: ParamId,
    dtype: FloatDType,
    /// A cast made without gradients is not one that gradients flow through.
    require_grad: bool,
}

struct Entry {
    /// The address of the value that was cast, which `_source` keeps from being given to another:
    /// an optimizer step, a loaded checkpoint or `valid()` put the value elsewhere.
    cell: usize,
    _source: Box<dyn Any>,
    cast: Box<dyn Any>,
}

/// Forgets all casts of weights, on all threads.
///
/// Needed only after changing weights behind Burn's back. Inside a scope casts are also forgotten
/// by [`ScaledLoss::backward`](crate::ScaledLoss::backward) and by the steps of
/// [`GradScaler`](crate::GradScaler), and never used for a weight that was replaced.
pub fn invalidate_casts() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    CACHE.with_borrow_mut(|cache| cache.entries.clear());
}

/// Forgets the casts of this thread.
pub(crate) fn clear_thread() {
    // Taken out first: dropping tensors may run code that casts.
    let entries = CACHE.with_borrow_mut(|cache| std::mem::take(&mut cache.entries));
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
    if op.class() == OpClass::Input {
        return param.val();
    }
    let Some(dtype) = target(op) else {
        return param.val();
    };
    if param.dtype() == DType::from(dtype) || !in_scope() || is_reparameterized(param) {
        return convert(param.val(), dtype);
    }

    let key = Key {
        id: param.id,
        dtype,
        require_grad: param.is_require_grad(),
    };
    let cell = std::ptr::from_ref::<Tensor<D>>(param).addr();
    let generation = GENERATION.load(Ordering::Relaxed);
    let hit = CACHE.with_borrow_mut(|cache| {
        if cache.generation != generation {
            cache.generation = generation;
            cache.entries.clear();
        }
        let entry = cache.entries.get(&key).filter(|entry| entry.cell == cell)?;
        entry.cast.downcast_ref::<Tensor<D>>().cloned()
    });
    if let Some(cast) = hit {
        count_hit();
        return cast;
    }
    let cast = convert(param.val(), dtype);
    let entry = Entry {
        cell,
        _source: Box::new(param.clone()),
        cast: Box::new(cast.clone()),
    };
    CACHE.with_borrow_mut(|cache| cache.entries.insert(key, entry));
    cast
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
