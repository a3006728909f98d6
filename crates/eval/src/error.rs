use std::path::{Path, PathBuf};

/// What can go wrong in scoring and drawing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A folder cannot be read, or a file cannot be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A map cannot be read.
    #[error(transparent)]
    Data(#[from] halfseg_data::DataError),
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
    /// A map holds an id that Cityscapes lacks, or an instance of a class without instances.
    #[error("{map} map: expected ids of Cityscapes, found {pixels} pixels of {value}")]
    UnknownId {
        /// `label`, `prediction` or `instance`.
        map: &'static str,
        /// The first such id.
        value: u16,
        /// How many pixels have it.
        pixels: u64,
    },
    /// A file or folder does not hold what is expected of it.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    Image {
        /// The file or folder.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// Scores of an image are NaN or infinite.
    #[error(
        "{name}: expected finite scores, found others at {found} of {pixels} pixels; where this \
         is f16, which holds numbers up to 65504 only, compute in bf16 or f32; else look at the weights"
    )]
    NotFinite {
        /// The image.
        name: String,
        /// Pixels of which some score is not finite.
        found: usize,
        /// All pixels.
        pixels: usize,
    },
    /// A prediction cannot be scored against its ground truth.
    #[error("{} against {}: {source}", prediction.display(), truth.display())]
    Pair {
        /// The predicted map.
        prediction: PathBuf,
        /// The true map.
        truth: PathBuf,
        /// Why.
        source: Box<EvalError>,
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
