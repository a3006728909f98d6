//! Writing `.safetensors` under MMSegmentation's names.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{FloatDType, Tensor};
use halfseg_files::write_atomically;
use serde_json::{Value, json};

use super::names::mmseg_name;
use super::{CONFIG_KEY, CheckpointError};
use crate::Segmentor;

pub(crate) fn save(
    model: &Segmentor,
    path: &Path,
    mut metadata: BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let config = serde_json::to_string(model.config()).expect("a configuration is valid JSON");
    metadata.insert(CONFIG_KEY.to_owned(), config);
    // What PyTorch-based readers look for.
    metadata.insert("format".to_owned(), "pt".to_owned());
    let mut visitor = Collector::default();
    model.visit(&mut visitor);
    let tensors = visitor.tensors;
    write_atomically(path, |out| write_safetensors(out, &tensors, &metadata)).map_err(|source| {
        CheckpointError::Write {
            path: path.to_owned(),
            source,
        }
    })
}

/// A tensor to write: its shape, and its values in one row.
type Named = BTreeMap<String, (Vec<usize>, Tensor<1>)>;

#[derive(Default)]
struct Collector {
    path: Vec<String>,
    tensors: Named,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val().inner().cast(FloatDType::F32);
        let shape = value.dims();
        let row = value.reshape([shape.iter().product::<usize>()]);
        self.tensors
            .insert(mmseg_name(&self.path), (shape.to_vec(), row));
    }
}

/// Header, then first the counters of batches, which MMSegmentation's normalisations also have and
/// nothing reads (8 bytes each, so they are aligned), then the tensors by name.
fn write_safetensors(
    out: &mut impl Write,
    tensors: &Named,
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let mut header = BTreeMap::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut offset = 0;
    let mut entry = |dtype: &str, shape: &[usize], bytes: usize| -> Value {
        let offsets = [offset, offset + bytes];
        offset += bytes;
        json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets })
    };
    let counters = || {
        tensors
            .keys()
            .filter_map(|name| name.strip_suffix(".running_mean"))
    };
    for norm in counters() {
        header.insert(format!("{norm}.num_batches_tracked"), entry("I64", &[], 8));
    }
    for (name, (shape, row)) in tensors {
        header.insert(name.clone(), entry("F32", shape, 4 * row.dims()[0]));
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for _ in counters() {
        out.write_all(&0i64.to_le_bytes())?;
    }
    for (_, row) in tensors.values() {
        let values = row
            .to_data()
            .try_into_vec::<f32>()
            .map_err(io::Error::other)?;
        for value in values {
            out.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(())
}
