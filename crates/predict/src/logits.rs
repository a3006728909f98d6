//! Class logits as a file.

use std::path::Path;

use burn::tensor::Tensor;
use halfseg_segmentor::TensorFile;

use crate::PredictError;

/// Writes the class logits of one picture, f32 `[1, classes, height, width]`, as the tensor
/// `logits` of a `.safetensors` file.
///
/// # Errors
/// When the file cannot be written.
pub fn write_logits(path: &Path, logits: Tensor<4>) -> Result<(), PredictError> {
    let mut file = TensorFile::default();
    file.push("logits", logits);
    file.write(path).map_err(|source| PredictError::Write {
        path: path.to_owned(),
        source,
    })
}
