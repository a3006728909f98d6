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
    /// A file could not be appended to; what was in it before is still there.
    #[error("cannot append to {} (what was there before is still there)", path.display())]
    Append {
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
    /// A folder that is to be read as that of a run holds none.
    #[error(
        "{}: expected the folder of a run (with `log.jsonl`, `config.toml` or `run.json` in it), found {}",
        path.display(),
        if path.is_dir() { "a folder without them" } else if path.exists() { "a file" } else { "nothing" }
    )]
    NoRun {
        /// The path.
        path: PathBuf,
    },
    /// The output folder already holds a run.
    #[error(
        "{} already holds a run (found `{found}`); resume it with --resume, choose another folder, or \
         replace it with --overwrite",
        path.display()
    )]
    FolderInUse {
        /// The output folder.
        path: PathBuf,
        /// The file that gave it away.
        found: String,
    },
    /// Another process has the output folder open.
    #[error(
        "{} is in use: process {holder} trains there; wait for its end, or choose another folder",
        path.display()
    )]
    FolderLocked {
        /// The output folder.
        path: PathBuf,
        /// The id of the process.
        holder: String,
    },
    /// A training step would need more memory than there is.
    #[error(
        "training at crop {crop} with batch {batch} needs about {needed} of memory, but {available} are \
         available: {fits}"
    )]
    Memory {
        /// Crop as `HxW`.
        crop: String,
        /// Images per step.
        batch: usize,
        /// Predicted need.
        needed: halfseg_devices::Bytes,
        /// What the device offers.
        available: halfseg_devices::Bytes,
        /// What may fit.
        fits: String,
    },
    /// A device that this build or this machine does not have.
    #[error(transparent)]
    Device(#[from] halfseg_devices::DeviceError),
    /// Another process of the run failed, or differs from the first.
    #[error(transparent)]
    Rank(halfseg_devices::RankFailure),
    /// The loss or the gradients left the range of numbers for good.
    #[error(
        "training diverged at iteration {iteration} (loss {loss}): {found}; the last checkpoint is \
         unchanged; try a lower learning rate, or another precision or loss scale"
    )]
    Diverged {
        /// Iteration at which it was given up.
        iteration: u64,
        /// Its loss.
        loss: f64,
        /// What was not finite.
        found: String,
    },
    /// The split has images but no label maps.
    #[error(
        "{}: the split `{split}` has no label maps; expected them in {}", path.display(),
        path.join("gtFine").join(split).display()
    )]
    Unlabelled {
        /// The data set's folder.
        path: PathBuf,
        /// The split.
        split: String,
    },
    /// A data set's classes are others than a network's.
    #[error("{data}: expected the classes of {of}, {expected}; found {found}")]
    Classes {
        /// The data set.
        data: String,
        /// What has the other classes.
        of: String,
        /// Those of the network.
        expected: Box<halfseg_data::Classes>,
        /// Those of the data set.
        found: Box<halfseg_data::Classes>,
    },
    /// A policy file cannot be used.
    #[error(transparent)]
    Policy(#[from] halfseg_amp::AmpError),
    /// Reading data failed.
    #[error(transparent)]
    Data(#[from] halfseg_data::DataError),
    /// A checkpoint's weights could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] halfseg_segmentor::CheckpointError),
    /// Scoring or drawing failed.
    #[error(transparent)]
    Eval(#[from] halfseg_eval::EvalError),
    /// Evaluation or prediction failed.
    #[error(transparent)]
    Predict(Box<halfseg_predict::PredictError>),
}

impl From<halfseg_predict::PredictError> for Error {
    fn from(error: halfseg_predict::PredictError) -> Self {
        Self::Predict(Box::new(error))
    }
}

impl Error {
    /// A file of a run that holds something else.
    pub(crate) fn state(path: &std::path::Path, expected: &str, found: impl ToString) -> Self {
        Self::State {
            path: path.to_owned(),
            expected: expected.to_owned(),
            found: found.to_string(),
        }
    }

    pub(crate) fn append(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Append {
            path: path.to_owned(),
            source,
        }
    }
}
