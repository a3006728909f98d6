//! Data sets of one's own, defined by a TOML file.

mod checked;
mod convert;
mod facts;
mod finding;
mod init;
mod listing;
mod mapping;
mod pattern;
mod presets;
mod relations;
mod report;
mod samples;
mod survey;
mod tables;
mod text;

use std::collections::BTreeSet;
use std::path::Path;

pub use convert::{Conversion, convert};
pub use finding::{Finding, Kind, Severity};
pub use init::propose;
pub use report::{Report, SplitReport};
pub use samples::DefinedData;
pub use survey::SurveyOptions;

use crate::{Classes, DataError, IGNORE, PictureFormat};
use checked::{Wrong, a_set, class_values, named_classes, picture_format};
use listing::Set;
use mapping::Mapping;
use text::{Encoding, Text, Value};

/// Classes that a data set may have: ids up to 253, since 255 is ignored.
const MOST_CLASSES: usize = 254;

/// A data set of pictures and masks in any folders: what its classes are, how masks name them, and which
/// pictures belong to which split.
///
/// ```
/// use halfseg_data::Definition;
///
/// let text = r#"
///     root = "/data/cracks"
///     classes = ["wall", "crack"]
///     [[sets]]
///     split = { train = 0.8, val = 0.2 }
///     images = "images/*.jpg"
///     masks = "masks/{stem}.png"
/// "#;
/// let definition = Definition::parse(text, "cracks.toml", "".as_ref())?;
/// assert_eq!(definition.classes().names(), ["wall", "crack"]);
/// assert_eq!(definition.splits(), ["train", "val"]);
/// # Ok::<(), halfseg_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Definition {
    origin: String,
    classes: Classes,
    format: PictureFormat,
    /// Whether mean and standard deviation of the format are those of the pictures.
    is_normalized: bool,
    mapping: Mapping,
    sets: Vec<Set>,
    accepted: Vec<Kind>,
    text: String,
}

