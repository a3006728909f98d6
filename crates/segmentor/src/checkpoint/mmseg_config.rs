//! What MMSegmentation's configuration, which its checkpoints carry as text, says of a network.

use std::path::Path;

use burn_store::pytorch::PytorchReader;
use burn_store::pytorch_reader::PickleValue;

/// What the decode head's tensors do not show and its answers depend on.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct HeadSettings {
    pub(crate) align_corners: Option<bool>,
    pub(crate) dilations: Option<Vec<usize>>,
}

impl HeadSettings {
    /// Reads `meta` of a `.pth`: `cfg` since MMSegmentation 1.0, `config` before. What is not there,
    /// or not as MMSegmentation prints it, stays open.
    pub(crate) fn of_checkpoint(path: &Path) -> Self {
        let meta = match PytorchReader::read_pickle_data(path, Some("meta")) {
            Ok(PickleValue::Dict(meta)) => meta,
            _ => return Self::default(),
        };
        let text = ["cfg", "config"]
            .iter()
            .find_map(|key| match meta.get(*key) {
                Some(PickleValue::String(text)) => Some(text),
                _ => None,
            });
        text.map(|text| Self::of_config(text)).unwrap_or_default()
    }

    fn of_config(text: &str) -> Self {
        let Some(head) = argument(text, "decode_head").and_then(bracketed) else {
            return Self::default();
        };
        let align_corners = argument(head, "align_corners").and_then(|value| {
            let word = value.split(|c: char| !c.is_alphanumeric()).next();
            match word {
                Some("True") => Some(true),
                Some("False") => Some(false),
                _ => None,
            }
        });
        let dilations = argument(head, "dilations").and_then(bracketed);
        let dilations = dilations.and_then(|list| {
            let numbers = list.split(',').map(str::trim).filter(|n| !n.is_empty());
            numbers.map(|number| number.parse().ok()).collect()
        });
        Self {
            align_corners,
            dilations,
        }
    }
}

/// The text from the value of `name=` on.
fn argument<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.match_indices(name).find_map(|(at, _)| {
        let before = text[..at].chars().next_back();
        let whole = before.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let value = text[at + name.len()..].trim_start().strip_prefix('=')?;
        whole.then_some(value.trim_start())
    })
}

/// What stands in the brackets that a value begins with: `(..)`, `[..]` or `dict(..)`.
fn bracketed(value: &str) -> Option<&str> {
    let value = value.strip_prefix("dict").unwrap_or(value);
    let inside = value.strip_prefix(['(', '['])?;
    let mut depth = 1;
    for (at, c) in inside.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inside[..at]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decode_heads_settings_are_told_from_other_parts() {
        let text = "model = dict(\n    auxiliary_head=dict(\n        align_corners=False,\n        \
                    in_index=2),\n    backbone=dict(\n        depth=101,\n        dilations=(\n            \
                    1,\n            1,\n            2,\n            4,\n        )),\n    \
                    decode_head=dict(\n        align_corners=True,\n        dilations=(\n            \
                    1,\n            6,\n            12,\n            18,\n        ),\n        \
                    loss_decode=dict(\n            loss_weight=1.0, type='CrossEntropyLoss'),\n        \
                    num_classes=19))\n";
        let found = HeadSettings::of_config(text);
        let expected = HeadSettings {
            align_corners: Some(true),
            dilations: Some(vec![1, 6, 12, 18]),
        };
        assert_eq!(found, expected);
        let short = "model = dict(decode_head=dict(type='FCNHead', align_corners=False))";
        let expected = HeadSettings {
            align_corners: Some(false),
            dilations: None,
        };
        assert_eq!(HeadSettings::of_config(short), expected);
    }

    #[test]
    fn what_is_not_as_expected_stays_open() {
        for text in [
            "",
            "decode_head",
            "decode_head=None",
            "decode_head=dict(align_corners=True",
            "my_decode_head=dict(align_corners=True)",
            "decode_head=dict(align_corners=Trueish, dilations=(1, x))",
        ] {
            assert_eq!(
                HeadSettings::of_config(text),
                HeadSettings::default(),
                "{text}"
            );
        }
    }
}
