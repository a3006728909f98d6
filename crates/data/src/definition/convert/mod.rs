//! Definitions from the descriptions that other programs have of their data sets.

mod class_file;
mod mmseg;
mod ultralytics;
mod yaml;

use std::path::{Path, PathBuf};

use super::text::{
    ClassTable, ClassText, Encoding, MasksText, SetText, SplitText, Text, Texts, Value,
};
use crate::{DataError, IGNORE};

/// What another program's description of a data set says.
#[derive(Clone, Debug)]
pub struct Conversion {
    text: Text,
    root: PathBuf,
}

impl Conversion {
    /// The folder that the data are in, as the description has it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The definition, as a file holds it, of the data set in the folder `root`.
    pub fn to_toml(&self, root: &Path) -> String {
        let text = Text {
            root: Some(root.display().to_string()),
            ..self.text.clone()
        };
        toml::to_string(&text).expect("texts and numbers are TOML")
    }
}

/// Reads how another program describes its data set: a `data.yaml` of Ultralytics, with masks as pictures, or the
/// configuration of MMSegmentation (1.x or 0.x), Python that is read and not run. Of classes that the configuration
/// does not name, `classes` is the file with the data set's class and its `METAINFO`. `root` is the folder of the
/// data, in place of the one that the description names.
///
/// # Errors
/// [`DataError::Description`] for what cannot be read, or says what a [`Definition`](crate::Definition) cannot.
pub fn convert(
    description: &Path,
    classes: Option<&Path>,
    root: Option<&Path>,
) -> Result<Conversion, DataError> {
    let read =
        |path: &Path| halfseg_files::read_text(path).map_err(|error| DataError::io(path, error));
    let text = read(description)?;
    let ending = description
        .extension()
        .unwrap_or_default()
        .to_string_lossy();
    let converted = match ending.to_ascii_lowercase().as_str() {
        "yaml" | "yml" => ultralytics::convert(description, &text, root),
        "py" => {
            let classes = classes.map(read).transpose()?;
            mmseg::convert(description, &text, classes.as_deref(), root)
        }
        _ => Err(Unfit::new(
            "its name",
            "data.yaml of Ultralytics, or a configuration of MMSegmentation that ends with .py",
            format!("`.{ending}`"),
        )),
    };
    converted.map_err(|unfit| DataError::Description {
        path: description.to_owned(),
        key: unfit.key,
        expected: unfit.expected,
        found: unfit.found,
    })
}

/// What of a description cannot be converted.
#[derive(Debug)]
struct Unfit {
    key: String,
    expected: String,
    found: String,
}

impl Unfit {
    fn new(key: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// Classes whose values in masks are what `class_of` says of each: a class, 255 for what is ignored, or something else,
/// which is refused.
fn of_values(
    names: &[String],
    colors: &[[u8; 3]],
    class_of: impl Fn(u16) -> usize,
) -> (MasksText, Vec<ClassText>) {
    let all = 0..=u16::from(u8::MAX);
    let values = |class: usize| {
        all.clone()
            .filter(|v| class_of(*v) == class)
            .collect::<Vec<_>>()
    };
    let ignored = values(IGNORE.into());
    let is_index = (0..names.len()).all(|class| values(class) == [class as u16]);
    let classes = names.iter().enumerate().map(|(class, name)| {
        ClassText::Class(ClassTable {
            name: name.clone(),
            color: colors.get(class).copied(),
            values: (!is_index).then(|| values(class)),
            colors: None,
        })
    });
    let masks = MasksText {
        encoding: if is_index {
            Encoding::Index
        } else {
            Encoding::Ids
        },
        ignore: Some(ignored.into_iter().map(Value::Number).collect()),
        ..MasksText::default()
    };
    (masks, classes.collect())
}

/// Pictures and masks of a split.
fn set(split: &str, images: String, masks: String) -> SetText {
    SetText {
        split: SplitText::Name(split.to_owned()),
        seed: None,
        root: None,
        list: None,
        images: Some(Texts::One(images)),
        masks: Some(Texts::One(masks)),
        exclude: None,
        repeat: None,
    }
}

/// Parts of a path with a slash between them, without those that say nothing.
fn joined(parts: &[&str]) -> String {
    let parts = parts.iter().flat_map(|part| part.split('/'));
    let parts: Vec<_> = parts
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    parts.join("/")
}
