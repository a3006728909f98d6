//! A network as PyTorch's `.pth`, with MMSegmentation's configuration beside it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use halfseg_predict::{EvalMode, EvalScale, PredictorSettings, known_classes};
use halfseg_segmentor::{ClassTable, MMSEG_CONFIG_HEAD, MmsegExport, Naming, Segmentor};

use crate::args::ExportArgs;
use crate::output::check_writable;

/// Whether a file of this name is to be PyTorch's.
pub fn is_asked_for(out: &Path) -> bool {
    let ending = out.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ["pth", "pt"].contains(&ending.to_ascii_lowercase().as_str()))
}

fn config_file(out: &Path) -> PathBuf {
    out.with_extension("py")
}

/// Refuses a configuration beside the file that would replace another program's.
pub fn check(args: &ExportArgs, naming: Naming) -> Result<()> {
    if naming != Naming::Mmseg {
        return Ok(());
    }
    let path = config_file(&args.out);
    check_writable(&[&Some(path.clone())], &[Some(&args.checkpoint)])?;
    if path.is_file() && !is_own(&path)? {
        bail!(
            "cannot write {}: a file is there that is not this program's; choose another name for --out",
            path.display()
        );
    }
    Ok(())
}

fn is_own(path: &Path) -> Result<bool> {
    let head = halfseg_files::read_head(path, MMSEG_CONFIG_HEAD.len())
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(head == MMSEG_CONFIG_HEAD.as_bytes())
}

/// Writes `model`, which was read from `weights`.
pub fn write(args: &ExportArgs, weights: &Path, model: &Segmentor, naming: Naming) -> Result<()> {
    let settings = PredictorSettings::read(weights)?.unwrap_or_default();
    let mut export = MmsegExport::default();
    let classes = model.config().num_classes;
    let known = known_classes(weights)?.filter(|known| known.len() == classes);
    export.classes = known.map(|known| {
        let mut table = ClassTable::default();
        table.names = known.names().into_iter().map(ToOwned::to_owned).collect();
        table.palette = known.colors().to_vec();
        table
    });
    export.mean = settings.pictures.mean().to_vec();
    export.std = settings.pictures.std().to_vec();
    let config = &settings.config;
    if let EvalMode::Slide = config.mode {
        let size = |crop: halfseg_data::Crop| [crop.height, crop.width];
        export.slide = Some([size(config.slide_crop), size(config.slide_stride)]);
    }
    if let EvalScale::Fit(scale) = config.scale {
        export.scale = Some([scale.width, scale.height]);
    }
    if naming == Naming::Mmseg && export.classes.is_none() {
        warning!(
            "the names of the {classes} classes are not known: MMSegmentation will number them, or take those that its \
             caller gives"
        );
    }
    // The configuration first: without it, a file that is there is of no use.
    if naming == Naming::Mmseg {
        let path = config_file(&args.out);
        let text = model.config().to_mmseg(&export)?;
        halfseg_files::write_atomically(&path, |out| out.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        message!("wrote {}, MMSegmentation's configuration", path.display());
    }
    model.export_pytorch(&args.out, naming, &export)?;
    message!(
        "wrote {} with {naming} names, as torch.save does",
        args.out.display()
    );
    Ok(())
}
