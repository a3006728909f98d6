//! `halfseg eval`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use halfseg_data::{
    CLASSES, Cityscapes, Dataset, DefinedData, Definition, IGNORE, InstanceMap, LabelMap,
    PictureFormat, Sample, check_labels,
};
use halfseg_devices::{Ranks, resident_memory};
use halfseg_eval::{
    BoundaryCounts, CityscapesScorer, CityscapesScores, ConfusionMatrix, Scores, confusion_svg,
    scores_json,
};
use halfseg_predict::Predictor;
use halfseg_train::{DataSource, check_classes, check_same, check_same_weights, open_split};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::archive::Archive;
use super::kept::{Predictions, file_name, label_ids, read_kept};
use super::left_out::{LeftOut, class_map};
use crate::args::EvalArgs;
use crate::failure::Usage;
use crate::output::{check_writable, print_table, write_json};
use crate::progress::Progress;
use crate::ranks;
use crate::settings::{Loaded, require_data};

/// Pictures with the lowest mIoU that the JSON lists, and the table.
const WORST: usize = 10;
const NAMED: usize = 3;

/// Scores a checkpoint on a split, and keeps its predictions if asked to.
pub fn run(args: &EvalArgs) -> Result<()> {
    require_data(args.data.as_deref(), &args.inference.sources)?;
    if args.batch.skip_existing && args.save_predictions.is_none() {
        let why = "--skip-existing: expected --save-predictions DIR, which says where they are";
        return Err(Usage(why.into()).into());
    }
    let inference = &args.inference;
    let inputs = [&inference.sources.config, &inference.policy].map(Option::as_deref);
    let inputs = [&inputs[..], &[Some(&inference.checkpoint)]].concat();
    if Ranks::current().is_first() {
        check_writable(&[&args.zip, &args.json, &args.confusion], &inputs)?;
    }
    let keeps = args.save_predictions.is_some() || args.zip.is_some();
    let loaded = Loaded::open(&args.inference, args.data.as_deref())?;
    let split = args
        .split
        .as_deref()
        .unwrap_or(&loaded.recipe.data.val_split);
    if split.is_empty() {
        return Err(Usage("the checkpoint names no split: expected --split NAME".into()).into());
    }
    let Split { dataset, tree, own } = Split::open(&loaded, split, keeps)?;
    check_pictures(&loaded, &dataset.format())?;
    for note in dataset.notes() {
        warning!("{note}");
    }
    // What the benchmark reports beyond the classes' IoU, for its own classes.
    let classes = loaded.recipe.model.num_classes;
    let tree = tree.filter(|tree| tree.is_labelled() && classes == CLASSES);
    let official = tree.is_some().then(CityscapesScorer::new);

    let ranks = Ranks::current();
    check_same_weights(&ranks, &loaded.model, "weights")?;
    check_same(&ranks, &loaded.recipe, &[&*dataset])?;
    let archive = args.zip.as_deref().filter(|_| ranks.is_first());
    let mut archive = archive.map(Archive::new).transpose()?;
    let mut scoring = Scoring {
        args,
        dataset: &*dataset,
        tree,
        predictions: Predictions::new(args, own)?,
        predictor: loaded.predictor(),
        matrix: ConfusionMatrix::new(classes),
        boundary: args.boundary.then(|| BoundaryCounts::new(classes)),
        official,
    };
    ranks.begin();
    let mut left_out = LeftOut::new(args.batch.skip_bad);
    let mut shown = Progress::new(dataset.len() as u64, "images");
    let (mut scored, mut of_pictures) = (0, Vec::new());
    // Of several processes, each takes every so many pictures.
    for first in (0..dataset.len()).step_by(ranks.size()) {
        ranks::check_interrupted(|| "interrupted: no scores".into())?;
        let index = first + ranks.rank();
        let done = match index < dataset.len() {
            true => scoring.score(index),
            false => Ok(Done::default()),
        };
        for done in ranks::shared_values(done)? {
            match (done.left_out, &mut archive) {
                (Some(why), _) => {
                    left_out.push(why);
                    continue;
                }
                (None, Some(archive)) if !done.png.is_empty() => {
                    archive.add(file_name(&done.name, own), &done.png)?;
                }
                _ => {}
            }
            if !done.name.is_empty() {
                shown.inc(&done.name);
                scored += 1;
                of_pictures.extend(done.scores.map(|scores| (done.name, scores)));
            }
        }
    }
    shown.finish();
    archive.map_or(Ok(()), Archive::finish)?;
    let names_of_classes = loaded.classes.names();
    let matrix = ranks::merged(scoring.matrix)?;
    let official = scoring.official.map(ranks::merged).transpose()?;
    let boundary = scoring.boundary.map(ranks::merged).transpose()?;
    let mut scores = matrix.scores();
    if let Some(boundary) = boundary {
        boundary.add_to(&mut scores);
    }
    let official = official.map(|scorer| scorer.scores());
    let total = dataset.len();
    if !ranks.is_first() {
        return ranks::together(left_out.finish(total));
    }
    let mut worst: Vec<_> = of_pictures.iter().collect();
    worst.sort_by(|(_, a), (_, b)| a.miou.total_cmp(&b.miou));
    worst.truncate(WORST);
    let unlabelled = scores.classes.iter().all(|class| class.pixels == 0);
    if scored == 0 {
        message!("no picture was scored");
    } else if unlabelled {
        message!("{split} has no labels: nothing to score");
    } else {
        let mut table = scores.table(&names_of_classes);
        table += &official.as_ref().map_or(String::new(), official_table);
        let named = worst.iter().take(NAMED);
        let named: Vec<_> = named
            .map(|(name, scores)| format!("{name} {:.2}", 100.0 * scores.miou))
            .collect();
        if of_pictures.len() > NAMED {
            table += &format!("lowest mIoU of a picture: {}\n", named.join(", "));
        }
        print_table(&table, args.json.as_deref())?;
        if let Some(path) = &args.confusion {
            confusion_svg(path, &matrix, &names_of_classes)?;
        }
    }
    if let Some(path) = &args.json {
        let mut json = scores_json(&scores, &names_of_classes);
        if unlabelled {
            for key in ["miou", "macc", "aacc", "constant_miou"] {
                json[key] = Value::Null;
            }
        }
        let entry = |(name, scores): &(String, OfPicture)| {
            let mut entry = json!({ "name": name, "miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc });
            if let Some(boundary) = scores.mboundary_iou {
                entry["mboundary_iou"] = boundary.into();
            }
            entry
        };
        json["worst"] = worst.into_iter().map(entry).collect();
        json["pictures"] = of_pictures.iter().map(entry).collect();
        json["images"] = scored.into();
        json["split"] = split.into();
        json["data"] = loaded.recipe.data.source.to_string().into();
        json["checkpoint"] = loaded.weights.display().to_string().into();
        json["peak_bytes"] = resident_memory().map(|(_, peak)| peak.0).into();
        json["precision"] = loaded.recipe.precision.dtype.to_string().into();
        if let Some(scores) = &official {
            json["cityscapes"] = serde_json::to_value(scores)?;
        }
        json["policy"] = serde_json::to_value(loaded.recipe.precision.policy())?;
        write_json(path, &json)?;
    }
    ranks::together(left_out.finish(total))
}

/// Refuses data whose pictures are not what the network was trained on.
fn check_pictures(loaded: &Loaded, found: &PictureFormat) -> Result<()> {
    let kind = |format: &PictureFormat| (format.channels(), format.bits());
    if kind(found) != kind(&loaded.pictures) {
        bail!(
            "{}: expected pictures of {}, as {} was trained on, found {found}",
            loaded.recipe.data.source,
            loaded.pictures,
            loaded.weights.display()
        );
    }
    Ok(())
}

/// What scores the pictures of one process.
struct Scoring<'a> {
    args: &'a EvalArgs,
    dataset: &'a dyn Dataset,
    tree: Option<Arc<Cityscapes>>,
    predictions: Predictions,
    predictor: Predictor,
    matrix: ConfusionMatrix,
    boundary: Option<BoundaryCounts>,
    official: Option<CityscapesScorer>,
}

/// What became of a picture; nothing has no name.
#[derive(Default, Serialize, Deserialize)]
struct Done {
    name: String,
    /// Why it was left out.
    left_out: Option<String>,
    /// Of this picture alone, if it has labels.
    scores: Option<OfPicture>,
    /// For the archive.
    png: Vec<u8>,
}

/// The scores of one picture.
#[derive(Serialize, Deserialize)]
struct OfPicture {
    miou: f64,
    macc: f64,
    aacc: f64,
    mboundary_iou: Option<f64>,
}

impl From<Scores> for OfPicture {
    fn from(scores: Scores) -> Self {
        Self {
            miou: scores.mean_iou,
            macc: scores.mean_accuracy,
            aacc: scores.pixel_accuracy,
            mboundary_iou: scores.mean_boundary_iou,
        }
    }
}

impl Scoring<'_> {
    fn score(&mut self, index: usize) -> Result<Done> {
        let (sample, map, is_kept, instances) = match self.predict(index) {
            Ok(found) => found,
            Err(error) => {
                return Ok(Done {
                    left_out: Some(LeftOut::reason(self.args.batch.skip_bad, error)?),
                    ..Done::default()
                });
            }
        };
        let mut of_picture = None;
        let png = self
            .predictions
            .write(self.args, &sample.name, &map, is_kept)?;
        if let Some(label) = &sample.label {
            let mut one = ConfusionMatrix::new(self.matrix.classes());
            one.update(&map.data, &label.data, IGNORE)?;
            let mut scores = one.scores();
            if let Some(boundary) = &mut self.boundary {
                let mut one = BoundaryCounts::new(self.matrix.classes());
                one.update(&map, label)?;
                one.add_to(&mut scores);
                boundary.merge(&one);
            }
            let scored = scores.classes.iter().any(|class| class.pixels > 0);
            of_picture = scored.then(|| scores.into());
            self.matrix.merge(&one);
            if let Some(scorer) = &mut self.official {
                let instances = instances.as_ref().map(|map| map.data.as_slice());
                let ids = [&map.data, &label.data].map(|map| label_ids(map));
                scorer
                    .update(&ids[0], &ids[1], instances)
                    .with_context(|| self.dataset.source(index))?;
            }
        }
        Ok(Done {
            name: sample.name,
            left_out: None,
            scores: of_picture,
            png,
        })
    }

    /// The picture and its classes, whether an earlier run has kept these, and the true instances where they are
    /// known.
    fn predict(&self, index: usize) -> Result<(Sample, LabelMap, bool, Option<InstanceMap>)> {
        let sample = self.dataset.get(index)?;
        let kept = self.predictions.kept(self.args, &sample);
        let map = match &kept {
            Some(path) => read_kept(path, &sample, self.predictions.own)?,
            None => {
                let prediction = self.predictor.predict(&sample.image);
                let prediction = prediction.map_err(|error| error.of(&sample.name))?;
                class_map(prediction, &sample.name, self.args.batch.allow_nonfinite)?
            }
        };
        if let Some(label) = &sample.label {
            let name = || format!("the label map of {}", self.dataset.source(index));
            check_labels(&label.data, self.matrix.classes(), name)?;
        }
        let tree = self.tree.as_ref().filter(|_| sample.label.is_some());
        let instances = tree
            .map(|tree| tree.instances(index))
            .transpose()?
            .flatten();
        Ok((sample, map, kept.is_some(), instances))
    }
}

