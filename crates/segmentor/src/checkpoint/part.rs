//! A part of a configuration, read by its keys.

use std::fmt::Display;

use halfseg_files::PythonValue as Value;

/// A setting that this crate's networks do not have, or that a file's tensors contradict.
#[derive(Debug, PartialEq)]
pub(crate) struct Unsupported {
    pub(crate) key: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// A part of a configuration, with its name.
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a Value,
}

impl<'a> Part<'a> {
    pub(super) fn new(name: &'a str, value: &'a Value) -> Self {
        Self { name, value }
    }

    pub(super) fn unsupported(&self, key: &str, expected: &str, found: &str) -> Unsupported {
        Unsupported {
            key: format!("{}.{key}", self.name),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    /// A setting as Python writes it.
    pub(super) fn text(&self, key: &str, default: &str) -> String {
        let value = self.value.get(key).map(Value::to_string);
        value.unwrap_or_else(|| default.to_owned())
    }

    /// The name of the class, without the registry that it is from.
    pub(super) fn class(&self) -> Option<String> {
        match self.value.get("type") {
            Some(Value::Text(class) | Value::Word(class)) => {
                class.rsplit('.').next().map(str::to_owned)
            }
            _ => None,
        }
    }

    /// Whether a setting, or its default, is what is expected.
    pub(super) fn is(&self, key: &str, expected: &str, default: &str) -> Result<(), Unsupported> {
        let found = match (key, self.class()) {
            ("type", Some(class)) => format!("'{class}'"),
            ("type", None) => expected.to_owned(),
            _ => self.text(key, default),
        };
        match found == expected {
            true => Ok(()),
            false => Err(self.unsupported(key, expected, &found)),
        }
    }

    /// Whether a setting is what the tensors show.
    pub(super) fn agrees<T: PartialEq + Display>(
        &self,
        key: &str,
        found: T,
        shown: T,
    ) -> Result<(), Unsupported> {
        match found == shown {
            true => Ok(()),
            false => Err(self.unsupported(
                key,
                &format!("{shown}, as the tensors show"),
                &found.to_string(),
            )),
        }
    }

    /// Whether there are as many numbers as the tensors show.
    pub(super) fn as_many(
        &self,
        key: &str,
        numbers: &[usize],
        shown: usize,
    ) -> Result<(), Unsupported> {
        match numbers.len() == shown {
            true => Ok(()),
            false => Err(self.unsupported(
                key,
                &format!("{shown} numbers, as the tensors show"),
                &format!("{numbers:?}"),
            )),
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, Unsupported> {
        match self
            .text(key, if default { "True" } else { "False" })
            .as_str()
        {
            "True" => Ok(true),
            "False" => Ok(false),
            found => Err(self.unsupported(key, "True or False", found)),
        }
    }

    /// A whole number from 0 on.
    pub(super) fn number(&self, key: &str, default: usize) -> Result<usize, Unsupported> {
        match self.value.get(key) {
            None => Ok(default),
            Some(&Value::Number(n)) if (0.0..=65_536.0).contains(&n) && n.fract() == 0.0 => {
                Ok(n as usize)
            }
            Some(other) => Err(self.unsupported(key, "a number up to 65536", &other.to_string())),
        }
    }

    pub(super) fn numbers(&self, key: &str, default: &[usize]) -> Result<Vec<usize>, Unsupported> {
        let whole = |value: &Value| match *value {
            Value::Number(n) if (1.0..=65_536.0).contains(&n) && n.fract() == 0.0 => {
                Some(n as usize)
            }
            _ => None,
        };
        let numbers = match self.value.get(key) {
            None => return Ok(default.to_owned()),
            Some(Value::List(values)) => values.iter().map(whole).collect(),
            Some(one) => whole(one).map(|n| vec![n]),
        };
        numbers.ok_or_else(|| self.unsupported(key, "numbers from 1 to 65536", &self.text(key, "")))
    }

    /// Stages, 0 to 3.
    pub(super) fn stages(&self, key: &str, default: &[usize]) -> Result<Vec<usize>, Unsupported> {
        let stage = |value: &Value| match value {
            Value::Number(n) => [0, 1, 2, 3].into_iter().find(|stage| *stage as f64 == *n),
            _ => None,
        };
        let stages = match self.value.get(key) {
            None => return Ok(default.to_owned()),
            Some(Value::List(values)) => values.iter().map(stage).collect(),
            Some(_) => None,
        };
        stages.ok_or_else(|| self.unsupported(key, "stages, 0 to 3", &self.text(key, "")))
    }

    /// The stage whose map a head reads: `in_index` counts those that the backbone gives, from the end
    /// if it is negative.
    pub(super) fn stage(&self, stages: &[usize]) -> Result<usize, Unsupported> {
        let found = self.text("in_index", "-1");
        let index = found.parse::<i64>().ok();
        let index = index.map(|index| match index < 0 {
            true => index + stages.len() as i64,
            false => index,
        });
        let stage = index.and_then(|index| stages.get(usize::try_from(index).ok()?).copied());
        stage.ok_or_else(|| {
            let expected = format!("one of {} maps of the backbone", stages.len());
            self.unsupported("in_index", &expected, &found)
        })
    }

    /// Whether normalisations are those that this crate has.
    pub(super) fn norm(&self) -> Result<(), Unsupported> {
        let Some(norm) = self.value.get("norm_cfg").filter(|norm| !norm.is_none()) else {
            return Ok(());
        };
        let key = format!("{}.norm_cfg", self.name);
        let norm = Part::new(&key, norm);
        let class = norm.class().unwrap_or_else(|| "BN".to_owned());
        if !["BN", "BN2d", "SyncBN", "MMSyncBN"].contains(&class.as_str()) {
            return Err(norm.unsupported("type", "BN or SyncBN", &class));
        }
        match norm.value.get("eps") {
            None | Some(Value::Number(1e-5)) => Ok(()),
            Some(found) => Err(norm.unsupported("eps", "1e-05", &found.to_string())),
        }
    }
}
