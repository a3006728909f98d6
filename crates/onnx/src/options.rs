//! What an export can be told.

/// What an ONNX file takes, gives and holds. The default takes batches and images of any size, normalised, and
/// gives f32 logits at the image's size from f32 weights.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct OnnxOptions {
    /// The number of images of a batch; any where it is `None`.
    pub batch: Option<usize>,
    /// Height and width of the images, in pixels; any where it is `None`.
    pub size: Option<[usize; 2]>,
    /// What the file takes.
    pub input: OnnxInput,
    /// What the file gives.
    pub output: OnnxOutput,
    /// How weights are stored.
    pub weights: WeightFormat,
    /// Keys and values for the file's `metadata_props`.
    pub metadata: Vec<(String, String)>,
}

impl OnnxOptions {
    /// The same for batches of this many images.
    pub fn with_batch(self, batch: usize) -> Self {
        Self {
            batch: Some(batch),
            ..self
        }
    }

    /// The same for images of this height and width, in pixels.
    pub fn with_size(self, size: [usize; 2]) -> Self {
        Self {
            size: Some(size),
            ..self
        }
    }

    /// The same with this input.
    pub fn with_input(self, input: OnnxInput) -> Self {
        Self { input, ..self }
    }

    /// The same with this output.
    pub fn with_output(self, output: OnnxOutput) -> Self {
        Self { output, ..self }
    }

    /// The same with weights stored so.
    pub fn with_weights(self, weights: WeightFormat) -> Self {
        Self { weights, ..self }
    }

    /// The same with one more key in the file's `metadata_props`.
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }
}

/// The input `input`, `[n, channels, h, w]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum OnnxInput {
    /// f32, normalised as the network was trained.
    #[default]
    Normalised,
    /// Bytes, from which the network takes `mean` and which it divides by `std`, one of each for every channel.
    Bytes {
        /// Of each channel, in 0 to 255.
        mean: Vec<f32>,
        /// Of each channel; none is 0.
        std: Vec<f32>,
    },
}

/// What the file gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnnxOutput {
    /// `logits`: f32 `[n, classes, h, w]`, at the image's size; `[n, 1, h, w]` of a network with one output for two
    /// classes.
    #[default]
    Logits,
    /// `classes`: u8 `[n, h, w]`, the most likely class of each pixel, the first of equals; with one output, whether it
    /// is above the network's threshold.
    Classes,
}

/// How weights are stored. A runtime computes in f32 in any case, unless it is told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As they are.
    #[default]
    F32,
    /// Rounded to f16, in half the bytes; the file casts them to f32.
    F16,
    /// Rounded to bf16 and stored in f32, which every runtime reads.
    Bf16,
}
