//! Writing f32 tensors as safetensors.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::Error;
use crate::atomic::write_atomically;

/// Writes f32 tensors and `metadata` to a temporary file that takes the place of `path`.
///
/// The crate's own writer makes files that only their owner may read; this one does not.
///
/// # Panics
///
/// If a tensor is not f32 or a name comes twice.
pub(crate) fn write_tensors(
    path: &Path,
    metadata: HashMap<String, String>,
    tensors: &[(&str, &TensorData)],
) -> Result<(), Error> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, data)| {
        assert_eq!(data.dtype(), DType::F32, "{name} must be f32");
        let start = end;
        end += data.as_bytes().len();
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: data.shape().to_vec(),
            data_offsets: (start, end),
        };
        ((*name).to_owned(), info)
    });
    let header = Metadata::new(Some(metadata), infos.collect()).expect("names come once");
    let mut header = serde_json::to_vec(&header).expect("a header is JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors
            .iter()
            .try_for_each(|(_, data)| out.write_all(data.as_bytes()))
    })
}

/// Writes the class logits of one picture, f32 `[1, classes, height, width]`, as the tensor
/// `logits`.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_logits(path: &Path, logits: Tensor<4>) -> Result<(), Error> {
    let data = logits.into_data().convert::<f32>();
    write_tensors(path, HashMap::new(), &[("logits", &data)])
}
