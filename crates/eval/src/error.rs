use std::path::{Path, PathBuf};

/// What can go wrong in scoring and drawing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file cannot be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A plot cannot be drawn.
    #[error("{path}: cannot be drawn: {found}", path = path.display())]
    Plot {
        /// The file.
        path: PathBuf,
        /// The plotter's words.
        found: String,
    },
    /// A map holds a value that is no class.
    #[error(
        "{map} map: expected values below {expected} or the ignored {ignore}, found {pixels} pixels of {value}"
    )]
    OutOfRange {
        /// `label` or `prediction`.
        map: &'static str,
        /// Number of classes.
        expected: usize,
        /// The value that is left out.
        ignore: u8,
        /// The first value that is too large.
        value: u8,
        /// How many pixels have it.
        pixels: u64,
    },
    /// Two maps differ in their number of pixels.
    #[error("expected a prediction of {expected} pixels as the label map has, found {found}")]
    Size {
        /// Pixels of the label map.
        expected: usize,
        /// Pixels of the prediction.
        found: usize,
    },
}

impl EvalError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
