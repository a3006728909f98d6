//! Policies as JSON files.

use std::io::Write as _;
use std::path::Path;

use halfseg_files::{parse_json, read_text, write_atomically};
use serde_json::Value;

use super::Policy;
use super::bind::nearest;
use crate::{AmpError, Op, Precision};

impl Policy {
    /// Reads a policy from a JSON file.
    ///
    /// ```json
    /// {
    ///   "compute": "f16",
    ///   "ops": { "interpolate": "f16" },
    ///   "modules": { "decode_head.conv_seg": "f32" }
    /// }
    /// ```
    ///
    /// `compute` must be there: without it the policy would do nothing.
    ///
    /// # Errors
    ///
    /// [`AmpError::Io`] if the file cannot be read, [`AmpError::Parse`] if it is no JSON object or has a key twice,
    /// [`AmpError::UnknownKey`] with the nearest valid name for a key or an operation that does
    /// not exist, [`AmpError::Value`] for what is no precision.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, AmpError> {
        let path = path.as_ref();
        let text = read_text(path).map_err(|source| AmpError::Io {
            path: path.to_owned(),
            source,
        })?;
        let parse = |source| AmpError::Parse {
            path: path.to_owned(),
            source,
        };
        let object: serde_json::Map<String, Value> = parse_json(&text).map_err(parse)?;
        check_file(path, &object)?;
        serde_json::from_value(object.into()).map_err(parse)
    }

    /// Writes the policy to a JSON file, which is complete or as it was before.
    ///
    /// # Errors
    ///
    /// [`AmpError::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), AmpError> {
        let path = path.as_ref();
        let text = serde_json::to_string_pretty(self).expect("a policy is always valid JSON");
        write_atomically(path, |out| writeln!(out, "{text}")).map_err(|source| AmpError::Io {
            path: path.to_owned(),
            source,
        })
    }
}

/// The keys of a policy file.
const KEYS: [&str; 5] = ["compute", "param", "output", "ops", "modules"];

/// Finds the first key or value of a policy file that serde would refuse with less help.
fn check_file(path: &Path, object: &serde_json::Map<String, Value>) -> Result<(), AmpError> {
    let value = |key: String, expected: &'static str, found: String| AmpError::Value {
        path: path.to_owned(),
        key,
        expected,
        found,
    };
    let precision = |key: String, found: &Value| {
        let known = found
            .as_str()
            .is_some_and(|name| Precision::ALL.iter().any(|p| p.to_string() == name));
        let refused = || value(key, PRECISIONS, format!("`{found}`"));
        known.then_some(()).ok_or_else(refused)
    };
    let unknown = |key: String, nearest: String| AmpError::UnknownKey {
        path: path.to_owned(),
        key,
        nearest,
    };
    let is_op = |name: &str| serde_json::from_value::<Op>(Value::String(name.to_owned())).is_ok();
    let ops: Vec<String> = Op::ALL.iter().map(Op::to_string).collect();
    for (key, found) in object {
        match (key.as_str(), found) {
            ("compute" | "param" | "output", found) => precision(key.clone(), found)?,
            ("ops" | "modules", Value::Object(entries)) => {
                for (name, found) in entries {
                    if key == "ops" && !is_op(name) {
                        let nearest = nearest(name, ops.iter().map(String::as_str));
                        return Err(unknown(format!("ops.{name}"), format!("ops.{nearest}")));
                    }
                    precision(format!("{key}.{name}"), found)?;
                }
            }
            ("ops" | "modules", found) => {
                let expected = "an object of names with precisions";
                return Err(value(key.clone(), expected, format!("`{found}`")));
            }
            (key, _) => return Err(unknown(key.to_owned(), nearest(key, KEYS))),
        }
    }
    match object.contains_key("compute") {
        true => Ok(()),
        false => Err(value("compute".into(), PRECISIONS, "nothing".into())),
    }
}

/// What stands for a precision in a policy file.
const PRECISIONS: &str = "f16, bf16, f32 or input";
