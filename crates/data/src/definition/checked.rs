//! Whether the values of a definition make sense.

use std::collections::BTreeSet;
use std::path::Path;

use super::MOST_CLASSES;
use super::listing::{Set, Source, Split};
use super::pattern::{Pattern, Template};
use super::text::{ClassTable, Encoding, PicturesText, SetText, SplitText, Texts, Value};
use crate::{Classes, PictureFormat};

/// What is wrong with a value of a definition: its key, what it may be, and what it is.
pub(super) struct Wrong {
    pub key: String,
    pub expected: String,
    pub found: String,
}

impl Wrong {
    pub(super) fn new(
        key: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// Of a value whose words say all of it.
    pub(super) fn words(key: impl Into<String>, words: String) -> Self {
        let (expected, found) = match words.split_once(", found ") {
            Some((expected, found)) => (
                expected.trim_start_matches("expected ").to_owned(),
                found.to_owned(),
            ),
            None => (words, "something else".to_owned()),
        };
        Self::new(key, expected, found)
    }
}

pub(super) fn named_classes(tables: &[ClassTable]) -> Result<Classes, Wrong> {
    if !(2..=MOST_CLASSES).contains(&tables.len()) {
        let expected = format!(
            "2 to {MOST_CLASSES} classes (a mask of one thing has two: the thing, and the rest)"
        );
        return Err(Wrong::new("classes", expected, tables.len().to_string()));
    }
    let mut names = BTreeSet::new();
    for (class, table) in tables.iter().enumerate() {
        let key = format!("classes[{class}].name");
        if table.name.trim().is_empty() || table.name.chars().any(char::is_control) {
            return Err(Wrong::new(key, "a name", format!("{:?}", table.name)));
        }
        if !names.insert(&table.name) {
            return Err(Wrong::new(
                key,
                "a name that no other class has",
                format!("`{}`", table.name),
            ));
        }
    }
    Ok(Classes::new(tables.iter().map(|table| {
        let color = table.color.or(table
            .colors
            .as_ref()
            .and_then(|colors| colors.first().copied()));
        (table.name.clone(), color)
    })))
}

/// What pictures hold, and whether mean and standard deviation are known: those of RGB of 8 bits are ImageNet's
/// unless they are given.
pub(super) fn picture_format(text: &PicturesText) -> Result<(PictureFormat, bool), Wrong> {
    let (channels, bits) = (text.channels.unwrap_or(3), text.bits.unwrap_or(8));
    let (mean, std, known) = match (&text.mean, &text.std) {
        (Some(mean), Some(std)) => (mean.clone(), std.clone(), true),
        (None, None) if (channels, bits) == (3, 8) => {
            return Ok((PictureFormat::default(), true));
        }
        // Nothing is changed by them until they are known.
        (None, None) => (vec![0.0; channels], vec![1.0; channels], false),
        (mean, _) => {
            let key = if mean.is_none() { "mean" } else { "std" };
            let expected = "`mean` and `std` together, as `halfseg doctor` prints them";
            return Err(Wrong::new(format!("pictures.{key}"), expected, "none"));
        }
    };
    let format = PictureFormat::new(channels, bits, mean, std);
    let wrong = |[key, expected, found]: [String; 3]| {
        Wrong::new(format!("pictures.{key}"), expected, found)
    };
    Ok((format.map_err(wrong)?, known))
}

/// What means a class in a mask.
pub(super) fn class_values(
    encoding: Encoding,
    class: usize,
    table: &ClassTable,
) -> Result<Vec<Value>, Wrong> {
    let key = |name: &str| format!("classes[{class}].{name}");
    let colors = table.colors.clone().filter(|_| encoding == Encoding::Rgb);
    match encoding {
        Encoding::Index if table.values.is_some() => {
            let expected = "none with masks.encoding = \"index\", where a class's value is its place in the list (\"ids\" \
                            is for values of their own)";
            Err(Wrong::new(
                key("values"),
                expected,
                format!("{:?}", table.values.as_deref().unwrap_or_default()),
            ))
        }
        Encoding::Index => Ok(vec![Value::Number(class as u16)]),
        Encoding::Ids => match table.values.as_deref() {
            Some(values) if !values.is_empty() => {
                Ok(values.iter().map(|v| Value::Number(*v)).collect())
            }
            _ => Err(Wrong::new(
                key("values"),
                "the values of masks that mean this class, such as [7]",
                "none",
            )),
        },
        Encoding::Rgb if table.values.is_some() => Err(Wrong::new(
            key("values"),
            "none with masks.encoding = \"rgb\"",
            "some",
        )),
        Encoding::Rgb => match colors.or(table.color.map(|color| vec![color])) {
            Some(colors) if !colors.is_empty() => {
                Ok(colors.into_iter().map(Value::Color).collect())
            }
            _ => Err(Wrong::new(
                key("color"),
                "the colour of this class in masks, [R, G, B]",
                "none",
            )),
        },
    }
}

pub(super) fn a_set(key: &str, set: &SetText, root: &Path) -> Result<Set, Wrong> {
    let wrong = |name: &str, words: String| Wrong::words(format!("{key}.{name}"), words);
    let images = set.images.as_ref().map(Texts::list).unwrap_or_default();
    let source = match &set.list {
        None if images.is_empty() => {
            let expected = "a pattern of names of pictures, such as \"images/*.jpg\"";
            return Err(Wrong::new(format!("{key}.images"), expected, "none"));
        }
        None => {
            let patterns = images
                .iter()
                .map(|text| Pattern::new(text).map_err(|words| wrong("images", words)));
            Source::Patterns(patterns.collect::<Result<_, _>>()?)
        }
        Some(list) => {
            if images.len() > 1 {
                let expected =
                    "one template for the names in the list, such as \"images/{line}.jpg\"";
                return Err(Wrong::new(
                    format!("{key}.images"),
                    expected,
                    images.len().to_string(),
                ));
            }
            let text = images.first().map_or("{line}", String::as_str);
            let picture = Template::new(text, true).map_err(|words| wrong("images", words))?;
            if picture.is_fixed() {
                let expected = "a template with {line} in it, the name that the list gives";
                return Err(Wrong::new(
                    format!("{key}.images"),
                    expected,
                    format!("`{text}`"),
                ));
            }
            Source::List {
                file: list.into(),
                picture,
            }
        }
    };
    let listed = set.list.is_some();
    let masks = set.masks.as_ref().map(Texts::list).unwrap_or_default();
    let masks = masks.iter().map(|text| {
        let template = Template::new(text, listed).map_err(|words| wrong("masks", words))?;
        if template.is_fixed() {
            let expected = "a template such as \"masks/{stem}.png\", for a mask of each picture";
            return Err(Wrong::new(
                format!("{key}.masks"),
                expected,
                format!("`{text}`"),
            ));
        }
        let wildcards = match &source {
            Source::Patterns(patterns) => {
                patterns.iter().map(Pattern::wildcards).min().unwrap_or(0)
            }
            Source::List { .. } => 0,
        };
        if template.captures() > wildcards {
            let expected = format!("the number of one of {wildcards} wildcards of images");
            return Err(Wrong::new(
                format!("{key}.masks"),
                expected,
                format!("{{{}}}", template.captures()),
            ));
        }
        Ok(template)
    });
    let masks = masks.collect::<Result<Vec<_>, _>>()?;
    let split = match &set.split {
        SplitText::Name(name) => Split::Name(split_name(key, name)?),
        SplitText::Shares(shares) => {
            let sum: f64 = shares.values().sum();
            if shares.is_empty()
                || shares.values().any(|share| share.is_nan() || *share <= 0.0)
                || sum > 1.0 + 1e-9
            {
                let expected =
                    "shares above 0 whose sum is at most 1, such as { train = 0.8, val = 0.2 }";
                return Err(Wrong::new(
                    format!("{key}.split"),
                    expected,
                    format!("{shares:?}"),
                ));
            }
            let named = shares
                .iter()
                .map(|(name, share)| Ok((split_name(key, name)?, *share)));
            Split::Shares {
                shares: named.collect::<Result<_, Wrong>>()?,
                seed: set.seed.unwrap_or(0),
            }
        }
    };
    if set.seed.is_some() && matches!(split, Split::Name(_)) {
        let expected = "none, since nothing is drawn: it belongs to a split with shares";
        return Err(Wrong::new(format!("{key}.seed"), expected, "one"));
    }
    let exclude = set.exclude.as_ref().map(Texts::list).unwrap_or_default();
    if listed && !exclude.is_empty() {
        let expected = "none with `list`, which names every picture";
        return Err(Wrong::new(format!("{key}.exclude"), expected, "one"));
    }
    let exclude = exclude
        .iter()
        .map(|text| Pattern::new(text).map_err(|words| wrong("exclude", words)));
    let exclude = exclude.collect::<Result<_, _>>()?;
    let repeat = set.repeat.unwrap_or(1);
    if !(1..=1000).contains(&repeat) {
        return Err(Wrong::new(
            format!("{key}.repeat"),
            "1 to 1000",
            repeat.to_string(),
        ));
    }
    Ok(Set {
        key: key.to_owned(),
        root: root.join(set.root.as_deref().unwrap_or("")),
        source,
        split,
        masks,
        exclude,
        repeat,
    })
}

fn split_name(key: &str, name: &str) -> Result<String, Wrong> {
    match name.trim().is_empty() || name.chars().any(char::is_control) {
        true => Err(Wrong::new(
            format!("{key}.split"),
            "a name such as \"train\"",
            format!("{name:?}"),
        )),
        false => Ok(name.to_owned()),
    }
}
