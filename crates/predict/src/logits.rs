//! Class logits as a file.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use halfseg_segmentor::{TensorFile, read_metadata};

use crate::PredictError;

/// A key of the metadata, and its value.
const SOFTWARE: [&str; 2] = ["software", "halfseg"];

/// Writes the class logits of one picture, f32 `[1, classes, height, width]`, as the tensor
/// `logits` of a `.safetensors` file.
///
/// # Errors
/// When the file cannot be written.
pub fn write_logits(path: &Path, logits: Tensor<4>) -> Result<(), PredictError> {
    let [key, value] = SOFTWARE.map(str::to_owned);
    let mut file = TensorFile::new(BTreeMap::from([(key, value)]));
    file.push("logits", logits);
    file.write(path).map_err(|source| PredictError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Whether the file at `path` was written by [`write_logits`], as its metadata say.
pub fn is_own_logits(path: &Path) -> bool {
    let [key, value] = SOFTWARE;
    read_metadata(path).is_ok_and(|found| found.get(key).is_some_and(|found| found == value))
}
