//! The scope that puts a policy in force.

use crate::scope::{Entered, enter};
use crate::{Policy, cache};

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