impl Definition {
    /// Reads the file at `path`; its `root` is relative to the file's folder.
    ///
    /// # Errors
    /// A file that cannot be read, and those of [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let text = halfseg_files::read_text(path).map_err(|error| DataError::io(path, error))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, &path.display().to_string(), folder)
    }

    /// Reads a definition; `origin` names it in messages, and `root` is relative to `folder`.
    ///
    /// # Errors
    /// Text that is no TOML or has unknown keys, and values that make no sense, by their keys.
    pub fn parse(text: &str, origin: &str, folder: &Path) -> Result<Self, DataError> {
        let own = read_text(text, origin)?;
        Self::of(own, text, origin, folder).map_err(|wrong| DataError::Definition {
            origin: origin.to_owned(),
            key: wrong.key,
            expected: wrong.expected,
            found: wrong.found,
        })
    }

    /// The data set `name` of [`presets`](Self::presets) in the folder `root`.
    ///
    /// # Errors
    /// A name that is none of them.
    pub fn preset(name: &str, root: &Path) -> Result<Self, DataError> {
        let text = Self::preset_text(name, root)?;
        Self::parse(&text, &format!("the preset {name}"), Path::new(""))
    }

    /// What a file for [`preset`](Self::preset) holds.
    ///
    /// # Errors
    /// As there.
    pub fn preset_text(name: &str, root: &Path) -> Result<String, DataError> {
        if presets::text(name).is_none() {
            return Err(DataError::Definition {
                origin: "a definition".to_owned(),
                key: "preset".to_owned(),
                expected: presets::NAMES.join(", "),
                found: name.to_owned(),
            });
        }
        let text = Text {
            preset: Some(name.to_owned()),
            root: Some(root.display().to_string()),
            ..Text::default()
        };
        Ok(toml::to_string(&text).expect("two texts are TOML"))
    }

    /// The splits of a folder in the layout of Cityscapes, which need no definition: for looking at them. Maps of
    /// trainIds have as many `classes` as the network.
    ///
    /// # Errors
    /// A number of classes that no data set has.
    pub fn of_cityscapes(root: &Path, splits: &[&str], classes: usize) -> Result<Self, DataError> {
        let text = presets::cityscapes_tree(root, splits, classes);
        let text = toml::to_string(&text).expect("texts and numbers are TOML");
        Self::parse(&text, &root.display().to_string(), Path::new(""))
    }

    /// Names of the published data sets whose layout is known.
    pub fn presets() -> &'static [&'static str] {
        &presets::NAMES
    }

    /// `text`, a definition, for data in the folder `root`.
    ///
    /// # Errors
    /// Text that is no TOML or has unknown keys.
    pub fn moved(text: &str, root: &Path) -> Result<String, DataError> {
        let mut own: Text = read_text(text, "the definition")?;
        own.root = Some(root.display().to_string());
        Ok(toml::to_string(&own).expect("it was read from TOML"))
    }

    fn of(own: Text, written: &str, origin: &str, folder: &Path) -> Result<Self, Wrong> {
        let base = match own.preset.as_deref() {
            None => Text::default(),
            Some(name) => presets::text(name).ok_or_else(|| {
                Wrong::new("preset", presets::NAMES.join(", "), format!("`{name}`"))
            })?,
        };
        let root = folder.join(own.root.as_deref().unwrap_or(""));
        let pictures = own.pictures.or(base.pictures).unwrap_or_default();
        let (format, is_normalized) = picture_format(&pictures)?;
        let masks = own.masks.or(base.masks).unwrap_or_default();
        let tables = own.classes.or(base.classes).unwrap_or_default();
        let tables: Vec<_> = tables.iter().map(text::ClassText::table).collect();
        let classes = named_classes(&tables)?;
        let ignored = masks
            .ignore
            .clone()
            .unwrap_or_else(|| match masks.encoding {
                Encoding::Index => vec![Value::Number(IGNORE.into())],
                _ => Vec::new(),
            });
        let mut values = Vec::new();
        for (class, table) in tables.iter().enumerate() {
            values.push(class_values(masks.encoding, class, table)?);
        }
        if masks.tolerance > 255 {
            return Err(Wrong::new(
                "masks.tolerance",
                "0 to 255",
                masks.tolerance.to_string(),
            ));
        }
        let mapping = Mapping::new(
            masks.encoding,
            &values,
            &ignored,
            masks.other,
            masks.tolerance,
        );
        let mapping = mapping.map_err(|(class, words)| {
            let key = class.map_or("masks.ignore".to_owned(), |class| {
                format!("classes[{class}]")
            });
            Wrong::words(key, words)
        })?;
        let written_sets = own.sets.or(base.sets).unwrap_or_default();
        if written_sets.is_empty() {
            return Err(Wrong::new(
                "sets",
                "at least one set of pictures, [[sets]]",
                "none",
            ));
        }
        let mut sets = Vec::new();
        for (place, set) in written_sets.iter().enumerate() {
            sets.push(a_set(&format!("sets[{place}]"), set, &root)?);
        }
        let accepted = own.accept.iter().map(|name| {
            let kind = Kind::ALL.iter().find(|kind| kind.name() == name);
            kind.copied().ok_or_else(|| {
                let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                Wrong::new("accept", names.join(", "), format!("`{name}`"))
            })
        });
        Ok(Self {
            origin: origin.to_owned(),
            classes,
            format,
            is_normalized,
            mapping,
            sets,
            accepted: accepted.collect::<Result<_, _>>()?,
            text: written.to_owned(),
        })
    }

    /// Where it was read.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Its text, as a checkpoint carries it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What its classes are called and shown in.
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// What its pictures hold. Where mean and standard deviation are not given, and pictures are no RGB of 8 bits,
    /// these are 0 and 1: [`DefinedData::open`] takes those of the pictures.
    pub fn format(&self) -> &PictureFormat {
        &self.format
    }

    /// Whether mean and standard deviation of the pictures are known: given, or ImageNet's for RGB of 8 bits.
    pub fn is_normalized(&self) -> bool {
        self.is_normalized
    }

    /// The names of its splits, sorted.
    pub fn splits(&self) -> Vec<&str> {
        let names: BTreeSet<_> = self.sets.iter().flat_map(|set| set.split.names()).collect();
        names.into_iter().collect()
    }
}

fn read_text(text: &str, origin: &str) -> Result<Text, DataError> {
    toml::from_str(text).map_err(|error| DataError::DefinitionText {
        origin: origin.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })
}

/// Whether `path` names a definition rather than a folder.
pub fn is_definition(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("toml"))
}

/// A folder of these files, for a definition whose paths are relative to it.
fn slashed(path: &Path) -> Option<String> {
    let parts = path.iter().map(|part| part.to_str());
    Some(parts.collect::<Option<Vec<_>>>()?.join("/"))
}
