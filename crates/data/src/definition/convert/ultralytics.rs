//! `data.yaml` of Ultralytics, as its `SemanticDataset` reads it (`ultralytics/data/dataset.py` and `utils.py` of
//! 8.4): masks of one channel in a folder `masks_dir`, named after pictures below a folder `images`.

use std::path::{Path, PathBuf};

use super::yaml::{Yaml, parse};
use super::{Conversion, Unfit, joined, of_values, set};
use crate::IGNORE;
use crate::definition::text::{PicturesText, SetText, Text};

/// Endings of pictures that are read here.
const PICTURES: &str = "*.{jpg,jpeg,png,tif,tiff,JPG,JPEG,PNG,TIF,TIFF}";

pub(super) fn convert(path: &Path, text: &str, root: Option<&Path>) -> Result<Conversion, Unfit> {
    let entries = parse(text).map_err(|found| Unfit::new("its text", "YAML of keys", found))?;
    let get = |name: &str| {
        let entry = entries.iter().rev().find(|(key, _)| key == name);
        entry
            .map(|(_, value)| value)
            .filter(|value| **value != Yaml::Text(String::new()))
    };
    let names = names(get("names"), get("nc"))?;
    let root = match root {
        Some(root) => root.to_owned(),
        None => folder(path, get("path")),
    };
    let masks = match get("masks_dir") {
        Some(Yaml::Text(folder)) => folder.clone(),
        None if root.join("masks").is_dir() => "masks".to_owned(),
        _ => {
            let expected = "the folder of masks, pictures whose values are classes; polygons (labels/*.txt) are not read: \
                            draw them into masks first";
            return Err(Unfit::new("masks_dir", expected, "none"));
        }
    };
    let classes = mapping(get("label_mapping"))?;
    let (masks_text, classes) = of_values(&names, &[], classes);
    let mut sets = Vec::new();
    for split in ["train", "val", "test"] {
        let folders = match get(split) {
            None => continue,
            Some(Yaml::Text(folder)) => std::slice::from_ref(folder),
            Some(Yaml::List(folders)) => folders,
            Some(Yaml::Table(_)) => {
                return Err(Unfit::new(
                    split,
                    "a folder or a list of folders",
                    "a table",
                ));
            }
        };
        for folder in folders {
            sets.push(set_of(split, folder, &root, &masks)?);
        }
    }
    let pictures = match get("channels") {
        None => None,
        Some(Yaml::Text(channels)) => {
            let wrong = || Unfit::new("channels", "a number", format!("`{channels}`"));
            let channels = channels.parse().map_err(|_| wrong())?;
            (channels != 3).then(|| PicturesText {
                channels: Some(channels),
                ..PicturesText::default()
            })
        }
        Some(_) => return Err(Unfit::new("channels", "a number", "several")),
    };
    Ok(Conversion {
        text: Text {
            pictures,
            masks: Some(masks_text),
            classes: Some(classes),
            sets: Some(sets),
            ..Text::default()
        },
        root,
    })
}

/// Names of classes, in a list or by number; `class_0` and so on where there is only a number of them.
fn names(names: Option<&Yaml>, count: Option<&Yaml>) -> Result<Vec<String>, Unfit> {
    let count = match count {
        Some(Yaml::Text(count)) => {
            let wrong = |_| Unfit::new("nc", "a number of classes", format!("`{count}`"));
            Some(count.parse::<usize>().map_err(wrong)?)
        }
        _ => None,
    };
    let names = match (names, count) {
        (Some(Yaml::List(names)), _) => names.clone(),
        (Some(Yaml::Table(entries)), _) => {
            let mut numbered = Vec::new();
            for (number, name) in entries {
                let wrong = |_| Unfit::new("names", "names by number", format!("`{number}`"));
                numbered.push((number.parse::<usize>().map_err(wrong)?, name.clone()));
            }
            numbered.sort();
            if !numbered
                .iter()
                .map(|(number, _)| *number)
                .eq(0..numbered.len())
            {
                let found = format!(
                    "{} names up to {}",
                    entries.len(),
                    numbered.last().map_or(0, |n| n.0)
                );
                return Err(Unfit::new("names", "a name for each number from 0", found));
            }
            numbered.into_iter().map(|(_, name)| name).collect()
        }
        (None, Some(count)) => (0..count).map(|i| format!("class_{i}")).collect(),
        _ => return Err(Unfit::new("names", "names of classes", "none")),
    };
    match count.filter(|count| *count != names.len()) {
        Some(count) => {
            let expected = format!("as many as nc says, {count}");
            Err(Unfit::new("names", expected, names.len().to_string()))
        }
        None => Ok(names),
    }
}

/// The data set's folder: relative to the file's where it is there, else as it is written.
fn folder(path: &Path, named: Option<&Yaml>) -> PathBuf {
    let beside = path.parent().unwrap_or(Path::new("")).to_owned();
    match named {
        Some(Yaml::Text(named)) => {
            let [below, inside] = [beside.join(named), beside.clone()];
            match (below.is_dir(), inside.file_name()) {
                (true, _) => below,
                // The file was unpacked together with the data.
                (false, name) if name == Path::new(named).file_name() => inside,
                _ => named.into(),
            }
        }
        _ => beside,
    }
}

/// The class of each value: its own but for those that are mapped.
fn mapping(mapping: Option<&Yaml>) -> Result<impl Fn(u16) -> usize, Unfit> {
    let mut classes: Vec<usize> = (0..=IGNORE.into()).collect();
    let entries = match mapping {
        None => &[][..],
        Some(Yaml::Table(entries)) => entries,
        Some(_) => return Err(Unfit::new("label_mapping", "a table", "something else")),
    };
    for (from, to) in entries {
        let wrong = || {
            Unfit::new(
                "label_mapping",
                "numbers, or ignore_label",
                format!("`{from}: {to}`"),
            )
        };
        let from: i64 = from.parse().map_err(|_| wrong())?;
        let to = match to.as_str() {
            "ignore_label" | "null" | "~" | "" => IGNORE.into(),
            number => number.parse().map_err(|_| wrong())?,
        };
        // No mask of 8 bits has others.
        if let Some(class) = usize::try_from(from)
            .ok()
            .and_then(|from| classes.get_mut(from))
        {
            *class = to;
        }
    }
    Ok(move |value| classes[usize::from(value)])
}

fn set_of(split: &str, folder: &str, root: &Path, masks: &str) -> Result<SetText, Unfit> {
    if folder.ends_with(".txt") {
        let expected = "a folder; of a list, which names pictures here and cannot name masks, write the set by hand";
        return Err(Unfit::new(split, expected, format!("`{folder}`")));
    }
    let below = Path::new(folder)
        .strip_prefix(root)
        .unwrap_or(Path::new(folder));
    let below = joined(&[&below.to_string_lossy().replace('\\', "/")]);
    // Exports name folders from a folder below the root.
    let below = below.strip_prefix("../").unwrap_or(&below);
    let parts: Vec<&str> = below.split('/').collect();
    let Some(images) = parts.iter().rposition(|part| *part == "images") else {
        let expected = "a folder `images` on the way, in whose place masks_dir stands";
        return Err(Unfit::new(split, expected, format!("`{folder}`")));
    };
    let mut of_masks = parts.clone();
    of_masks[images] = masks;
    let of_masks = joined(&of_masks);
    Ok(set(
        split,
        format!("{below}/**/{PICTURES}"),
        format!("{of_masks}/{{dir}}/{{stem}}.png"),
    ))
}
