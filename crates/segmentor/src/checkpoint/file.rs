//! Tensors in a file of either format, read one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use burn_store::pytorch::PytorchReader;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::CheckpointError;

/// What checkpoints from before PyTorch 1.6 begin with: a pickled magic number.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9";

/// The longest header that the safetensors format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A checkpoint whose tensors' names and shapes are known and whose values are still in the file.
pub(crate) struct CheckpointFile {
    pub(crate) path: PathBuf,
    /// By MMSegmentation's names, without wrappers and prefixes.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A tensor in a file.
pub(crate) struct StoredTensor {
    pub(crate) shape: Vec<usize>,
    dtype: Stored,
    read: Box<dyn Fn() -> io::Result<Vec<u8>>>,
}

/// The type of stored numbers.
enum Stored {
    Float(DType),
    Other(String),
}

impl CheckpointFile {
    /// Reads names, shapes and metadata. The format is told by the file's first bytes.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut start = Vec::new();
        let read = |source| CheckpointError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        (&mut file).take(9).read_to_end(&mut start).map_err(read)?;
        let mut checkpoint = match start.get(8) {
            Some(b'{') => Self::open_safetensors(path, file, length)?,
            _ => Self::open_pytorch(path, start == OLD_MAGIC)?,
        };
        checkpoint.strip_prefixes();
        checkpoint
            .tensors
            .retain(|name, _| !name.ends_with(".num_batches_tracked"));
        if checkpoint.tensors.is_empty() {
            return Err(CheckpointError::NotACheckpoint {
                path: path.to_owned(),
                found: "no tensors".to_owned(),
            });
        }
        Ok(checkpoint)
    }

    fn open_safetensors(
        path: &Path,
        mut file: File,
        file_bytes: u64,
    ) -> Result<Self, CheckpointError> {
        let damaged = |expected: String, found: String| CheckpointError::Damaged {
            path: path.to_owned(),
            expected,
            found,
        };
        let read = |source| CheckpointError::Read {
            path: path.to_owned(),
            source,
        };
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let mut header_bytes = [0; 8];
        file.read_exact(&mut header_bytes).map_err(read)?;
        let header_bytes = u64::from_le_bytes(header_bytes);
        if header_bytes > MAX_HEADER_BYTES.min(file_bytes - 8) {
            return Err(damaged(
                format!("a header of {header_bytes} bytes"),
                format!("a file of {file_bytes} bytes"),
            ));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(read)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged("a safetensors header".to_owned(), error.to_string()))?;

        let data_start = 8 + header_bytes;
        let mut tensors = BTreeMap::new();
        let mut end = data_start;
        for (name, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            end = end.max(data_start + to as u64);
            let (at, bytes) = (data_start + from as u64, to - from);
            let path = path.to_owned();
            let read = move || {
                let mut file = File::open(&path)?;
                file.seek(SeekFrom::Start(at))?;
                let mut data = vec![0; bytes];
                file.read_exact(&mut data)?;
                Ok(data)
            };
            let dtype = match info.dtype {
                Dtype::F64 => Stored::Float(DType::F64),
                Dtype::F32 => Stored::Float(DType::F32),
                Dtype::F16 => Stored::Float(DType::F16),
                Dtype::BF16 => Stored::Float(DType::BF16),
                other => Stored::Other(format!("{other:?}")),
            };
            let tensor = StoredTensor {
                shape: info.shape.clone(),
                dtype,
                read: Box::new(read),
            };
            tensors.insert(name, tensor);
        }
        if end != file_bytes {
            return Err(damaged(
                format!("{end} bytes"),
                format!("{file_bytes} bytes"),
            ));
        }
        let metadata = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        Ok(Self {
            path: path.to_owned(),
            tensors,
            metadata,
        })
    }

    fn open_pytorch(path: &Path, old_magic: bool) -> Result<Self, CheckpointError> {
        use burn_store::pytorch_reader::DType as Torch;
        let reader = PytorchReader::new(path)
            .map_err(|error| CheckpointError::from_pytorch(path.to_owned(), error, old_magic))?;
        let tensors = reader.into_tensors().into_iter().map(|(name, tensor)| {
            let dtype = match tensor.dtype() {
                Torch::F64 => Stored::Float(DType::F64),
                Torch::F32 => Stored::Float(DType::F32),
                Torch::F16 => Stored::Float(DType::F16),
                Torch::BF16 => Stored::Float(DType::BF16),
                other => Stored::Other(format!("{other:?}")),
            };
            let shape = tensor.shape().to_vec();
            (
                name,
                StoredTensor {
                    shape,
                    dtype,
                    read: Box::new(move || tensor.read()),
                },
            )
        });
        Ok(Self {
            path: path.to_owned(),
            tensors: tensors.collect(),
            metadata: BTreeMap::new(),
        })
    }

    /// Unwraps `state_dict` (dropping what lies beside it, such as an optimizer's state), drops
    /// `module.` and puts `backbone.` before the names of a backbone alone.
    fn strip_prefixes(&mut self) {
        const WRAPPERS: [&str; 2] = ["state_dict.", "model."];
        for wrapper in WRAPPERS {
            if self.tensors.keys().any(|name| name.starts_with(wrapper)) {
                self.rename(|name| name.strip_prefix(wrapper).map(str::to_owned));
            }
        }
        while self.tensors.keys().all(|name| name.starts_with("module."))
            && !self.tensors.is_empty()
        {
            self.rename(|name| name.strip_prefix("module.").map(str::to_owned));
        }
        let is_backbone = |name: &str| {
            ["stem.", "layer1.", "layer2.", "layer3.", "layer4."]
                .iter()
                .any(|part| name.starts_with(part))
        };
        if !self
            .tensors
            .keys()
            .any(|name| name.starts_with("backbone."))
        {
            self.rename(|name| match is_backbone(name) {
                true => Some(format!("backbone.{name}")),
                false => Some(name.to_owned()),
            });
        }
    }

    fn rename(&mut self, to: impl Fn(&str) -> Option<String>) {
        self.tensors = std::mem::take(&mut self.tensors)
            .into_iter()
            .filter_map(|(name, tensor)| Some((to(&name)?, tensor)))
            .collect();
    }

    /// The values of a tensor, in f32 whatever the file has.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub(crate) fn read_f32(&self, name: &str) -> Result<TensorData, CheckpointError> {
        let path = || self.path.clone();
        let tensor = &self.tensors[name];
        let dtype = match &tensor.dtype {
            Stored::Float(dtype) => *dtype,
            Stored::Other(found) => {
                return Err(CheckpointError::WrongType {
                    path: path(),
                    name: name.to_owned(),
                    found: found.clone(),
                });
            }
        };
        let bytes = (tensor.read)().map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => CheckpointError::Damaged {
                path: path(),
                expected: format!("the values of {name}"),
                found: source.to_string(),
            },
            _ => CheckpointError::Read {
                path: path(),
                source,
            },
        })?;
        Ok(TensorData::from_bytes_vec(bytes, tensor.shape.clone(), dtype).convert::<f32>())
    }
}
