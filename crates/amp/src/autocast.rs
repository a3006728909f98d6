//! The scope that puts a policy in force.

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::scope::{Entered, enter};
use crate::{Policy, cache};

/// Runs `body` under `policy`.
///
/// Scopes nest; the innermost one holds, so a disabled policy inside switches autocast off for its
/// extent. A scope belongs to its thread and ends also when `body` panics. Weight casts are kept
/// until the outermost scope ends or the weights change. Work that goes on in another thread takes the
/// scope along with [`current`](crate::current), a future with [`in_scope`].
///
/// ```
/// use halfseg_amp::{Policy, autocast, current};
///
/// autocast(&Policy::f16(), || {
///     assert_eq!(current(), Policy::f16());
///     autocast(&Policy::disabled(), || assert!(!current().is_enabled()));
/// });
/// assert!(!current().is_enabled());
///
/// autocast(&Policy::f16(), || {
///     let policy = current();
///     std::thread::spawn(move || {
///         assert!(!current().is_enabled());
///         autocast(&policy, || assert_eq!(current(), Policy::f16()));
///     })
///     .join()
///     .expect("the thread ends");
/// });
/// ```
pub fn autocast<R>(policy: &Policy, body: impl FnOnce() -> R) -> R {
    /// Leaves the scope, also in a panic.
    struct Leave(Entered);
    impl Drop for Leave {
        fn drop(&mut self) {
            if self.0.leave() {
                cache::clear_thread();
            }
        }
    }
    let _leave = Leave(enter(policy));
    body()
}

/// A future that runs under `policy` whenever it runs, on whichever thread.
///
/// ```
/// use halfseg_amp::{Policy, current, in_scope};
///
/// async fn predict() -> Policy {
///     current()
/// }
///
/// let future = in_scope(Policy::f16(), predict());
/// # let mut future = Box::pin(future);
/// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
/// # let std::task::Poll::Ready(policy) = future.as_mut().poll(&mut context) else { panic!() };
/// # use std::future::Future as _;
/// # assert_eq!(policy, Policy::f16());
/// ```
pub fn in_scope<F: Future>(policy: Policy, future: F) -> InScope<F> {
    InScope {
        policy,
        future: Box::pin(future),
    }
}

/// What [`in_scope`] gives.
#[must_use = "futures do nothing unless they are awaited"]
pub struct InScope<F> {
    policy: Policy,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for InScope<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { policy, future } = &mut *self;
        autocast(policy, || future.as_mut().poll(context))
    }
}
