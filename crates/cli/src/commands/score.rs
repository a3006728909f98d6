//! `halfseg score`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use halfseg_data::{Dataset, DefinedData, Definition, IGNORE, Sample, is_definition};
use halfseg_eval::{CityscapesScorer, ConfusionMatrix, scores_json};

use super::eval::{official_table, percent};
use super::kept::read_kept;
use crate::args::ScoreArgs;
use crate::failure::{Interrupted, Usage};
use crate::interrupt;
use crate::output::{check_writable, print_table, write_json};
use crate::progress::Progress;

/// What names of predictions end with, after the picture's: what `eval` keeps, what `predict` writes, any.
const ENDINGS: [&str; 3] = ["_pred_classes.png", "_trainIds.png", ".png"];

/// Scores predictions from anywhere, without a network.
pub fn run(args: &ScoreArgs) -> Result<()> {
    check_writable(&[&args.json], &[])?;
    match (&args.data, &args.truth) {
        (Some(file), _) => defined(args, file),
        (None, Some(truth)) => official(args, truth),
        (None, None) => Err(Usage("expected --truth or --data".into()).into()),
    }
}

fn official(args: &ScoreArgs, truth: &Path) -> Result<()> {
    let scores = CityscapesScorer::score_folders(&args.predictions, truth)?;
    let mut table = format!("{:<16}{:>8}{:>8}\n", "class", "IoU", "iIoU");
    for class in &scores.classes {
        let (iou, instance_iou) = (percent(class.iou), percent(class.instance_iou));
        table += &format!("{:<16}{iou:>8}{instance_iou:>8}\n", class.name);
    }
    table += &official_table(&scores);
    let (images, miou) = (scores.images, percent(scores.mean_iou));
    table += &format!("{images} images: mIoU {miou}\n");
    print_table(&table, args.json.as_deref())?;
    match &args.json {
        Some(path) => write_json(path, &serde_json::to_value(&scores)?),
        None => Ok(()),
    }
}

/// Scores maps of classes on a split of a definition.
fn defined(args: &ScoreArgs, file: &Path) -> Result<()> {
    if !is_definition(file) {
        let why = format!(
            "--data {}: expected a definition, a file that ends with .toml; --truth is for folders of Cityscapes",
            file.display()
        );
        return Err(Usage(why).into());
    }
    let definition = Arc::new(Definition::read(file)?);
    let dataset = DefinedData::open(&definition, &[&args.split], None)?.remove(0);
    dataset.require_masks()?;
    let files = by_name(&args.predictions)?;
    let mut matrix = ConfusionMatrix::new(definition.classes().len());
    let mut shown = Progress::new(dataset.len() as u64, "images");
    for index in 0..dataset.len() {
        if interrupt::requested() {
            return Err(Interrupted("interrupted: no scores".into()).into());
        }
        let sample = dataset.get(index)?;
        score(
            &mut matrix,
            &sample,
            prediction(&files, &args.predictions, &sample)?,
        )?;
        shown.inc(&sample.name);
    }
    shown.finish();
    let names = definition.classes().names();
    let scores = matrix.scores();
    print_table(&scores.table(&names), args.json.as_deref())?;
    let Some(path) = &args.json else {
        return Ok(());
    };
    let mut json = scores_json(&scores, &names);
    json["images"] = dataset.len().into();
    json["split"] = args.split.clone().into();
    json["data"] = definition.origin().into();
    write_json(path, &json)
}

/// All files below a folder, by their names.
fn by_name(folder: &Path) -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let cannot = |path: &Path, error: std::io::Error| {
        anyhow::Error::new(error).context(format!("cannot read {}", path.display()))
    };
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in halfseg_files::walk(folder, cannot)? {
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            files.entry(name.to_owned()).or_default().push(path);
        }
    }
    Ok(files)
}

/// The one prediction of a picture.
fn prediction<'a>(
    files: &'a BTreeMap<String, Vec<PathBuf>>,
    folder: &Path,
    sample: &Sample,
) -> Result<&'a Path> {
    let names = ENDINGS.map(|ending| format!("{}{ending}", sample.name));
    match names
        .iter()
        .find_map(|name| files.get(name))
        .map(Vec::as_slice)
    {
        Some([one]) => Ok(one),
        Some([first, second, ..]) => bail!(
            "{}: expected one prediction {}, found {} and {}",
            folder.display(),
            names.join(" or "),
            first.display(),
            second.display()
        ),
        _ => bail!(
            "{}: expected a prediction {}, found none",
            folder.display(),
            names.join(" or ")
        ),
    }
}

fn score(matrix: &mut ConfusionMatrix, sample: &Sample, path: &Path) -> Result<()> {
    let map = read_kept(path, sample, true)?;
    let label = sample.label.as_ref().context("masks were asked for")?;
    let added = matrix.update(&map.data, &label.data, IGNORE);
    added.with_context(|| format!("{}", path.display()))
}
