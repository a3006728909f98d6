//! Writing tensors as `.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use burn::tensor::{FloatDType, Tensor, TensorData};
use halfseg_files::write_atomically;
use serde_json::{Value, json};

/// A `.safetensors` file to be written: f32 tensors by name, with metadata.
///
/// Tensors stay on their device until they are written, one after the other.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use burn::tensor::{Device, Tensor};
/// use halfseg_segmentor::TensorFile;
///
/// let path = std::env::temp_dir().join(format!("halfseg-tensors-{}", std::process::id()));
/// let mut file = TensorFile::new(BTreeMap::from([("unit".to_owned(), "px".to_owned())]));
/// file.push("offsets", Tensor::<2>::ones([3, 2], &Device::flex()));
/// file.write(&path)?;
/// assert_eq!(halfseg_segmentor::read_metadata(&path)?["unit"], "px");
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct TensorFile {
    metadata: BTreeMap<String, String>,
    counters: BTreeSet<String>,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor that is to be stored: its shape, and its values in one row.
#[derive(Debug)]
struct Stored {
    shape: Vec<usize>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Device(Tensor<1>),
    Host(TensorData),
}

impl TensorFile {
    /// A file without tensors.
    pub fn new(metadata: BTreeMap<String, String>) -> Self {
        Self {
            metadata,
            ..Self::default()
        }
    }

    /// Adds a float tensor, which is stored as f32, in the place of one of the same name.
    pub fn push<const D: usize>(&mut self, name: impl Into<String>, tensor: Tensor<D>) {
        let tensor = tensor.inner();
        let shape = tensor.dims().to_vec();
        let row = tensor.reshape([shape.iter().product::<usize>()]);
        let values = Values::Device(row.cast(FloatDType::F32));
        self.tensors.insert(name.into(), Stored { shape, values });
    }

    /// Adds float values that are on the host, as [`push`](Self::push) does.
    pub fn push_data(&mut self, name: impl Into<String>, data: TensorData) {
        let shape = data.shape().to_vec();
        let values = Values::Host(data);
        self.tensors.insert(name.into(), Stored { shape, values });
    }

    /// Adds a counter (i64, no dimensions) that is 0.
    pub(crate) fn push_counter(&mut self, name: String) {
        self.counters.insert(name);
    }

    /// Writes the file under a temporary name beside `path` and renames it, so that a full disk leaves
    /// what was there before.
    ///
    /// # Errors
    /// A file that cannot be written, and a device that does not give a tensor's values.
    pub fn write(self, path: &Path) -> io::Result<()> {
        let header = self.header()?;
        write_atomically(path, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            self.for_each_value(|bytes| out.write_all(bytes))
        })
    }

    /// Calls `take` with the values of each tensor, one tensor after the other in the order of
    /// [`shapes`](Self::shapes), as bytes from the least to the most significant one.
    pub(crate) fn for_each_value(
        self,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for _ in &self.counters {
            take(&0i64.to_le_bytes())?;
        }
        let mut bytes = Vec::new();
        for stored in self.tensors.into_values() {
            let data = match stored.values {
                Values::Device(row) => row.into_data(),
                Values::Host(data) => data,
            };
            let values = data.convert::<f32>();
            let values = values.as_slice::<f32>().map_err(io::Error::other)?;
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            take(&bytes)?;
        }
        Ok(())
    }

    /// Name, PyTorch's type of the storage, and shape of each tensor.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&str, &'static str, &[usize])> {
        let counters = self.counters.iter();
        let counters = counters.map(|name| (name.as_str(), "LongStorage", &[][..]));
        let tensors = self.tensors.iter();
        counters.chain(
            tensors.map(|(name, stored)| (name.as_str(), "FloatStorage", stored.shape.as_slice())),
        )
    }

    /// Where each tensor is: first the counters, so that values of 8 bytes are aligned, then the tensors
    /// by name.
    fn header(&self) -> io::Result<Vec<u8>> {
        let mut header = BTreeMap::new();
        header.insert("__metadata__".to_owned(), json!(self.metadata));
        let mut offset = 0;
        let mut entry = |dtype: &str, shape: &[usize], bytes: usize| -> Value {
            let offsets = [offset, offset + bytes];
            offset += bytes;
            json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets })
        };
        for name in &self.counters {
            header.insert(name.clone(), entry("I64", &[], 8));
        }
        for (name, Stored { shape, .. }) in &self.tensors {
            let bytes = 4 * shape.iter().product::<usize>();
            header.insert(name.clone(), entry("F32", shape, bytes));
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(header)
    }
}
