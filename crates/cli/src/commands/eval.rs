//! `halfseg eval`.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use halfseg_data::{Cityscapes, Dataset, LabelMap, label_id, write_label};
use halfseg_train::{class_names, draw_confusion, open_split, scores_json};

use crate::args::EvalArgs;
use crate::failure::{Interrupted, Usage};
use crate::interrupt;
use crate::output::write_json;
use crate::progress::bar;
use crate::settings::Loaded;

/// What the names of kept predictions end with.
const SUFFIX: &str = "_pred_labelIds.png";

/// Scores a checkpoint on a split, and keeps its predictions if asked to.
pub fn run(args: &EvalArgs) -> Result<()> {
    let keeps = args.save_predictions.is_some() || args.zip.is_some();
    let loaded = Loaded::open(&args.inference, args.data.as_deref())?;
    let split = args
        .split
        .as_deref()
        .unwrap_or(&loaded.recipe.data.val_split);
    if split.is_empty() {
        return Err(Usage("the checkpoint names no split: expected --split NAME".into()).into());
    }
    let dataset = open(&loaded, split, keeps)?;

    let predictions = Predictions::new(args)?;
    let shown = bar(dataset.len() as u64, "images");
    let mut finished = true;
    let matrix = loaded.predictor().evaluate(&*dataset, |one| {
        predictions.write(one.name, one.map, one.image.width)?;
        shown.inc(1);
        finished = one.index + 1 == dataset.len() || !interrupt::requested();
        Ok(finished)
    })?;
    shown.finish_and_clear();
    if !finished {
        return Err(Interrupted("interrupted: no scores".into()).into());
    }
    if let Some(zip) = &args.zip {
        predictions.pack(zip)?;
    }
    let scores = matrix.scores();
    if scores.classes.iter().all(|class| class.pixels == 0) {
        eprintln!("{split} has no labels: nothing to score");
        return Ok(());
    }
    eprint!("{}", scores.table(&class_names()));
    if let Some(path) = &args.confusion {
        draw_confusion(&matrix, path)?;
    }
    if let Some(path) = &args.json {
        let mut json = scores_json(&scores);
        json["images"] = dataset.len().into();
        json["split"] = split.into();
        json["data"] = loaded.recipe.data.source.clone().into();
        json["checkpoint"] = loaded.weights.display().to_string().into();
        json["precision"] = loaded.recipe.precision.dtype.to_string().into();
        write_json(path, &json)?;
    }
    Ok(())
}

/// The split; one whose labels a benchmark keeps to itself can be predicted, not scored.
fn open(loaded: &Loaded, split: &str, keeps: bool) -> Result<Arc<dyn Dataset>> {
    if keeps && loaded.recipe.data.source != "synthetic" {
        return Ok(Arc::new(Cityscapes::open(
            Path::new(&loaded.recipe.data.source),
            split,
        )?));
    }
    Ok(open_split(&loaded.recipe, split)?)
}

/// Where predictions are kept, if anywhere.
struct Predictions {
    folder: Option<PathBuf>,
    /// Whether the folder serves `--zip` alone and goes when this does.
    temporary: bool,
}

impl Drop for Predictions {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.as_ref().filter(|_| self.temporary) {
            // What is left behind lies in a folder whose name says that it may go.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl Predictions {
    fn new(args: &EvalArgs) -> Result<Self> {
        let (folder, temporary) = match (&args.save_predictions, &args.zip) {
            (Some(folder), _) => (Some(folder.clone()), false),
            (None, Some(zip)) => {
                let mut name = zip.as_os_str().to_owned();
                name.push(format!(".{}.tmp.d", std::process::id()));
                (Some(name.into()), true)
            }
            (None, None) => (None, false),
        };
        let predictions = Self { folder, temporary };
        if let Some(folder) = &predictions.folder {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(predictions)
    }

    /// The labelIds of one image, under a name that begins with the image's, as the official
    /// scorer looks for.
    fn write(&self, name: &str, map: &[u8], width: usize) -> Result<(), halfseg_train::Error> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let data = map.iter().map(|&id| label_id(id)).collect();
        let label = LabelMap {
            width,
            height: map.len() / width,
            data,
        };
        Ok(write_label(
            &folder.join(format!("{name}{SUFFIX}")),
            &label,
        )?)
    }

    fn pack(&self, zip: &Path) -> Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let cannot = || format!("cannot write {}", zip.display());
        let mut temporary = zip.as_os_str().to_owned();
        temporary.push(".tmp");
        let out = BufWriter::new(File::create(&temporary).with_context(cannot)?);
        let mut writer = zip::ZipWriter::new(out);
        // PNGs are compressed already.
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        let mut names: Vec<_> = fs::read_dir(folder)
            .with_context(|| format!("cannot read {}", folder.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(SUFFIX))
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(&name);
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            writer.start_file(name, options).with_context(cannot)?;
            writer.write_all(&bytes).with_context(cannot)?;
        }
        writer
            .finish()
            .with_context(cannot)?
            .flush()
            .with_context(cannot)?;
        fs::rename(&temporary, zip).with_context(cannot)
    }
}
