//! Which kernels are tried at all.

use std::sync::OnceLock;

use super::{dense, product};

/// The name of the one kernel that `HALFSEG_GPU_KERNEL` asks for, so that each can be compared with what is right, and
/// a wrong one be found.
fn asked_for() -> Option<&'static str> {
    static ASKED_FOR: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let name = std::env::var("HALFSEG_GPU_KERNEL").ok()?;
        let all = [convolutions(), product::names()].concat();
        assert!(
            all.contains(&name.as_str()),
            "HALFSEG_GPU_KERNEL: expected one of {}, found {name:?}",
            all.join(", ")
        );
        Some(name)
    };
    ASKED_FOR.get_or_init(read).as_deref()
}

/// Whether `HALFSEG_GPU_KERNEL` names this kernel.
pub fn is_asked_for(name: &str) -> bool {
    asked_for() == Some(name)
}

/// Whether the kernel of this name takes part in tuning: all do, but where one is asked for, no others of those that
/// compute what it does. (What it declines is left to the slow kernels that decline nothing.)
pub fn is_tried(name: &str) -> bool {
    let Some(asked_for) = asked_for() else {
        return true;
    };
    let alike = |names: &[&str]| names.contains(&name) && names.contains(&asked_for);
    let (convolutions, products) = (convolutions(), product::names());
    let slowest = products.last() == Some(&name);
    name == asked_for || slowest || !(alike(&convolutions) || alike(&products))
}

fn convolutions() -> Vec<&'static str> {
    let implicit = dense::IMPLICIT.iter().map(|(name, ..)| *name);
    let whole = [
        "pointwise",
        "split",
        #[cfg(feature = "cudnn")]
        "cudnn",
    ];
    whole.into_iter().chain(implicit).collect()
}