/// What is evaluated.
struct Split {
    dataset: Arc<dyn Dataset>,
    /// The same, if it is a folder.
    tree: Option<Arc<Cityscapes>>,
    /// Whether its classes are those of a definition.
    own: bool,
}

impl Split {
    /// A split whose labels a benchmark keeps to itself can be predicted, not scored: `keeps` says
    /// whether predictions are wanted.
    fn open(loaded: &Loaded, split: &str, keeps: bool) -> Result<Self> {
        let source = match &loaded.recipe.data.source {
            DataSource::Folder(source) => source,
            DataSource::Definition(file) => return Self::defined(loaded, file, split, keeps),
            DataSource::Synthetic => {
                let dataset = open_split(&loaded.recipe, split)?;
                loaded.check_trained("synthetic", &dataset.classes())?;
                return Ok(Self {
                    dataset,
                    tree: None,
                    own: false,
                });
            }
        };
        let path = PathBuf::from(source);
        let tree = Arc::new(Cityscapes::open(&path, split)?);
        loaded.check_trained(source, &tree.classes())?;
        if !keeps && !tree.is_labelled() {
            let split = split.to_owned();
            return Err(halfseg_train::Error::Unlabelled { path, split }.into());
        }
        Ok(Self {
            dataset: tree.clone(),
            tree: Some(tree),
            own: false,
        })
    }

