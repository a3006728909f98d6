//! Configurations of MMSegmentation, 1.x (`train_dataloader`) and 0.x (`data`), and the classes of data sets in Python
//! (`METAINFO`, or `CLASSES` and `PALETTE`), as `BaseSegDataset` of 1.2 reads them.

use std::path::Path;

use halfseg_files::PythonValue;

use super::class_file::{ClassFile, colors, strings};
use super::{Conversion, Unfit, joined, of_values, set};
use crate::IGNORE;
use crate::definition::presets;
use crate::definition::text::{ClassText, SetText, Text};

/// How far names are followed that stand for other names.
const DEEPEST: usize = 32;
/// Configurations that one may be made of, one after the other.
const MOST_BASES: usize = 16;

/// Data sets of MMSegmentation that are known here, by the preset that has their classes.
const KNOWN: [(&str, &str, bool); 5] = [
    ("CityscapesDataset", "bdd100k", false),
    ("BDD100KDataset", "bdd100k", false),
    ("PascalVOCDataset", "voc", false),
    ("ADE20KDataset", "ade20k", true),
    ("MapillaryDataset_v1", "mapillary", false),
];

pub(super) fn convert(
    path: &Path,
    text: &str,
    class_file: Option<&str>,
    root: Option<&Path>,
) -> Result<Conversion, Unfit> {
    let config = Config::read(path, text)?;
    let mut splits = Vec::new();
    for split in ["train", "val", "test"] {
        let loader = config.get(&format!("{split}_dataloader"));
        let dataset = loader
            .as_ref()
            .and_then(|loader| loader.get("dataset").cloned());
        let old = || config.get("data").and_then(|data| data.get(split).cloned());
        if let Some(dataset) = dataset.or_else(old).filter(|dataset| !dataset.is_none()) {
            let dataset = config.resolved(dataset, 0);
            splits.push((split, dataset));
        }
    }
    let Some((_, first)) = splits.first().cloned() else {
        let expected =
            "the data set of a split, as train_dataloader = dict(dataset=dict(...)) has it";
        return Err(Unfit::new("train_dataloader", expected, "none"));
    };
    let mut parts = Vec::new();
    for (split, dataset) in splits {
        let before = parts.len();
        add(split, &dataset, 1, &mut parts)?;
        // `test_dataloader = val_dataloader` is one split, not two.
        let same = |a: &Part, b: &Part| a.dataset == b.dataset;
        let seen = parts[..before].iter().any(|one| same(one, &parts[before]));
        if split == "test" && seen {
            parts.truncate(before);
        }
    }
    let of_class = class_file.map(ClassFile::read).unwrap_or_default();
    let mut roots: Vec<String> = parts
        .iter()
        .map(|part| part.text("data_root").unwrap_or_default())
        .collect();
    roots.dedup();
    let (root, common) = match (root, &roots[..]) {
        (Some(root), _) => (root.to_owned(), true),
        (None, [one]) => (one.into(), true),
        (None, _) => (".".into(), false),
    };
    let mut sets = Vec::new();
    for part in &parts {
        let mut set = part.set(&of_class)?;
        set.root = part.text("data_root").filter(|_| !common);
        sets.push(set);
    }
    let (masks, classes) = Part::innermost(&first).classes(&of_class)?;
    Ok(Conversion {
        text: Text {
            masks: Some(masks),
            classes: Some(classes),
            sets: Some(sets),
            ..Text::default()
        },
        root,
    })
}

/// A configuration over those that `_base_` names.
struct Config {
    /// The last one counts.
    texts: Vec<String>,
}

impl Config {
    fn read(path: &Path, text: &str) -> Result<Self, Unfit> {
        let mut texts = Vec::new();
        add_text(path, text.to_owned(), &mut texts)?;
        Ok(Self { texts })
    }

    /// What `name` is, dictionaries laid over those of the bases.
    fn get(&self, name: &str) -> Option<PythonValue> {
        let found = self
            .texts
            .iter()
            .filter_map(|text| PythonValue::assigned(text, name));
        let found = found.map(|value| self.resolved(value, 0));
        found.reduce(over)
    }

    /// `value` with what its names stand for, as far as that is known.
    fn resolved(&self, value: PythonValue, depth: usize) -> PythonValue {
        let inner = |value| self.resolved(value, depth + 1);
        match value {
            value if depth > DEEPEST => value,
            PythonValue::Dict(entries) => {
                let entries = entries.into_iter();
                PythonValue::Dict(entries.map(|(key, value)| (key, inner(value))).collect())
            }
            PythonValue::List(values) => PythonValue::List(values.into_iter().map(inner).collect()),
            PythonValue::Word(word) => {
                let name = word.strip_prefix("_base_.").unwrap_or(&word);
                let values = self.texts.iter().rev();
                let mut values = values.filter_map(|text| PythonValue::assigned(text, name));
                values.next().map_or(PythonValue::Word(word.clone()), inner)
            }
            other => other,
        }
    }
}

