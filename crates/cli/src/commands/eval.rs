//! `halfseg eval`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use halfseg_data::{Cityscapes, Dataset, LabelMap, label_id, write_label};
use halfseg_files::write_atomically;
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
    let mut names = Vec::new();
    let matrix = loaded.predictor().evaluate(&*dataset, |one| {
        predictions.write(one.name, one.map, one.image.width)?;
        names.push(one.name.to_owned());
        shown.inc(1);
        finished = one.index + 1 == dataset.len() || !interrupt::requested();
        Ok(finished)
    })?;
    shown.finish_and_clear();
    if !finished {
        return Err(Interrupted("interrupted: no scores".into()).into());
    }
    if let Some(zip) = &args.zip {
        predictions.pack(zip, &names)?;
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
        if let Some(zip) = &args.zip {
            // Known before the predictions are made, not after.
            let parent = zip.parent().filter(|parent| !parent.as_os_str().is_empty());
            if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
                bail!(
                    "cannot write {}: expected a folder {}, found none",
                    zip.display(),
                    parent.display()
                );
            }
        }
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

    /// Writes the labelIds of one image.
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
        Ok(write_label(&folder.join(file_name(name)), &label)?)
    }

    /// Writes the predictions of `names` as one archive, without folders.
    fn pack(&self, zip: &Path, names: &[String]) -> Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        // PNGs are compressed already. The date is the format's first, so that equal predictions
        // give equal archives.
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default());
        write_atomically(zip, |out| {
            let mut writer = zip::ZipWriter::new(out);
            for name in names {
                let name = file_name(name);
                let path = folder.join(&name);
                let bytes = fs::read(&path)
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
                writer.start_file(name, options)?;
                writer.write_all(&bytes)?;
            }
            writer.finish()?;
            Ok(())
        })
        .with_context(|| format!("cannot write {}", zip.display()))
    }
}

/// The name of an image's prediction: it begins with the image's own, by which the official scorer
/// and the benchmark's server find it.
fn file_name(image: &str) -> String {
    format!("{image}{SUFFIX}")
}
