//! What makes an operation visible to module overrides and audits.

use burn::tensor::Tensor;

use crate::scope::{self, Forced, with_forced};
use crate::{Op, Site, audit};

/// Whether no policy, override or audit has a say on this thread, so that operations run as they are.
pub(crate) fn is_idle() -> bool {
    scope::forced().is_none() && !scope::is_enabled() && !audit::is_running()
}

/// Runs one operation of a model in a way that module overrides reach and an audit sees.
///
/// `body` gets `input` and must cast what it uses itself, with [`cast`](crate::cast()) and
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
    if !matches!(scope::forced(), Some(Forced::All(_)))
        && let Some(output) = audit::run(op, site, &input, &body)
    {
        return output;
    }
    let forced = match site {
        Site::Param(id) => scope::module_precision(id),
        Site::Name(_) => None,
    };
    match forced {
        Some(precision) => with_forced(Forced::Module(precision), || body(input)),
        None => body(input),
    }
}