fn add_text(path: &Path, text: String, texts: &mut Vec<String>) -> Result<(), Unfit> {
    let bases = match PythonValue::assigned(&text, "_base_") {
        Some(PythonValue::Text(base)) => vec![base],
        Some(PythonValue::List(bases)) => {
            let names = bases.into_iter().filter_map(|base| match base {
                PythonValue::Text(base) => Some(base),
                _ => None,
            });
            names.collect()
        }
        _ => Vec::new(),
    };
    for base in bases {
        let file = path.parent().unwrap_or(Path::new("")).join(&base);
        if texts.len() >= MOST_BASES {
            let expected = format!("at most {MOST_BASES} configurations");
            return Err(Unfit::new("_base_", expected, "more"));
        }
        // Models and schedules say nothing of data, and may lie elsewhere.
        if let Ok(text) = halfseg_files::read_text(&file) {
            add_text(&file, text, texts)?;
        } else if base.contains("datasets") {
            let found = format!("`{base}`, which is not there");
            return Err(Unfit::new("_base_", "a configuration", found));
        }
    }
    texts.push(text);
    Ok(())
}

/// What MMEngine makes of a value in a base and one over it.
fn over(base: PythonValue, value: PythonValue) -> PythonValue {
    let (PythonValue::Dict(mut all), PythonValue::Dict(entries)) = (base, value.clone()) else {
        return value;
    };
    for (key, value) in entries {
        match all.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = over(known.clone(), value),
            None => all.push((key, value)),
        }
    }
    PythonValue::Dict(all)
}

/// A data set that pictures come from.
struct Part {
    split: String,
    dataset: PythonValue,
    repeat: usize,
}

/// Adds the data sets that `dataset` is made of.
fn add(
    split: &str,
    dataset: &PythonValue,
    repeat: usize,
    parts: &mut Vec<Part>,
) -> Result<(), Unfit> {
    let kind = text(dataset, "type").unwrap_or_default();
    let inner = |key: &str| {
        let missing = || Unfit::new(format!("{split}: {kind}"), format!("`{key}`"), "none");
        dataset.get(key).ok_or_else(missing)
    };
    match kind.as_str() {
        "RepeatDataset" => {
            let times = match dataset.get("times") {
                Some(PythonValue::Number(times)) => *times as usize,
                _ => 1,
            };
            add(split, inner("dataset")?, repeat * times.max(1), parts)
        }
        "ConcatDataset" => match inner("datasets")? {
            PythonValue::List(all) => all
                .iter()
                .try_for_each(|one| add(split, one, repeat, parts)),
            other => add(split, other, repeat, parts),
        },
        _ => {
            parts.push(Part {
                split: split.to_owned(),
                dataset: dataset.clone(),
                repeat,
            });
            Ok(())
        }
    }
}

fn text(value: &PythonValue, key: &str) -> Option<String> {
    match value.get(key)? {
        PythonValue::Text(text) => Some(text.clone()),
        _ => None,
    }
}

impl Part {
    /// The first data set within `dataset`.
    fn innermost(dataset: &PythonValue) -> Self {
        let mut parts = Vec::new();
        let found = add("", dataset, 1, &mut parts);
        let first = found.ok().and_then(|()| parts.into_iter().next());
        first.unwrap_or(Self {
            split: String::new(),
            dataset: dataset.clone(),
            repeat: 1,
        })
    }

    fn text(&self, key: &str) -> Option<String> {
        text(&self.dataset, key)
    }

    fn known(&self) -> Option<(&'static str, bool)> {
        let kind = self.text("type")?;
        let known = KNOWN.iter().find(|(name, ..)| *name == kind);
        known.map(|(_, preset, reduces)| (*preset, *reduces))
    }

    /// Whether value 0 is ignored and all others are one class lower.
    fn reduces_zero(&self, class_file: &ClassFile) -> bool {
        let of = |value: Option<&PythonValue>| match value {
            Some(PythonValue::Word(word)) => Some(word == "True"),
            _ => None,
        };
        let loads = |step: &&PythonValue| text(step, "type").as_deref() == Some("LoadAnnotations");
        let of_pipeline = match self.dataset.get("pipeline") {
            Some(PythonValue::List(steps)) => of(steps
                .iter()
                .find(loads)
                .and_then(|step| step.get("reduce_zero_label"))),
            _ => None,
        };
        let of_kind = self.known().map(|(_, reduces)| reduces);
        of(self.dataset.get("reduce_zero_label"))
            .or(of_pipeline)
            .or(class_file.reduces_zero)
            .or(of_kind)
            .unwrap_or(false)
    }

