//! The names and colours of classes, as MMSegmentation's checkpoints carry them.

use std::collections::HashMap;
use std::path::Path;

use pytorch_reader::{PickleValue, PytorchReader};

/// What a checkpoint calls its classes, and the colours that it shows them in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassTable {
    /// By class.
    pub names: Vec<String>,
    /// RGB by class; empty if the file has none, or other than one for each name.
    pub palette: Vec<[u8; 3]>,
}

impl ClassTable {
    /// Reads `meta` of a `.pth`: `dataset_meta` since MMSegmentation 1.0, `CLASSES` and `PALETTE` before.
    pub(super) fn of_checkpoint(path: &Path) -> Option<Self> {
        let Ok(PickleValue::Dict(meta)) = PytorchReader::read_pickle_data(path, Some("meta"))
        else {
            return None;
        };
        Self::of_meta(&meta)
    }

    fn of_meta(meta: &HashMap<String, PickleValue>) -> Option<Self> {
        let nested = match meta.get("dataset_meta") {
            Some(PickleValue::Dict(nested)) => nested,
            _ => meta,
        };
        let either = |[first, second]: [&str; 2]| nested.get(first).or_else(|| nested.get(second));
        let PickleValue::List(names) = either(["classes", "CLASSES"])? else {
            return None;
        };
        let text = |value: &PickleValue| match value {
            PickleValue::String(text) => Some(text.clone()),
            _ => None,
        };
        let names: Vec<String> = names.iter().map(text).collect::<Option<_>>()?;
        let palette = match either(["palette", "PALETTE"]) {
            Some(PickleValue::List(colors)) => colors.iter().map(color).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let palette = palette.filter(|palette| palette.len() == names.len());
        Some(Self {
            names,
            palette: palette.unwrap_or_default(),
        })
    }
}

fn color(value: &PickleValue) -> Option<[u8; 3]> {
    let PickleValue::List(channels) = value else {
        return None;
    };
    let channel = |value: &PickleValue| match value {
        PickleValue::Int(channel) => u8::try_from(*channel).ok(),
        _ => None,
    };
    let channels: Vec<u8> = channels.iter().map(channel).collect::<Option<_>>()?;
    channels.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(names: &[&str]) -> PickleValue {
        let names = names.iter().map(|name| PickleValue::String((*name).into()));
        PickleValue::List(names.collect())
    }

    #[test]
    fn classes_are_read_as_both_generations_write_them() {
        let row = |numbers: [i64; 3]| PickleValue::List(numbers.map(PickleValue::Int).to_vec());
        let colors = PickleValue::List(vec![row([1, 2, 3]), row([4, 5, 255])]);
        let expected = ClassTable {
            names: vec!["road".into(), "car".into()],
            palette: vec![[1, 2, 3], [4, 5, 255]],
        };
        let entries = |keys: [&str; 2]| {
            HashMap::from([
                (keys[0].to_owned(), texts(&["road", "car"])),
                (keys[1].to_owned(), colors.clone()),
            ])
        };
        let old = entries(["CLASSES", "PALETTE"]);
        assert_eq!(ClassTable::of_meta(&old), Some(expected.clone()));
        let nested = PickleValue::Dict(entries(["classes", "palette"]));
        let new = HashMap::from([("dataset_meta".to_owned(), nested)]);
        assert_eq!(ClassTable::of_meta(&new), Some(expected));
        // Colours of other numbers than u8, and names that are none.
        let mut other = entries(["CLASSES", "PALETTE"]);
        let wrong = PickleValue::List(vec![row([1, 2, 256]), row([0; 3])]);
        other.insert("PALETTE".into(), wrong);
        assert_eq!(ClassTable::of_meta(&other).unwrap().palette, [[0u8; 3]; 0]);
        other.insert("CLASSES".into(), row([1, 2, 3]));
        assert_eq!(ClassTable::of_meta(&other), None);
    }
}
