//! Writing a network under MMSegmentation's names, or under another program's.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use super::file::inputs_rotated;
use super::naming::JOINED;
use super::pytorch::{self, Meta};
use super::tensors::TensorFile;
use super::{CONFIG_KEY, CheckpointError, MmsegExport, Naming};
use crate::Segmentor;

/// The tensors of a network under a program's names.
fn named(
    model: &Segmentor,
    mut metadata: BTreeMap<String, String>,
    naming: Naming,
) -> Result<TensorFile, CheckpointError> {
    let config = model.config();
    naming
        .check(config)
        .map_err(|error| CheckpointError::CannotName {
            naming,
            key: error.key.to_owned(),
            expected: error.expected,
            found: error.found,
        })?;
    if naming.is_backbone() {
        // What is said of the whole is not true of a part.
        metadata.retain(|key, _| !key.starts_with("halfseg."));
    } else {
        let config = serde_json::to_string(config).expect("a configuration is valid JSON");
        metadata.insert(CONFIG_KEY.to_owned(), config);
    }
    // What PyTorch-based readers look for.
    metadata.insert("format".to_owned(), "pt".to_owned());
    let mut joined = None;
    let mut names = model.names();
    if naming == Naming::Torchvision {
        let found = names.iter().find(|(_, name)| *name == JOINED);
        joined = found.map(|(id, _)| (*id, (config.dilations.len()) * config.head_channels));
    }
    names.retain(|_, name| match naming.name(name, config) {
        Some(there) => {
            *name = there;
            true
        }
        None => false,
    });
    let mut file = TensorFile::new(metadata);
    // MMSegmentation's normalisations also have counters of batches, which nothing reads.
    for norm in names
        .values()
        .filter_map(|name| name.strip_suffix(".running_mean"))
    {
        file.push_counter(format!("{norm}.num_batches_tracked"));
    }
    let mut visitor = Collector {
        names,
        joined,
        file,
    };
    model.visit(&mut visitor);
    Ok(visitor.file)
}

/// Writes a network as `.safetensors`.
pub(crate) fn save(
    model: &Segmentor,
    path: &Path,
    metadata: BTreeMap<String, String>,
    naming: Naming,
) -> Result<(), CheckpointError> {
    let file = named(model, metadata, naming)?;
    file.write(path).map_err(|source| CheckpointError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Writes a network as `.pth`, under MMSegmentation's names with what [`MmsegExport::classes`] and the configuration say.
pub(crate) fn save_pytorch(
    model: &Segmentor,
    path: &Path,
    naming: Naming,
    export: &MmsegExport,
) -> Result<(), CheckpointError> {
    let config = match naming {
        Naming::Mmseg => Some(model.config().to_mmseg(export)?),
        _ => None,
    };
    let meta = config.as_ref().map(|config| Meta {
        config,
        classes: export.classes.as_ref(),
    });
    let file = named(model, BTreeMap::new(), naming)?;
    pytorch::write(path, file, meta.as_ref()).map_err(|source| CheckpointError::Write {
        path: path.to_owned(),
        source,
    })
}

struct Collector {
    names: BTreeMap<ParamId, String>,
    /// The weight whose last inputs become the first, and their number.
    joined: Option<(ParamId, usize)>,
    file: TensorFile,
}

impl ModuleVisitor for Collector {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(name) = self.names.get(&param.id) else {
            return;
        };
        match self.joined {
            Some((id, count)) if id == param.id => {
                let data = inputs_rotated(param.val().inner().into_data(), count);
                self.file.push_data(name, data);
            }
            _ => self.file.push(name, param.val()),
        }
    }
}
