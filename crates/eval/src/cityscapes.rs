//! The official Cityscapes scores.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use halfseg_data::{CATEGORIES, LABELS, read_instances, read_label, unique_names};
use serde::{Deserialize, Serialize};

use crate::EvalError;

/// Label ids run from 0 to 33: the licence plate, at the end of the table, occurs in no file.
const IDS: usize = LABELS.len() - 1;

/// Mean size of an instance in pixels, where instances are told apart (`avgClassSize` of
/// cityscapesscripts 2.2, `evalPixelLevelSemanticLabeling.py`).
const fn mean_instance_px(id: usize) -> Option<f64> {
    Some(match id {
        24 => 3462.4756337644,
        25 => 3930.4788056518,
        26 => 12794.0202738185,
        27 => 27855.1264367816,
        28 => 35732.1511111111,
        29 => 36771.8241758242,
        30 => 16926.9763313609,
        31 => 67583.7075812274,
        32 => 6298.7200839748,
        33 => 4672.3249222261,
        _ => return None,
    })
}

/// Pixels of instances that were found and missed, weighted by mean size over own size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Weighted {
    hit: f64,
    missed: f64,
}

/// Accumulates the scores of the official pixel-level evaluation, over maps of label ids.
///
/// Pixels whose true label is ignored do not count. A prediction of an ignored label, such as
/// `parking`, is a miss of the true class and a false positive of none. Memory does not depend on
/// the number of images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CityscapesScorer {
    counts: Vec<u64>,
    classes: Vec<Weighted>,
    categories: Vec<Weighted>,
    images: usize,
    images_with_instances: usize,
}

impl Default for CityscapesScorer {
    fn default() -> Self {
        Self::new()
    }
}

impl CityscapesScorer {
    /// Scores of no image yet.
    pub fn new() -> Self {
        Self {
            counts: vec![0; IDS * IDS],
            classes: vec![Weighted::default(); IDS],
            categories: vec![Weighted::default(); CATEGORIES.len()],
            images: 0,
            images_with_instances: 0,
        }
    }

    /// Adds one image: label ids of 0 to 33 in both maps, and the instance ids where known
    /// (1000 times the label id plus a number).
    ///
    /// # Errors
    /// If the maps differ in size or hold an id that Cityscapes lacks; nothing is added then.
    pub fn update(
        &mut self,
        prediction: &[u8],
        truth: &[u8],
        instances: Option<&[u16]>,
    ) -> Result<(), EvalError> {
        for found in [prediction.len(), instances.map_or(truth.len(), <[_]>::len)] {
            if found != truth.len() {
                return Err(EvalError::Size {
                    expected: truth.len(),
                    found,
                });
            }
        }
        check_ids("prediction", prediction)?;
        check_ids("label", truth)?;
        let found = match instances {
            Some(instances) => Some(measure(prediction, instances)?),
            None => None,
        };
        for (&p, &t) in prediction.iter().zip(truth) {
            self.counts[t as usize * IDS + p as usize] += 1;
        }
        self.images += 1;
        if let Some(found) = found {
            self.images_with_instances += 1;
            self.weigh(&found);
        }
        Ok(())
    }

    fn weigh(&mut self, found: &BTreeMap<u16, Instance>) {
        for (&id, instance) in found {
            let label = &LABELS[id as usize / 1000];
            let Some(mean_px) =
                mean_instance_px(label.id as usize).filter(|_| !label.ignore_in_eval)
            else {
                continue;
            };
            let weight = mean_px / instance.pixels as f64;
            let add = |sums: &mut Weighted, hit: u64| {
                sums.hit += hit as f64 * weight;
                sums.missed += (instance.pixels - hit) as f64 * weight;
            };
            add(&mut self.classes[id as usize / 1000], instance.hit_class);
            if let Some(category) = CATEGORIES.iter().position(|&c| c == label.category) {
                add(&mut self.categories[category], instance.hit_category);
            }
        }
    }

    /// Adds what `other` has of other images. Sums over instances are rounded in another order then.
    pub fn merge(&mut self, other: &Self) {
        self.images += other.images;
        self.images_with_instances += other.images_with_instances;
        let counts = self.counts.iter_mut().zip(&other.counts);
        counts.for_each(|(ours, theirs)| *ours += theirs);
        let ours = self.classes.iter_mut().chain(&mut self.categories);
        for (ours, theirs) in ours.zip(other.classes.iter().chain(&other.categories)) {
            ours.hit += theirs.hit;
            ours.missed += theirs.missed;
        }
    }

