use std::path::PathBuf;

/// What can be wrong with a data set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder that the layout asks for is absent.
    #[error("{path}: folder not found; expected the Cityscapes layout `{expected}`, found {found}", path = path.display())]
    MissingFolder {
        /// The absent folder.
        path: PathBuf,
        /// The layout.
        expected: &'static str,
        /// What stands in the nearest folder that exists.
        found: String,
    },
    /// A split has no image.
    #[error("{path}: the split holds no image; expected files named {expected}", path = path.display())]
    EmptySplit {
        /// The split's folder.
        path: PathBuf,
        /// Names that would have been found.
        expected: &'static str,
    },
    /// Two pictures claim the same name, such as a PNG and a JPEG.
    #[error("{first}: expected one picture of this name, found {second} as well", first = first.display(), second = second.display())]
    DuplicateImage {
        /// The one picture.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The name of a picture, a label map or a city is not Unicode.
    #[error("{path}: expected a name in Unicode (UTF-8), found another; rename it", path = path.display())]
    Name {
        /// The file or folder.
        path: PathBuf,
    },
    /// The maps of trainIds of a split are masks.
    #[error(
        "{path}: expected trainIds of several classes in a split, found 0 (road) and 255 (ignored) only, in it and {others} more; where these are masks of one class, write 1 in place of 255, for 255 is left out", path = path.display()
    )]
    Mask {
        /// The first of the maps.
        path: PathBuf,
        /// Further maps that were read.
        others: usize,
    },
    /// An image has no label map.
    #[error("{image}: label not found; expected {expected}", image = image.display(), expected = expected.display())]
    MissingLabel {
        /// The image.
        image: PathBuf,
        /// Where its label map should be.
        expected: PathBuf,
    },
    /// A label map has no image.
    #[error("{label}: image not found; expected {expected}", label = label.display(), expected = expected.display())]
    MissingImage {
        /// The label map.
        label: PathBuf,
        /// Where its image should be.
        expected: PathBuf,
    },
    /// Image and label map differ in size.
    #[error("{label}: expected {expected:?} (width, height) as {image} has, found {found:?}", label = label.display(), image = image.display())]
    SizeMismatch {
        /// The image.
        image: PathBuf,
        /// The label map.
        label: PathBuf,
        /// The image's width and height.
        expected: (usize, usize),
        /// The label map's width and height.
        found: (usize, usize),
    },
    /// A file is no image that can be decoded.
    #[error("{path}: cannot be decoded as {expected}: {found}", path = path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The format expected.
        expected: &'static str,
        /// The decoder's words.
        found: String,
    },
    /// A picture has other channels than it should.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    Channels {
        /// The file, or the sample.
        path: PathBuf,
        /// Number and bits of channels that were expected, and what says so.
        expected: String,
        /// Number and bits of its channels.
        found: String,
    },
    /// A picture or map is larger than what is read.
    #[error("{path}: expected at most {max_pixels} pixels, found {width}x{height}", path = path.display())]
    TooManyPixels {
        /// The file.
        path: PathBuf,
        /// Its width.
        width: usize,
        /// Its height.
        height: usize,
        /// The reader's limit.
        max_pixels: u64,
    },
    /// Values in memory are no picture or map of their size.
    #[error(
        "expected {channels} values for each pixel of {width}x{height}, at least one pixel, found {found}"
    )]
    Values {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Values of a pixel.
        channels: usize,
        /// How many values there are.
        found: usize,
    },
    /// The pixels of a file do not fit into memory.
    #[error("{path}: its pixels take {bytes} bytes, which the system does not give; make the picture smaller or cut it into parts", path = path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// A map of ids has another pixel format than its kind.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    LabelFormat {
        /// The label map.
        path: PathBuf,
        /// The format expected.
        expected: &'static str,
        /// The format found.
        found: String,
    },
    /// A label map holds a value that the table of labels lacks.
    #[error("{path}: expected {expected}, found {pixels} pixels of value {value}", path = path.display())]
    UnknownLabel {
        /// The label map.
        path: PathBuf,
        /// The values allowed.
        expected: &'static str,
        /// The first value that is not allowed.
        value: u8,
        /// How many pixels have it.
        pixels: usize,
    },
    /// A label map has classes that the network lacks.
    #[error(
        "{name}: expected trainIds below {expected} (the network's classes) or 255, found {pixels} \
         pixels of {value}"
    )]
    LabelOutOfRange {
        /// The sample, or the iteration of the batch.
        name: String,
        /// Number of classes.
        expected: usize,
        /// The largest value.
        value: u8,
        /// How many pixels are too large.
        pixels: usize,
    },
    /// A data set of one's own has a fault.
    #[error("{0}")]
    Finding(Box<crate::Finding>),
    /// A value in the definition of a data set makes no sense.
    #[error("`{key}` in {origin}: expected {expected}, found {found}")]
    Definition {
        /// Where it was found.
        origin: String,
        /// The value's key.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The definition of a data set is no TOML, or has keys that mean nothing.
    #[error("{origin}: {message}")]
    DefinitionText {
        /// Where it was found.
        origin: String,
        /// What is wrong, with the line.
        message: String,
    },
    /// Another program's description of a data set says what cannot be converted.
    #[error("`{key}` in {path}: expected {expected}, found {found}", path = path.display())]
    Description {
        /// The description.
        path: PathBuf,
        /// What of it.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A folder holds nothing that a data set could be made of.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    NothingFound {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A value of the training pipeline makes no sense.
    #[error("{name}: expected {expected}, found {found}")]
    Pipeline {
        /// The value.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A sample without a label map was given to the training pipeline.
    #[error("{name}: training needs a label map, found none; is this a split for prediction?")]
    Unlabelled {
        /// Name of the sample.
        name: String,
    },
    /// A worker thread ended without a result.
    #[error("a loading worker stopped: {0}")]
    Worker(String),
}

impl DataError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}
