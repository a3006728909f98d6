//! The class of a data set in MMSegmentation, as its Python file has it.

use halfseg_files::PythonValue;
use regex::Regex;

/// What the class of a data set says in Python.
#[derive(Default)]
pub(super) struct ClassFile {
    pub classes: Vec<String>,
    pub palette: Vec<[u8; 3]>,
    pub img_suffix: Option<String>,
    pub seg_map_suffix: Option<String>,
    pub reduces_zero: Option<bool>,
}

impl ClassFile {
    pub(super) fn read(text: &str) -> Self {
        // Within a class all is moved to the right.
        let text: String = text
            .lines()
            .map(|line| line.trim_start().to_owned() + "\n")
            .collect();
        let meta = PythonValue::assigned(&text, "METAINFO");
        let of = |key: &str, old: &str| {
            let value = meta.as_ref().and_then(|meta| meta.get(key).cloned());
            value.or_else(|| PythonValue::assigned(&text, old))
        };
        let default = |name: &str, value: &str| {
            let pattern = format!(r"\b{name}\s*(?::\s*\w+\s*)?=\s*{value}");
            let found = Regex::new(&pattern).ok()?.captures(&text)?;
            Some(found.get(1)?.as_str().to_owned())
        };
        let quoted = r#"['"]([^'"]*)['"]"#;
        Self {
            classes: strings(of("classes", "CLASSES").as_ref()).unwrap_or_default(),
            palette: colors(of("palette", "PALETTE").as_ref()).unwrap_or_default(),
            img_suffix: default("img_suffix", quoted),
            seg_map_suffix: default("seg_map_suffix", quoted),
            reduces_zero: default("reduce_zero_label", "(True|False)").map(|v| v == "True"),
        }
    }
}

/// A list of texts.
pub(super) fn strings(value: Option<&PythonValue>) -> Option<Vec<String>> {
    match value? {
        PythonValue::List(values) => {
            let texts = values.iter().map(|value| match value {
                PythonValue::Text(text) => Some(text.clone()),
                _ => None,
            });
            texts.collect()
        }
        _ => None,
    }
}

/// A list of colours.
pub(super) fn colors(value: Option<&PythonValue>) -> Option<Vec<[u8; 3]>> {
    let PythonValue::List(values) = value? else {
        return None;
    };
    let color = |value: &PythonValue| match value {
        PythonValue::List(channels) => {
            let channels = channels.iter().map(|channel| match channel {
                PythonValue::Number(v) if (0.0..=255.0).contains(v) => Some(*v as u8),
                _ => None,
            });
            channels.collect::<Option<Vec<u8>>>()?.try_into().ok()
        }
        _ => None,
    };
    values.iter().map(color).collect()
}
