//! Tensors in a file of either format, read one at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use burn::tensor::{DType, TensorData};
use halfseg_files::parse_json;
use pytorch_reader::PytorchReader;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::CheckpointError;
use super::classes::ClassTable;
use super::mmseg_config::Configuration;
use super::naming::{JOINED, Renaming};
use super::prefix::Prefix;

/// What checkpoints from before PyTorch 1.6 begin with: a pickled magic number.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9";

/// The longest header of a safetensors file that is read, in bytes: a network of a thousand tensors has
/// one of a hundred thousand.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// A checkpoint whose tensors' names and shapes are known and whose values are still in the file.
pub(crate) struct CheckpointFile {
    pub(crate) path: PathBuf,
    /// The file's length.
    pub(crate) bytes: u64,
    /// By MMSegmentation's names, without wrappers and prefixes.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// What MMSegmentation says of the network.
    pub(crate) configuration: Configuration,
    /// What it calls its classes.
    pub(super) classes: Option<ClassTable>,
    /// What was before the names.
    pub(super) prefix: Prefix,
    /// How the rest of the names was changed.
    pub(super) renaming: Renaming,
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
        let about = fs::metadata(path).map_err(read)?;
        if !about.is_file() {
            return Err(CheckpointError::NotACheckpoint {
                path: path.to_owned(),
                found: match about.is_dir() {
                    true => "a folder".to_owned(),
                    false => "a pipe or a device, which cannot be read twice".to_owned(),
                },
            });
        }
        let mut file = File::open(path).map_err(read)?;
        (&mut file).take(9).read_to_end(&mut start).map_err(read)?;
        let mut checkpoint = match start.get(8) {
            Some(b'{') => Self::open_safetensors(path, file, about.len())?,
            _ => Self::open_pytorch(path, about.len(), start == OLD_MAGIC)?,
        };
        checkpoint.strip_prefix()?;
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
        if header_bytes > file_bytes.saturating_sub(8) {
            return Err(damaged(
                format!("a header of {header_bytes} bytes"),
                format!("a file of {file_bytes} bytes"),
            ));
        }
        if header_bytes > MAX_HEADER_BYTES {
            return Err(damaged(
                format!("a header of at most {MAX_HEADER_BYTES} bytes"),
                format!("one of {header_bytes} bytes"),
            ));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(read)?;
        let header: Metadata = parse_json(&header)
            .map_err(|error| damaged("a safetensors header".to_owned(), error.to_string()))?;

        // One file for all of them: another may take its name while they are read, as in a run that goes
        // on.
        let file = Rc::new(file);
        let data_start = 8 + header_bytes;
        let mut tensors = BTreeMap::new();
        let mut end = data_start;
        for (name, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            end = end.max(data_start.saturating_add(to as u64));
            let (at, bytes) = (data_start.saturating_add(from as u64), to - from);
            let file = Rc::clone(&file);
            let read = move || {
                let mut file = &*file;
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
            bytes: file_bytes,
            tensors,
            metadata,
            configuration: Configuration::Absent,
            classes: None,
            prefix: Prefix::default(),
            renaming: Renaming::default(),
        })
    }

    fn open_pytorch(
        path: &Path,
        file_bytes: u64,
        old_magic: bool,
    ) -> Result<Self, CheckpointError> {
        use pytorch_reader::DType as Torch;
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
            bytes: file_bytes,
            tensors: tensors.collect(),
            metadata: BTreeMap::new(),
            configuration: Configuration::of_checkpoint(path),
            classes: ClassTable::of_checkpoint(path),
            prefix: Prefix::default(),
            renaming: Renaming::default(),
        })
    }

    /// Gives tensors the network's names and drops what is none of the network's, such as an
    /// optimizer's state beside it.
    fn strip_prefix(&mut self) -> Result<(), CheckpointError> {
        self.prefix =
            Prefix::of(self.tensors.keys()).map_err(|prefixes| CheckpointError::NotASegmentor {
                path: self.path.clone(),
                expected: "the tensors of one network, or of one below `state_dict`".to_owned(),
                found: format!("networks below {}", quoted(&prefixes)),
            })?;
        let stripped: Vec<(String, String, StoredTensor)> = std::mem::take(&mut self.tensors)
            .into_iter()
            .filter_map(|(name, tensor)| Some((self.prefix.strip(&name)?, name, tensor)))
            .collect();
        self.renaming = Renaming::of(stripped.iter().map(|(stripped, ..)| stripped.as_str()));
        for (stripped, name, tensor) in stripped {
            let given = self.renaming.name(&stripped);
            if self.tensors.insert(given.clone(), tensor).is_some() {
                return Err(CheckpointError::Damaged {
                    path: self.path.clone(),
                    expected: format!("one tensor {given}"),
                    found: format!("several, one of which is {name}"),
                });
            }
        }
        Ok(())
    }

    /// Forgets what is not the backbone's, and gives its names.
    pub(crate) fn without_heads(&mut self) -> Vec<String> {
        let is_backbone = |name: &String| name.starts_with("backbone.");
        let heads = self.tensors.keys().filter(|name| !is_backbone(name));
        let heads = heads.cloned().collect();
        self.tensors.retain(|name, _| is_backbone(name));
        heads
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
        let data = TensorData::from_bytes_vec(bytes, tensor.shape.clone(), dtype).convert::<f32>();
        let pooled = self.tensors.get("decode_head.image_pool.1.conv.weight");
        Ok(match (name, self.renaming.torchvision, pooled) {
            (JOINED, Some(_), Some(pooled)) => {
                inputs_rotated(data, pooled.shape.first().copied().unwrap_or(0))
            }
            _ => data,
        })
    }
}

/// A convolution's weight `[c_out, c_in, h, w]` whose last `count` inputs become the first.
pub(super) fn inputs_rotated(data: TensorData, count: usize) -> TensorData {
    let shape = data.shape().to_vec();
    let [c_out, c_in, ..] = shape[..] else {
        return data;
    };
    if c_out == 0 || c_in == 0 || count > c_in {
        return data;
    }
    let taps: usize = shape[2..].iter().product();
    let mut values: Vec<f32> = data.iter::<f32>().collect();
    for row in values.chunks_exact_mut((c_in * taps).max(1)) {
        row.rotate_right(count * taps);
    }
    TensorData::new(values, shape)
}

/// Prefixes as a sentence lists them.
pub(super) fn quoted(prefixes: &[String]) -> String {
    let quoted = prefixes.iter().map(|prefix| format!("`{prefix}`"));
    quoted.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::Device;

    use super::*;
    use crate::{Depth, Method, SegmentorConfig};

    #[test]
    fn a_file_that_is_replaced_while_it_is_read_gives_its_own_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best.safetensors");
        let mut config = SegmentorConfig::new(Method::Fcn, Depth::R18);
        (config.base_channels, config.stem_channels) = (1, 2);
        (config.head_channels, config.aux_channels) = (1, 1);
        let save = || {
            let model = config.init(&Device::flex());
            model.save_safetensors(&path, BTreeMap::new()).unwrap();
        };
        let name = "decode_head.conv_seg.weight";
        save();
        let before = CheckpointFile::open(&path).unwrap();
        let expected = before.read_f32(name).unwrap();
        save();
        assert_eq!(before.read_f32(name).unwrap(), expected);
        let after = CheckpointFile::open(&path).unwrap();
        assert_ne!(after.read_f32(name).unwrap(), expected);
    }
}
