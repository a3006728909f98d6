//! What can go wrong with files and settings.

use std::path::PathBuf;

/// An error of this crate. Misuse in code (a forgotten call, mixed-up gradients) panics instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AmpError {
    /// A policy file could not be read or written.
    #[error("policy file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A policy file does not hold a policy.
    #[error("policy file {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The text names no loss scaling.
    #[error(
        "unknown loss scaling `{found}`: expected `none`, a scale such as `512`, or one of the \
         presets torch, megatron, flax, apex, keras, mmcv-static"
    )]
    UnknownScaling {
        /// The text.
        found: String,
    },
    /// A setting of a scaler is out of its range.
    #[error("loss scaling: {setting} is {found}, expected {expected}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        found: f64,
        /// The range.
        expected: &'static str,
    },
}
