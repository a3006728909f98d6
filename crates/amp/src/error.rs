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
    /// A policy file has a key that policies lack, or names an operation that does not exist.
    #[error(
        "policy file {}: unknown key `{key}`; the nearest valid key is `{nearest}`",
        path.display()
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key, dotted below `ops`.
        key: String,
        /// The valid key that looks most like it.
        nearest: String,
    },
    /// A policy file has a value that is no precision, or none where one is needed.
    #[error("policy file {}: `{key}`: expected {expected}, found {found}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted below `ops` and `modules`.
        key: String,
        /// What the key takes.
        expected: &'static str,
        /// What was there.
        found: String,
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
