//! Which kernels are tried at all.

use std::sync::OnceLock;

use super::{dense, product};

/// The names of the kernels that `HALFSEG_GPU_KERNEL` asks for, separated by commas, so that each can be compared with what
/// is right, a wrong one be found, and those that cannot run somewhere be left out. Empty: nothing is asked for.
fn asked_for() -> &'static [String] {
    static ASKED_FOR: OnceLock<Vec<String>> = OnceLock::new();
    ASKED_FOR.get_or_init(|| {
        let Ok(names) = std::env::var("HALFSEG_GPU_KERNEL") else {
            return Vec::new();
        };
        let all = [convolutions(), product::names()].concat();
        let names = names.split(',').map(|name| name.trim().to_owned());
        let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
        for name in &names {
            assert!(
                all.contains(&name.as_str()),
                "HALFSEG_GPU_KERNEL: expected some of {}, separated by commas, found {name:?}",
                all.join(", ")
            );
        }
        names
    })
}

/// Whether `HALFSEG_GPU_KERNEL` names this kernel.
pub fn is_asked_for(name: &str) -> bool {
    asked_for().iter().any(|asked_for| asked_for == name)
}

/// Whether the kernel of this name takes part in tuning: all do, but where some are asked for, no others of those that
/// compute what these do. (What they decline is left to the slow kernels that decline nothing.)
pub fn is_tried(name: &str) -> bool {
    let (convolutions, products) = (convolutions(), product::names());
    let slowest = products.last() == Some(&name);
    let family = [convolutions, products]
        .into_iter()
        .find(|names| names.contains(&name));
    let alike = |asked_for: &String| {
        let family = family.as_deref().unwrap_or_default();
        family.contains(&asked_for.as_str())
    };
    slowest || is_asked_for(name) || !asked_for().iter().any(alike)
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
