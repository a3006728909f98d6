//! What can go wrong.

use std::fmt;

/// Why there is no ONNX file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// An option that does not fit the network.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Which one.
        option: &'static str,
        /// What it could be.
        expected: String,
        /// What it was.
        found: String,
    },
    /// A weight that is not finite, or beyond what its format holds.
    #[error("{parameter}: {count} of its values {what}: {advice}")]
    Weight {
        /// Its module path.
        parameter: String,
        /// How many values.
        count: usize,
        /// What they are.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// More than the 2 GB that a protobuf message may have.
    #[error(
        "the file would have {bytes} bytes, and an ONNX file has less than 2147483648: store weights in f16"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A runtime does not take the file, or computes something else.
    #[error("tract does not run the file that was made: {message}")]
    Runtime {
        /// What it says.
        message: String,
    },
}

impl OnnxError {
    pub(crate) fn option(
        option: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::Option {
            option,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
