//! A data set's definition as it is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One text, or a list of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "toml::Value")]
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    pub(super) fn list(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

/// `value` as one of several kinds, of which a derived reader would not say what it lacks.
fn read<T: serde::de::DeserializeOwned>(value: toml::Value) -> Result<T, String> {
    let read = value.try_into();
    read.map_err(|error: toml::de::Error| error.message().to_owned())
}

impl TryFrom<toml::Value> for Texts {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => Ok(Self::One(text)),
            toml::Value::Array(_) => read(value).map(Self::Many),
            other => Err(format!(
                "expected a text or a list of texts, found `{other}`"
            )),
        }
    }
}

impl TryFrom<toml::Value> for Value {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Array(_) => read(value).map(Self::Color),
            _ => read(value).map(Self::Number),
        }
    }
}

impl TryFrom<toml::Value> for ClassText {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(name) => Ok(Self::Name(name)),
            _ => read(value).map(Self::Class),
        }
    }
}

impl TryFrom<toml::Value> for SplitText {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(name) => Ok(Self::Name(name)),
            _ => read(value).map(Self::Shares),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Text {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures: Option<PicturesText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masks: Option<MasksText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<ClassText>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sets: Option<Vec<SetText>>,
}

/// What pictures hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PicturesText {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
}

/// How masks say which class a pixel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    /// By its place in the list of classes.
    #[default]
    Index,
    /// By values that each class lists.
    Ids,
    /// By colours.
    Rgb,
}

/// What is done with values that no class has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Other {
    #[default]
    Refuse,
    Ignore,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MasksText {
    #[serde(default)]
    pub encoding: Encoding,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore: Option<Vec<Value>>,
    #[serde(default)]
    pub other: Other,
    #[serde(default)]
    pub tolerance: u16,
}

/// A value or a colour of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "toml::Value")]
pub(super) enum Value {
    Number(u16),
    Color([u8; 3]),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "toml::Value")]
pub(super) enum ClassText {
    Name(String),
    Class(ClassTable),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClassTable {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<[u8; 3]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<u16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colors: Option<Vec<[u8; 3]>>,
}

impl ClassText {
    pub(super) fn table(&self) -> ClassTable {
        match self {
            Self::Class(table) => table.clone(),
            Self::Name(name) => ClassTable {
                name: name.clone(),
                ..ClassTable::default()
            },
        }
    }
}

/// A split's name, or shares of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "toml::Value")]
pub(super) enum SplitText {
    Name(String),
    Shares(BTreeMap<String, f64>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetText {
    pub split: SplitText,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Texts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masks: Option<Texts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Texts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<usize>,
}
