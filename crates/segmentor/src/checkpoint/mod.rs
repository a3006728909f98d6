//! Checkpoints: reading MMSegmentation's and halfseg's own, writing files that both read.

mod architecture;
mod classes;
mod error;
mod file;
mod load;
mod mmseg_config;
mod mmseg_export;
mod names;
mod naming;
mod part;
mod pickle;
mod prefix;
mod pytorch;
mod save;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::ParamId;
use burn::tensor::Device;
use halfseg_backbone::ResNetConfig;

pub use classes::ClassTable;
pub use error::CheckpointError;
pub use load::{LoadReport, Reinitialised};
pub use mmseg_export::{MMSEG_CONFIG_HEAD, MmsegExport};
pub use naming::Naming;
pub use tensors::TensorFile;

use crate::{Segmentor, SegmentorConfig};
use file::CheckpointFile;

/// The key in a checkpoint's metadata that holds its [`SegmentorConfig`] as JSON.
pub const CONFIG_KEY: &str = "halfseg.model";

/// The architecture of the segmentor in a checkpoint: read from its metadata if halfseg wrote it,
/// otherwise off the tensors' names and shapes.
///
/// What tensors do not show (strides, dilations, grids, `align_corners`, dropout) comes from
/// MMSegmentation's configuration where the file carries it, and is that of torchvision's models where
/// the names are theirs. Otherwise it has the published models' values.
///
/// # Errors
/// If the file cannot be read, holds no segmentor of the four methods, such as a backbone alone, or
/// carries a configuration of a network that this crate does not have.
pub fn read_architecture(path: impl AsRef<Path>) -> Result<SegmentorConfig, CheckpointError> {
    CheckpointFile::open(path.as_ref())?.architecture()
}

/// Depth and widths of the backbone in a checkpoint, of a whole segmentor or of a backbone alone,
/// read off the tensors' names and shapes.
///
/// # Errors
/// If the file cannot be read or holds no ResNet.
pub fn read_backbone(path: impl AsRef<Path>) -> Result<ResNetConfig, CheckpointError> {
    CheckpointFile::open(path.as_ref())?.backbone()
}

/// The metadata of a `.safetensors` checkpoint; empty for a `.pth`.
///
/// # Errors
/// If the file cannot be read.
pub fn read_metadata(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>, CheckpointError> {
    Ok(CheckpointFile::open(path.as_ref())?.metadata)
}

/// The names and colours that a `.pth` of MMSegmentation has for its classes; `None` for other files.
///
/// # Errors
/// If the file cannot be read.
pub fn read_classes(path: impl AsRef<Path>) -> Result<Option<ClassTable>, CheckpointError> {
    Ok(CheckpointFile::open(path.as_ref())?.classes)
}

/// Loads a whole segmentor for inference or further training, from MMSegmentation's `.pth` (zip or
/// pre-1.6 format), from torchvision's FCN or DeepLabV3, or from `.safetensors` with the names of either.
///
/// What other programs put before names is recognised (`state_dict`, `model.` of Lightning, `module.`,
/// `_orig_mod.` of `torch.compile`), f16 and bf16 weights become f32
/// master weights, `num_batches_tracked` is ignored. No code in a pickle is ever executed. An
/// auxiliary head that the file lacks is the only part that may stay as drawn; the report names it.
///
/// Without `config` the architecture is [read off the file](read_architecture).
///
/// # Errors
/// If the file cannot be read, is no checkpoint, or holds another architecture than `config`. Nothing of
/// the network's size is allocated before the file is known to hold it.
pub fn load(
    path: impl AsRef<Path>,
    config: Option<&SegmentorConfig>,
    device: &Device,
) -> Result<(Segmentor, LoadReport), CheckpointError> {
    let file = CheckpointFile::open(path.as_ref())?;
    let config = match config {
        Some(config) => config.clone(),
        None => file.architecture()?,
    };
    let report = load::compare(&file, &config, load::Mode::Whole)?;
    load::fill(config.init(device), &file, report)
}

impl Segmentor {
    /// Starts training from a checkpoint: of a whole segmentor, or of a backbone alone (ImageNet
    /// weights of OpenMMLab, torchvision or timm, with or without `backbone.` before their names).
    ///
    /// What the file lacks stays as drawn, and so do classifiers whose number of classes differs, and heads
    /// where the file's are whole but of another method or of other widths. The convolution that reads the
    /// image is averaged over the file's three colours if the network has another number of channels. The
    /// report names all of these.
    ///
    /// # Errors
    /// If the file cannot be read, is no checkpoint, its backbone is of another architecture, or a head lacks tensors.
    pub fn load_pretrained(
        self,
        path: impl AsRef<Path>,
    ) -> Result<(Self, LoadReport), CheckpointError> {
        let file = CheckpointFile::open(path.as_ref())?;
        let report = load::compare(&file, self.config(), load::Mode::Pretrained)?;
        load::fill(self, &file, report)
    }

    /// As [`load_pretrained`](Self::load_pretrained), of which only the backbone is taken, whatever else the
    /// file holds.
    ///
    /// # Errors
    /// If the file cannot be read, is no checkpoint, or its backbone is of another architecture.
    pub fn load_backbone(
        self,
        path: impl AsRef<Path>,
    ) -> Result<(Self, LoadReport), CheckpointError> {
        let mut file = CheckpointFile::open(path.as_ref())?;
        let heads = file.without_heads();
        let mut report = load::compare(&file, self.config(), load::Mode::Pretrained)?;
        report.unexpected.extend(heads);
        load::fill(self, &file, report)
    }

    /// MMSegmentation's name of every parameter and running statistic, by its id here.
    pub fn names(&self) -> BTreeMap<ParamId, String> {
        names::by_id(self, self.config().avg_down)
    }

    /// Writes all weights and statistics as `.safetensors` under MMSegmentation's names; PyTorch
    /// loads them strictly. The architecture is added to `metadata` under [`CONFIG_KEY`].
    ///
    /// The file is written under a temporary name beside `path` and renamed, so that a full disk
    /// leaves what was there before.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] if the file cannot be written.
    pub fn save_safetensors(
        &self,
        path: impl AsRef<Path>,
        metadata: BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        self.export(path, metadata, Naming::Mmseg)
    }

    /// As [`save_safetensors`](Self::save_safetensors), under other names. Those of backbones leave the
    /// heads out.
    ///
    /// # Errors
    /// [`CheckpointError::CannotName`] if the other program has no such network, and
    /// [`CheckpointError::Write`] if the file cannot be written.
    pub fn export(
        &self,
        path: impl AsRef<Path>,
        metadata: BTreeMap<String, String>,
        naming: Naming,
    ) -> Result<(), CheckpointError> {
        save::save(self, path.as_ref(), metadata, naming)
    }

    /// As [`export`](Self::export), as the `.pth` that `torch.save` makes, which `torch.load(weights_only=True)` reads.
    /// Under MMSegmentation's names it has `state_dict` and, in `meta`, [the configuration](SegmentorConfig::to_mmseg)
    /// and the classes of `export`, as MMSegmentation keeps them; under others it is the state alone.
    ///
    /// # Errors
    /// As [`export`](Self::export).
    pub fn export_pytorch(
        &self,
        path: impl AsRef<Path>,
        naming: Naming,
        export: &MmsegExport,
    ) -> Result<(), CheckpointError> {
        save::save_pytorch(self, path.as_ref(), naming, export)
    }
}
