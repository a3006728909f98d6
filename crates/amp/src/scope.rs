//! What is in force on this thread: scopes, and precisions that come before their policy.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use burn::module::ParamId;
use burn::tensor::FloatDType;

use crate::{Op, OpClass, Policy, Precision};

thread_local! {
    static SCOPES: RefCell<Vec<Rc<Policy>>> = const { RefCell::new(Vec::new()) };
    /// What an enclosing operation prescribes instead of the policy.
    static FORCED: Cell<Option<Forced>> = const { Cell::new(None) };
}

/// A precision that comes before the policy.
#[derive(Clone, Copy)]
pub(crate) enum Forced {
    /// For the operation that a module override names.
    Module(Precision),
    /// For all operations, by an audit.
    All(FloatDType),
}

/// A scope that was entered and is to be [left](Entered::leave).
#[must_use = "leave the scope, also in a panic"]
pub(crate) struct Entered {
    /// What was forced around the scope.
    forced: Option<Forced>,
}

impl Entered {
    /// Ends the scope and says whether it was the outermost.
    pub fn leave(&mut self) -> bool {
        FORCED.set(self.forced);
        SCOPES.with_borrow_mut(|scopes| {
            scopes.pop();
            scopes.is_empty()
        })
    }
}

/// Puts `policy` in force on this thread, until the scope is left.
pub(crate) fn enter(policy: &Policy) -> Entered {
    SCOPES.with_borrow_mut(|scopes| scopes.push(Rc::new(policy.clone())));
    // An override of the operation around this scope does not reach into it.
    let forced = FORCED.get();
    if matches!(forced, Some(Forced::Module(_))) {
        FORCED.set(None);
    }
    Entered { forced }
}

/// The policy of the innermost scope of this thread, the disabled one outside all scopes.
pub fn current() -> Policy {
    SCOPES
        .with_borrow(|scopes| scopes.last().map(|policy| (**policy).clone()))
        .unwrap_or_default()
}

/// Runs `body` with `forced` before the policy.
pub(crate) fn with_forced<R>(forced: Forced, body: impl FnOnce() -> R) -> R {
    /// Restores what was forced, also in a panic.
    struct Restore(Option<Forced>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(forced)));
    body()
}

/// What comes before the policy.
pub(crate) fn forced() -> Option<Forced> {
    FORCED.get()
}

/// Whether the innermost scope, if there is one, casts anything.
pub(crate) fn is_enabled() -> bool {
    SCOPES.with_borrow(|scopes| scopes.last().is_some_and(|policy| policy.is_enabled()))
}

/// Whether casts are kept: only inside a scope is there an end at which they go.
pub(crate) fn keeps_casts() -> bool {
    SCOPES.with_borrow(|scopes| !scopes.is_empty())
}

/// The override of the current policy for operations that own the parameter `id`.
pub(crate) fn module_precision(id: ParamId) -> Option<Precision> {
    SCOPES.with_borrow(|scopes| scopes.last().and_then(|policy| policy.module_precision(id)))
}

/// What the current policy has operands of several dtypes cast to in place of their widest dtype.
pub(crate) fn promotion() -> Option<FloatDType> {
    SCOPES.with_borrow(|scopes| scopes.last()?.ops().get(&Op::Promote)?.dtype())
}

/// The dtype that the current scope prescribes for `op`, `None` for none.
///
/// # Panics
///
/// If the scope rejects the operation ([`Op::BinaryCrossEntropy`]).
pub(crate) fn target(op: Op) -> Option<FloatDType> {
    let precision = match FORCED.get() {
        Some(Forced::All(dtype)) => return Some(dtype),
        Some(Forced::Module(precision)) if op.class() != OpClass::Rejected => precision,
        _ => SCOPES.with_borrow(|scopes| match scopes.last() {
            Some(policy) => {
                assert!(
                    op.class() != OpClass::Rejected
                        || !policy.is_enabled()
                        || policy.ops().contains_key(&op),
                    "{op} on probabilities is unsafe under autocast: its gradient overflows in \
                     half precision. Give the logits to a cross-entropy that takes logits."
                );
                policy.precision(op)
            }
            None => Precision::Input,
        }),
    };
    precision.dtype()
}