    /// Adds one image from its files.
    ///
    /// # Errors
    /// As [`update`](Self::update), and if a file is no 8-bit PNG of ids (16-bit for instances).
    pub fn update_files(
        &mut self,
        prediction: &Path,
        truth: &Path,
        instances: Option<&Path>,
    ) -> Result<(), EvalError> {
        let found = read_label(prediction)?;
        let expected = read_label(truth)?;
        let instances = instances
            .map(|path| Ok::<_, EvalError>((path, read_instances(path)?)))
            .transpose()?;
        let whole = (expected.width, expected.height);
        let sizes = [
            Some((prediction, (found.width, found.height))),
            instances
                .as_ref()
                .map(|(path, map)| (*path, (map.width, map.height))),
        ];
        for (path, size) in sizes.into_iter().flatten() {
            if size != whole {
                let text = |(w, h): (usize, usize)| format!("{w}x{h} pixels");
                return Err(EvalError::Image {
                    path: path.to_owned(),
                    expected: format!("{} as {}", text(whole), truth.display()),
                    found: text(size),
                });
            }
        }
        let instances = instances.as_ref().map(|(_, map)| &map.data[..]);
        let result = self.update(&found.data, &expected.data, instances);
        result.map_err(|source| EvalError::Pair {
            prediction: prediction.to_owned(),
            truth: truth.to_owned(),
            source: Box::new(source),
        })
    }

    /// Scores a folder of predictions against a split of `gtFine`.
    ///
    /// `truth` holds `<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png`, and `_instanceIds.png`
    /// beside each if instance scores are wanted. The prediction of such a file is the one PNG
    /// anywhere below `predictions` whose name starts with `<city>_<sequence>_<frame>`, or with
    /// the city's folder and `_` before that, or in a folder of the city's name, where several cities
    /// have files of one name.
    ///
    /// # Errors
    /// If no ground truth is found, a prediction is missing or found twice, or a file is unfit.
    pub fn score_folders(predictions: &Path, truth: &Path) -> Result<CityscapesScores, EvalError> {
        let ending = "_gtFine_labelIds.png";
        let mut truths = Vec::new();
        for city in entries(truth)?.into_iter().filter(|p| p.is_dir()) {
            truths.extend(
                entries(&city)?
                    .into_iter()
                    .filter(|p| name(p).ends_with(ending)),
            );
        }
        let image = |path: &Path, expected: String, found: &str| EvalError::Image {
            path: path.to_owned(),
            expected,
            found: found.into(),
        };
        if truths.is_empty() {
            let expected = format!("files <city>/*{ending}");
            return Err(image(truth, expected, "none"));
        }
        let instances: Vec<PathBuf> = truths
            .iter()
            .map(|path| path.with_file_name(name(path).replace("labelIds", "instanceIds")))
            .collect();
        let with_instances = instances.iter().all(|path| path.exists());
        let files = halfseg_files::walk_visible(predictions, EvalError::io)?;
        let mut scorer = Self::new();
        let found = assign(predictions, &files, &truths, ending);
        for ((path, instance), (name, candidates)) in truths.iter().zip(&instances).zip(found) {
            let expected = || format!("one prediction {name}*.png");
            let Some(prediction) = candidates.first() else {
                return Err(image(predictions, expected(), "none"));
            };
            if let Some(second) = candidates.get(1) {
                let shown = |path: &Path| {
                    let below = path.strip_prefix(predictions);
                    below.unwrap_or(path).display().to_string()
                };
                let found = format!("{} and {}", shown(prediction), shown(second));
                return Err(image(predictions, expected(), &found));
            }
            scorer.update_files(
                prediction,
                path,
                with_instances.then_some(instance.as_path()),
            )?;
        }
        Ok(scorer.scores())
    }

    /// The scores of everything added so far.
    ///
    /// Instance scores are there only if every image came with its instance ids.
    pub fn scores(&self) -> CityscapesScores {
        let with_instances = self.images > 0 && self.images == self.images_with_instances;
        let score = |name: &str, rows: &dyn Fn(usize) -> bool, things: bool, sums: Weighted| {
            let scored = |l: usize| rows(l) && !LABELS[l].ignore_in_eval;
            let true_px: u64 = self.sum(scored, |_| true);
            let hit = self.sum(scored, scored);
            let others = |l: usize| !LABELS[l].ignore_in_eval && !rows(l);
            let wrong = self.sum(others, scored);
            // Predictions of an ignored label of the group count against its instances.
            let wrong_instances = self.sum(others, rows);
            CityscapesScore {
                name: name.into(),
                iou: ratio(hit as f64, (true_px + wrong) as f64),
                instance_iou: if things && with_instances {
                    ratio(sums.hit, sums.hit + sums.missed + wrong_instances as f64)
                } else {
                    None
                },
            }
        };
        let classes = (0..IDS).filter(|&id| !LABELS[id].ignore_in_eval).map(|id| {
            let label = &LABELS[id];
            let things = label.has_instances;
            score(label.name, &|l| l == id, things, self.classes[id])
        });
        let categories = CATEGORIES.iter().enumerate().map(|(i, &category)| {
            let member = |l: usize| LABELS[l].category == category;
            let things = (0..IDS).all(|l| !member(l) || LABELS[l].has_instances);
            score(category, &member, things, self.categories[i])
        });
        let (classes, categories): (Vec<_>, Vec<_>) = (classes.collect(), categories.collect());
        CityscapesScores {
            images: self.images,
            mean_iou: mean(&classes, |s| s.iou),
            mean_instance_iou: mean(&classes, |s| s.instance_iou),
            mean_category_iou: mean(&categories, |s| s.iou),
            mean_category_instance_iou: mean(&categories, |s| s.instance_iou),
            classes,
            categories,
        }
    }

