//! What can go wrong with files and settings.

use std::path::PathBuf;

use crate::Precision;

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
    /// A device does not compute in a precision that a policy asks for.
    #[error(
        "{device} does not compute in {precision}, only in {}: take a policy for one of these, or \
         `Policy::disabled()`",
        list(supported)
    )]
    Unsupported {
        /// The device, as Burn prints it.
        device: String,
        /// The precision.
        precision: Precision,
        /// The precisions that the device computes in.
        supported: Vec<Precision>,
    },
    /// A scaler's state has no counterpart in `torch.amp.GradScaler`.
    #[error("a `torch.amp.GradScaler` has no counterpart of {what}")]
    NotInTorch {
        /// What only the scaler here has.
        what: &'static str,
    },
    /// A scaler's state was written by a later version of this crate.
    #[error("the scaler's state has version {found}, this program reads up to {supported}")]
    Version {
        /// The version of the state.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
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

/// Precisions, separated by commas.
fn list(precisions: &[Precision]) -> String {
    let names: Vec<_> = precisions.iter().map(Precision::to_string).collect();
    names.join(", ")
}