    fn defined(loaded: &Loaded, file: &str, split: &str, keeps: bool) -> Result<Self> {
        let definition = Arc::new(Definition::read(Path::new(file))?);
        check_classes(file, definition.classes(), &loaded.weights, &loaded.classes)?;
        let dataset = DefinedData::open(&definition, &[split], None)?.remove(0);
        if !keeps {
            dataset.require_masks()?;
        }
        Ok(Self {
            dataset: Arc::new(dataset),
            tree: None,
            own: true,
        })
    }
}

/// A score in percent, or a dash where there is none.
pub fn percent(score: Option<f64>) -> String {
    score.map_or("-".into(), |score| format!("{:.2}", 100.0 * score))
}

/// The scores of the categories, and of instances where the split has their ids.
pub fn official_table(scores: &CityscapesScores) -> String {
    let mut out = format!("{:<16}{:>8}{:>8}\n", "category", "IoU", "iIoU");
    for score in &scores.categories {
        let (iou, instance_iou) = (percent(score.iou), percent(score.instance_iou));
        out += &format!("{:<16}{iou:>8}{instance_iou:>8}\n", score.name);
    }
    out + &format!(
        "categories: mIoU {}  iIoU {}; classes: iIoU {}\n",
        percent(scores.mean_category_iou),
        percent(scores.mean_category_instance_iou),
        percent(scores.mean_instance_iou)
    )
}