    fn sum(&self, truth: impl Fn(usize) -> bool, predicted: impl Fn(usize) -> bool) -> u64 {
        let row = |t: usize| -> u64 {
            let columns = (0..IDS).filter(|&p| predicted(p));
            columns.map(|p| self.counts[t * IDS + p]).sum()
        };
        (0..IDS).filter(|&t| truth(t)).map(row).sum()
    }
}

/// The official score of a class or category, from 0 to 1; nothing where it does not occur.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CityscapesScore {
    /// Class or category.
    pub name: String,
    /// Intersection over union.
    pub iou: Option<f64>,
    /// iIoU: true pixels weighted by the mean size of an instance over their own instance's.
    pub instance_iou: Option<f64>,
}

/// The official scores of a data set, each from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CityscapesScores {
    /// How many images were scored.
    pub images: usize,
    /// Mean IoU of the classes that have one.
    pub mean_iou: Option<f64>,
    /// Mean iIoU of the classes that have one.
    pub mean_instance_iou: Option<f64>,
    /// Mean IoU of the categories that have one.
    pub mean_category_iou: Option<f64>,
    /// Mean iIoU of the categories that have one.
    pub mean_category_instance_iou: Option<f64>,
    /// The 19 classes.
    pub classes: Vec<CityscapesScore>,
    /// The 7 categories.
    pub categories: Vec<CityscapesScore>,
}

struct Instance {
    pixels: u64,
    hit_class: u64,
    hit_category: u64,
}

/// Counts the pixels of every instance and those that were found, in order of instance id.
fn measure(prediction: &[u8], instances: &[u16]) -> Result<BTreeMap<u16, Instance>, EvalError> {
    let mut found = BTreeMap::new();
    for (&p, &id) in prediction.iter().zip(instances) {
        if id <= 1000 {
            continue;
        }
        let label = id as usize / 1000;
        let instance = found.entry(id).or_insert(Instance {
            pixels: 0,
            hit_class: 0,
            hit_category: 0,
        });
        instance.pixels += 1;
        instance.hit_class += u64::from(p as usize == label);
        let same = label < IDS
            && (p as usize) < IDS
            && LABELS[p as usize].category == LABELS[label].category;
        instance.hit_category += u64::from(same);
    }
    let unfit = |id: u16| match LABELS[..IDS].get(id as usize / 1000) {
        Some(label) => !label.ignore_in_eval && !label.has_instances,
        None => true,
    };
    match found.iter().find(|&(&id, _)| unfit(id)) {
        Some((&value, instance)) => Err(EvalError::UnknownId {
            map: "instance",
            value,
            pixels: instance.pixels,
        }),
        None => Ok(found),
    }
}

