//! What can be wrong with a checkpoint.

use std::io;
use std::path::PathBuf;

use pytorch_reader::PytorchError;

use super::Naming;

/// A checkpoint that cannot be read, does not fit, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file cannot be opened or read.
    #[error("cannot read the checkpoint {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file ends too early, or parts of it contradict each other.
    #[error("the checkpoint {path} is truncated or damaged: expected {expected}, found {found}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file is something else.
    #[error(
        "{path} is not a checkpoint: expected tensors in PyTorch's .pth or in .safetensors format, \
         found {found}"
    )]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The file holds tensors, but not those of a segmentor of the four methods.
    #[error("{path} holds no segmentor: expected {expected}, found {found}")]
    NotASegmentor {
        /// The file.
        path: PathBuf,
        /// What a segmentor has.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file holds a segmentor of another method or depth, or one whose parts are not all those
    /// of its method.
    #[error(
        "the checkpoint {path} is {}; \
         first tensors missing: {}; first tensors without a place: {}",
        difference(expected, found),
        list(missing),
        list(unexpected)
    )]
    OtherArchitecture {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What the file holds, as far as that can be told.
        found: String,
        /// The first tensors that the network needs and the file lacks.
        missing: Vec<String>,
        /// The first tensors of the file that the network has no place for.
        unexpected: Vec<String>,
    },
    /// A tensor has another shape than the network's.
    #[error("{name} in {path} has another shape: expected {expected:?}, found {found:?}")]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The network's shape.
        expected: Vec<usize>,
        /// The file's shape.
        found: Vec<usize>,
    },
    /// A tensor holds no floating-point numbers.
    #[error("{name} in {path} has another type: expected f32, f16, bf16 or f64, found {found}")]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The file's type.
        found: String,
    },
    /// The file's own configuration describes a network that this crate does not have, although all
    /// tensors' shapes would fit.
    #[error(
        "the network in {path} is not supported: expected {key} = {expected}, \
         found {found} in the configuration that it carries"
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting, as MMSegmentation names it.
        key: String,
        /// What is supported.
        expected: String,
        /// The file's value.
        found: String,
    },
    /// Another program has no network like the one that is to be written under its names.
    #[error("{naming} names cannot hold this network: expected {key} = {expected}, found {found}")]
    CannotName {
        /// Whose names.
        naming: Naming,
        /// The setting.
        key: String,
        /// What it has to be.
        expected: String,
        /// The network's.
        found: String,
    },
    /// The file cannot be written.
    #[error("cannot write the checkpoint {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CheckpointError {
    /// Sorts what PyTorch's reader reports by who is at fault. `old_magic`: whether the file begins
    /// as checkpoints from before PyTorch 1.6 do, so that only damage can make it unreadable.
    pub(crate) fn from_pytorch(path: PathBuf, error: PytorchError, old_magic: bool) -> Self {
        match error {
            PytorchError::Io(source)
                if !matches!(
                    source.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
                ) =>
            {
                Self::Read { path, source }
            }
            PytorchError::InvalidFormat(found) if !old_magic => {
                Self::NotACheckpoint { path, found }
            }
            error => Self::Damaged {
                path,
                expected: "a PyTorch checkpoint".to_owned(),
                found: error.to_string(),
            },
        }
    }
}

fn difference(expected: &str, found: &str) -> String {
    if expected == found {
        format!("of {found}, but with other tensors than that has")
    } else {
        format!("of another architecture: expected {expected}, found {found}")
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
