//! What can go wrong outside of the caller's code.

use std::path::PathBuf;

use halfseg_devices::Bytes;

/// Errors of pictures, checkpoints and the files that are written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictError {
    /// What a checkpoint says about how it is to be run cannot be used.
    #[error("{}: `{key}` in its metadata: {message}", path.display())]
    Settings {
        /// The checkpoint.
        path: PathBuf,
        /// The key of the metadata.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A file or a folder could not be written; what was there before is still there.
    #[error("cannot write {} (what was there before is unchanged)", path.display())]
    Write {
        /// The file or the folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A picture that is none.
    #[error(
        "expected a picture of at least one pixel with a value for each channel, found {width}x{height} \
         pixels with {values} values"
    )]
    Picture {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Number of values.
        values: usize,
    },
    /// A picture has other channels than the network takes.
    #[error("expected a picture of {expected} channels, as the network takes them, found {found}")]
    Channels {
        /// Channels that the network takes.
        expected: usize,
        /// Channels of the picture.
        found: usize,
    },
    /// A picture would need more memory than there is.
    #[error(
        "{picture}, run {how}, needs at least {needed}, but {available} are available; {advice}"
    )]
    Memory {
        /// Its name or its size.
        picture: String,
        /// How it was to be run.
        how: String,
        /// What it needs at least.
        needed: Bytes,
        /// What the process may still take.
        available: Bytes,
        /// What would fit.
        advice: String,
    },
    /// A picture or a label map could not be read, written or used.
    #[error(transparent)]
    Data(#[from] halfseg_data::DataError),
    /// A checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] halfseg_segmentor::CheckpointError),
    /// Scoring failed.
    #[error(transparent)]
    Eval(#[from] halfseg_eval::EvalError),
}

impl PredictError {
    /// The same with the picture's `name`, where the error is about a picture in memory.
    pub fn of(mut self, name: &str) -> Self {
        if let Self::Memory { picture, .. } = &mut self {
            picture.insert_str(0, &format!("{name}: "));
        }
        self
    }
}