fn check_ids(map: &'static str, ids: &[u8]) -> Result<(), EvalError> {
    let Some(&value) = ids.iter().find(|&&id| id as usize >= IDS) else {
        return Ok(());
    };
    Err(EvalError::UnknownId {
        map,
        value: value.into(),
        pixels: ids.iter().filter(|&&id| id == value).count() as u64,
    })
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

fn mean(
    scores: &[CityscapesScore],
    value: impl Fn(&CityscapesScore) -> Option<f64>,
) -> Option<f64> {
    let values: Vec<f64> = scores.iter().filter_map(value).collect();
    ratio(values.iter().sum(), values.len() as f64)
}

/// The name by which each of `truths` is known, and the files that begin with it: a file belongs to
/// the longest name that it begins with.
fn assign<'a>(
    predictions: &Path,
    files: &'a [PathBuf],
    truths: &[PathBuf],
    ending: &str,
) -> Vec<(String, Vec<&'a Path>)> {
    let city = |path: &PathBuf| path.parent().map(name).unwrap_or_default();
    let stem = |path: &PathBuf| name(path).trim_end_matches(ending).to_owned();
    let of_cities: Vec<_> = truths.iter().map(|path| (city(path), stem(path))).collect();
    let names = unique_names(&of_cities);
    // Files of a name that several cities have are told apart by a folder, too.
    let shared = of_cities.iter().zip(&names).enumerate();
    let shared = shared.filter(|(_, ((_, stem), name))| stem != *name);
    let by_folder: HashMap<(&str, &str), usize> = shared
        .map(|(i, ((city, stem), _))| ((city.as_str(), stem.as_str()), i))
        .collect();
    let by_name: HashMap<&str, usize> =
        names.iter().enumerate().map(|(i, n)| (&n[..], i)).collect();
    let mut found = vec![Vec::new(); names.len()];
    for path in files {
        let file = name(path);
        if !file.ends_with(".png") {
            continue;
        }
        let folder = path
            .parent()
            .and_then(|folder| folder.strip_prefix(predictions).ok());
        let folders: Vec<_> = folder.iter().flat_map(|f| f.components()).collect();
        let owner = beginnings(&file).find_map(|start| {
            let of_folder =
                |part: &Component<'_>| by_folder.get(&(part.as_os_str().to_str()?, start)).copied();
            let of_name = by_name.get(start).copied();
            of_name.or_else(|| folders.iter().rev().find_map(of_folder))
        });
        if let Some(owner) = owner {
            found[owner].push(path.as_path());
        }
    }
    names.into_iter().zip(found).collect()
}

/// The beginnings of a name, longest first, that do not cut a number in two.
fn beginnings(name: &str) -> impl Iterator<Item = &str> {
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    (1..=name.len()).rev().filter_map(move |end| {
        let (start, rest) = (name.get(..end)?, name.get(end..)?);
        (!digit(start.chars().next_back()) || !digit(rest.chars().next())).then_some(start)
    })
}

fn name(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let mut found = halfseg_files::entries(folder).map_err(|e| EvalError::io(folder, e))?;
    found.retain(|path| !halfseg_files::is_hidden(path));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_with_instances_has_a_mean_size() {
        for (id, label) in LABELS[..IDS].iter().enumerate() {
            assert_eq!(label.id as usize, id);
            assert_eq!(
                label.has_instances,
                mean_instance_px(id).is_some(),
                "{}",
                label.name
            );
        }
    }

    #[test]
    fn ignored_truth_does_not_count_and_void_predictions_are_misses() {
        let mut scorer = CityscapesScorer::new();
        let truth = [7, 7, 7, 7, 0, 9];
        scorer.update(&[7, 7, 9, 26, 7, 7], &truth, None).unwrap();
        let scores = scorer.scores();
        let class = |name: &str| scores.classes.iter().find(|c| c.name == name).unwrap();
        assert_eq!(class("road").iou, Some(0.5));
        assert_eq!(class("car").iou, Some(0.0));
        assert_eq!(class("sky").iou, None);
        assert_eq!(scores.mean_iou, Some(0.25));
        assert_eq!(scores.mean_instance_iou, None);
    }

    #[test]
    fn unknown_ids_are_refused_by_value_and_count() {
        let mut scorer = CityscapesScorer::new();
        let check = |scorer: &mut CityscapesScorer, p: &[u8], t: &[u8], i: &[u16], text: &str| {
            let error = scorer.update(p, t, Some(i)).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        check(
            &mut scorer,
            &[255, 255],
            &[7, 7],
            &[7, 7],
            "2 pixels of 255",
        );
        check(&mut scorer, &[7, 7], &[40, 7], &[7, 7], "1 pixels of 40");
        check(
            &mut scorer,
            &[7, 7],
            &[7, 7],
            &[7, 7001],
            "1 pixels of 7001",
        );
        check(
            &mut scorer,
            &[7, 7],
            &[7, 7],
            &[7, 40001],
            "1 pixels of 40001",
        );
        check(&mut scorer, &[7, 7], &[7, 7], &[7], "2 pixels");
        assert_eq!(scorer.scores().images, 0);
    }

    #[test]
    fn instances_weigh_by_their_size() {
        let mut scorer = CityscapesScorer::new();
        let truth = [26; 4];
        scorer
            .update(&[26, 7, 7, 27], &truth, Some(&[26000, 26001, 26001, 26001]))
            .unwrap();
        let scores = scorer.scores();
        let car = scores.classes.iter().find(|c| c.name == "car").unwrap();
        assert_eq!(car.iou, Some(0.25));
        assert_eq!(car.instance_iou, Some(0.5));
        let vehicle = &scores.categories[6];
        assert!((vehicle.instance_iou.unwrap() - (1.0 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
    }
}
