//! What can go wrong outside of the caller's code.

use std::path::PathBuf;

/// Errors of configurations, checkpoints, logs and devices.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration names something that does not exist.
    #[error("unknown key `{key}` in {origin}; the nearest valid key is `{nearest}`")]
    UnknownKey {
        /// The dotted key that was found.
        key: String,
        /// The valid key that looks most like it.
        nearest: String,
        /// Where it was found: a file, or `--set`.
        origin: String,
    },
    /// A configuration value of the wrong kind or out of range.
    #[error("`{key}` in {origin}: expected {expected}, found {found}")]
    Value {
        /// The dotted key.
        key: String,
        /// Where it was found.
        origin: String,
        /// What the key takes.
        expected: String,
        /// What was there.
        found: String,
    },
    /// A configuration that is not TOML, or does not fit together.
    #[error("{origin}: {message}")]
    Config {
        /// Where it was found.
        origin: String,
        /// What is wrong, with the line where it is known.
        message: String,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file could not be written; what was there before is still there.
    #[error("cannot write {} (what was there before is unchanged)", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The training state beside a checkpoint cannot be used.
    #[error("{}: expected {expected}, found {found}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What a state file holds.
        expected: String,
        /// What was there.
        found: String,
    },
    /// `resume` was asked for where there is nothing to resume.
    #[error("{}: no checkpoint to resume from (expected a file `{expected}` there)", path.display())]
    NothingToResume {
        /// The output folder.
        path: PathBuf,
        /// The file that names the last checkpoint.
        expected: &'static str,
    },
    /// The output folder already holds a run.
    #[error(
        "{} already holds a run (found `{found}`); resume it with --resume, or choose another folder",
        path.display()
    )]
    FolderInUse {
        /// The output folder.
        path: PathBuf,
        /// The file that gave it away.
        found: &'static str,
    },
    /// A training step would need more memory than there is.
    #[error(
        "training at crop {crop} with batch {batch} needs about {needed}, but {available} are \
         available; make the crop or the batch smaller"
    )]
    Memory {
        /// Crop as `HxW`.
        crop: String,
        /// Images per step.
        batch: usize,
        /// Predicted need.
        needed: crate::Bytes,
        /// What the system offers.
        available: crate::Bytes,
    },
    /// A device that this build or this machine does not have.
    #[error("device `{device}`: {reason}")]
    Device {
        /// As asked for.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The loss left the range of numbers, and lowering the scale does not help.
    #[error(
        "training diverged: {skipped} steps in a row had gradients that are not finite, up to \
         iteration {iteration} (loss {loss}, loss scale {scale}; first in {culprits}); try a lower \
         learning rate{hint}"
    )]
    Diverged {
        /// Iteration at which it was given up.
        iteration: u64,
        /// Steps skipped in a row.
        skipped: u64,
        /// The last loss.
        loss: f64,
        /// The last loss scale.
        scale: f64,
        /// Parameters with gradients that are not finite.
        culprits: String,
        /// What else could help.
        hint: &'static str,
    },
}
