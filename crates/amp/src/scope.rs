//! Autocast scopes, and the casts that they ask for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use burn::module::{Param, ParamId};
use burn::tensor::{DType, FloatDType, Tensor};

use crate::report::count_cast;
use crate::{Op, OpClass, Policy, Precision, audit, cache};

thread_local! {
    static SCOPES: RefCell<Vec<Rc<Policy>>> = const { RefCell::new(Vec::new()) };
    /// What an enclosing [`observe`] prescribes instead of the policy.
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

/// Restores a thread-local value when it goes out of scope, also in a panic.
struct Restore<F: FnMut()>(F);

impl<F: FnMut()> Drop for Restore<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs `body` under `policy`.
///
/// Scopes nest; the innermost one holds, so a disabled policy inside switches autocast off for its
/// extent. A scope belongs to its thread and ends also when `body` panics. Weight casts are kept
/// until the outermost scope ends or the weights change.
///
/// ```
/// use halfseg_amp::{Policy, autocast, current};
///
/// autocast(&Policy::f16(), || {
///     assert_eq!(current(), Policy::f16());
///     autocast(&Policy::disabled(), || assert!(!current().is_enabled()));
/// });
/// assert!(!current().is_enabled());
/// ```
pub fn autocast<R>(policy: &Policy, body: impl FnOnce() -> R) -> R {
    SCOPES.with_borrow_mut(|scopes| scopes.push(Rc::new(policy.clone())));
    // An override of the operation around this scope does not reach into it.
    let forced = FORCED.get();
    if matches!(forced, Some(Forced::Module(_))) {
        FORCED.set(None);
    }
    let _restore = Restore(|| {
        FORCED.set(forced);
        let outermost = SCOPES.with_borrow_mut(|scopes| {
            scopes.pop();
            scopes.is_empty()
        });
        if outermost {
            cache::clear_thread();
        }
    });
    body()
}

/// The policy of the innermost scope of this thread, the disabled one outside all scopes.
pub fn current() -> Policy {
    SCOPES
        .with_borrow(|scopes| scopes.last().map(|policy| (**policy).clone()))
        .unwrap_or_default()
}

/// Runs `body` with `forced` before the policy.
pub(crate) fn with_forced<R>(forced: Forced, body: impl FnOnce() -> R) -> R {
    let before = FORCED.replace(Some(forced));
    let _restore = Restore(move || FORCED.set(before));
    body()
}

/// Whether no policy, override or audit has a say on this thread, so that operations run as they are.
pub(crate) fn is_idle() -> bool {
    FORCED.get().is_none()
        && SCOPES.with_borrow(|scopes| scopes.last().is_none_or(|policy| !policy.is_enabled()))
        && !audit::is_running()
}

/// Whether casts are kept: only inside a scope is there an end at which they go.
pub(crate) fn in_scope() -> bool {
    SCOPES.with_borrow(|scopes| !scopes.is_empty())
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

/// Whether casts apply to a dtype: f64 and quantized values are left alone.
pub(crate) fn castable(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Flex32)
}

/// Casts and counts, if there is something to cast.
pub(crate) fn convert<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let from = x.dtype();
    if from == DType::from(dtype) || !castable(from) {
        return x;
    }
    count_cast(x.shape().num_elements() * DType::from(dtype).size());
    x.cast(dtype)
}

/// Casts an activation to what the current policy prescribes for `op`.
///
/// f64 stays f64. Under a disabled policy this returns `x` itself.
///
/// # Panics
///
/// For [`Op::BinaryCrossEntropy`] under an enabled policy.
pub fn cast<const D: usize>(op: Op, x: Tensor<D>) -> Tensor<D> {
    match target(op) {
        Some(dtype) => convert(x, dtype),
        None => x,
    }
}

/// Where in a model an operation is: at the module that owns a parameter, or under a name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Site<'a> {
    /// The operation owns this parameter, whose path names it.
    Param(ParamId),
    /// The operation has no parameter.
    Name(&'a str),
}

impl<const D: usize> From<&Param<Tensor<D>>> for Site<'_> {
    fn from(param: &Param<Tensor<D>>) -> Self {
        Site::Param(param.id)
    }
}

impl From<ParamId> for Site<'_> {
    fn from(id: ParamId) -> Self {
        Site::Param(id)
    }
}

impl<'a> From<&'a str> for Site<'a> {
    fn from(name: &'a str) -> Self {
        Site::Name(name)
    }
}

/// Runs one operation of a model in a way that module overrides reach and an audit sees.
///
/// `body` gets `input` and must cast what it uses itself, with [`cast`] and
/// [`cast_param`](crate::cast_param). It is called once, except in an audit, which calls it in
/// several precisions: it must not draw random numbers. Without overrides and audits this is
/// `body(input)`.
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use halfseg_amp::{Op, cast, cast_param, observe};
///
/// fn project(weight: &Param<Tensor<2>>, x: Tensor<2>) -> Tensor<2> {
///     observe(Op::Matmul, weight, x, |x| {
///         cast(Op::Matmul, x).matmul(cast_param(Op::Matmul, weight))
///     })
/// }
/// ```
pub fn observe<'a, I: Clone, const D: usize>(
    op: Op,
    site: impl Into<Site<'a>>,
    input: I,
    body: impl Fn(I) -> Tensor<D>,
) -> Tensor<D> {
    if is_idle() {
        return body(input);
    }
    let site = site.into();
    // An audit covers the outermost operation; those inside are part of it.
    if !matches!(FORCED.get(), Some(Forced::All(_)))
        && let Some(output) = audit::run(op, site, &input, &body)
    {
        return output;
    }
    let forced = match site {
        Site::Param(id) => SCOPES
            .with_borrow(|scopes| scopes.last().and_then(|policy| policy.module_precision(id))),
        Site::Name(_) => None,
    };
    match forced {
        Some(precision) => with_forced(Forced::Module(precision), || body(input)),
        None => body(input),
    }
}
