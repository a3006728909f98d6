//! Writing a network under MMSegmentation's names.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use super::tensors::TensorFile;
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
    let names = model.names();
    let mut file = TensorFile::new(metadata);
    // MMSegmentation's normalisations also have counters of batches, which nothing reads.
    for norm in names
        .values()
        .filter_map(|name| name.strip_suffix(".running_mean"))
    {
        file.push_counter(format!("{norm}.num_batches_tracked"));
    }
    let mut visitor = Collector { names, file };
    model.visit(&mut visitor);
    visitor
        .file
        .write(path)
        .map_err(|source| CheckpointError::Write {
            path: path.to_owned(),
            source,
        })
}

struct Collector {
    names: BTreeMap<ParamId, String>,
    file: TensorFile,
}

impl ModuleVisitor for Collector {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.file.push(&self.names[&param.id], param.val());
    }
}