    /// Names, values and colours of the classes.
    fn classes(
        &self,
        class_file: &ClassFile,
    ) -> Result<(crate::definition::text::MasksText, Vec<ClassText>), Unfit> {
        let meta = self.dataset.get("metainfo");
        let given = |key| {
            strings(
                meta.and_then(|meta| meta.get(key))
                    .or(self.dataset.get(key)),
            )
        };
        let palette = |value: Option<&PythonValue>| colors(value);
        let (mut names, mut shown) = (class_file.classes.clone(), class_file.palette.clone());
        if names.is_empty()
            && let Some((preset, _)) = self.known()
        {
            let known = presets::text(preset)
                .and_then(|text| text.classes)
                .unwrap_or_default();
            let tables: Vec<_> = known.iter().map(ClassText::table).collect();
            names = tables.iter().map(|table| table.name.clone()).collect();
            shown = tables.iter().filter_map(|table| table.color).collect();
        }
        let all = names.clone();
        if let Some(own) = given("classes") {
            names = own;
        }
        if names.is_empty() {
            let kind = self.text("type").unwrap_or_else(|| "the data set".into());
            let expected = "metainfo = dict(classes=..., palette=...), or --classes with the Python file of its class";
            return Err(Unfit::new(format!("classes of {kind}"), expected, "none"));
        }
        let own_palette = palette(
            meta.and_then(|meta| meta.get("palette"))
                .or(self.dataset.get("palette")),
        );
        let reduces = self.reduces_zero(class_file);
        // Some of a data set's classes: the others are ignored.
        let renumbered = !all.is_empty() && all != names;
        if renumbered && let Some(other) = names.iter().find(|name| !all.contains(name)) {
            let expected = "classes of the data set's class alone";
            return Err(Unfit::new(
                "metainfo.classes",
                expected,
                format!("`{other}`"),
            ));
        }
        let place = |class: usize| match renumbered {
            true => names.iter().position(|name| Some(name) == all.get(class)),
            false => (class < names.len()).then_some(class),
        };
        let known = if renumbered { all.len() } else { names.len() };
        let class_of = |value: u16| {
            let value = usize::from(value);
            let value = match (reduces, value) {
                (true, 0) => IGNORE.into(),
                (true, 255) | (false, _) => value,
                (true, _) => value - 1,
            };
            match place(value) {
                Some(class) => class,
                None if value < known => IGNORE.into(),
                // What no class has is refused, like any other value.
                None if value != usize::from(IGNORE) => usize::MAX,
                None => value,
            }
        };
        let colors: Vec<[u8; 3]> = match own_palette {
            Some(own) => own,
            None if renumbered && shown.len() == all.len() => {
                let of = |name| all.iter().position(|known| known == name).map(|i| shown[i]);
                names.iter().filter_map(of).collect()
            }
            None => shown,
        };
        Ok(of_values(&names, &colors, class_of))
    }

    /// Where pictures and masks are.
    fn set(&self, class_file: &ClassFile) -> Result<SetText, Unfit> {
        let prefix = self.dataset.get("data_prefix");
        let of_prefix = |key: &str| prefix.and_then(|prefix| text(prefix, key));
        let images = of_prefix("img_path").or_else(|| self.text("img_dir"));
        let masks = of_prefix("seg_map_path").or_else(|| self.text("ann_dir"));
        let cityscapes = self.text("type").as_deref() == Some("CityscapesDataset");
        let ending = |key: &str, of_file: &Option<String>, of_city: &str, default: &str| {
            let default = if cityscapes { of_city } else { default };
            self.text(key)
                .or(of_file.clone())
                .unwrap_or_else(|| default.to_owned())
        };
        let of_image = ending(
            "img_suffix",
            &class_file.img_suffix,
            "_leftImg8bit.png",
            ".jpg",
        );
        let trains = "_gtFine_labelTrainIds.png";
        let of_mask = ending("seg_map_suffix", &class_file.seg_map_suffix, trains, ".png");
        let (Some(images), Some(masks)) = (images, masks) else {
            let expected =
                "folders of pictures and masks, data_prefix = dict(img_path=..., seg_map_path=...)";
            return Err(Unfit::new(
                format!("{}: data_prefix", self.split),
                expected,
                "none",
            ));
        };
        let list = self.text("ann_file").or_else(|| self.text("split"));
        let (image, mask) = match &list {
            Some(_) => ("{line}", "{line}"),
            None => ("**/*", "{1}/{2}"),
        };
        let mut set = set(
            &self.split,
            joined(&[&images, &format!("{image}{of_image}")]),
            joined(&[&masks, &format!("{mask}{of_mask}")]),
        );
        set.list = list.filter(|list| !list.is_empty());
        set.repeat = (self.repeat > 1).then_some(self.repeat);
        Ok(set)
    }
}
