//! What other programs put before the names of a network's tensors.

use std::collections::BTreeMap;

/// Keys under which programs save a network's tensors; of several, the first is taken.
const WRAPPERS: [&str; 6] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
];

/// Modules that stand for what they wrap, at any place: of `torch.compile`, data-parallel training, FSDP
/// and activation checkpointing.
const TRANSPARENT: [&str; 4] = [
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// Tensors of a segmentor, and then of a backbone alone.
const MARKS: [(&str, bool); 5] = [
    ("backbone.stem.0.weight", false),
    ("backbone.layer1.0.conv1.weight", false),
    ("decode_head.conv_seg.weight", false),
    ("stem.0.weight", true),
    ("layer1.0.conv1.weight", true),
];

/// How the names in a checkpoint become those of a network.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Prefix {
    /// What is before the network's names.
    pub(super) before: String,
    /// Whether `backbone.` is missing.
    is_backbone: bool,
    /// What is before the names of other networks in the file.
    pub(super) others: Vec<String>,
}

impl Prefix {
    /// Finds the network among `names`; without one nothing is before a name.
    ///
    /// # Errors
    /// What is before the names of several networks none of which is more likely than the others.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a String>) -> Result<Self, Vec<String>> {
        // Whether it is a backbone alone, by what is before.
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        for name in names {
            let name = without_wrapping(name);
            let mark = MARKS.into_iter().find_map(|(mark, is_backbone)| {
                let before = name.strip_suffix(mark)?;
                (before.is_empty() || before.ends_with('.')).then_some((before, is_backbone))
            });
            if let Some((before, is_backbone)) = mark {
                let alone = found.entry(before.to_owned()).or_insert(true);
                *alone &= is_backbone;
            }
        }
        if found.values().any(|is_backbone| !is_backbone) {
            found.retain(|_, is_backbone| !*is_backbone);
        }
        let chosen = match found.len() {
            0 => return Ok(Self::default()),
            1 => found.pop_first(),
            _ => {
                let known = found
                    .keys()
                    .filter_map(|before| Some((rank(before)?, before)));
                let first = known.min().map(|(_, before)| before.clone());
                first.and_then(|before| found.remove_entry(&before))
            }
        };
        let others = found.into_keys().collect();
        match chosen {
            Some((before, is_backbone)) => Ok(Self {
                before,
                is_backbone,
                others,
            }),
            None => Err(others),
        }
    }

    /// The network's name of a tensor; `None` if it is none of the network's.
    pub(super) fn strip(&self, name: &str) -> Option<String> {
        let name = without_wrapping(name);
        let name = name.strip_prefix(&self.before)?;
        let is_part = [
            "stem.", "conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.",
        ]
        .iter()
        .any(|part| name.starts_with(part));
        match self.is_backbone && is_part {
            true => Some(format!("backbone.{name}")),
            false => Some(name.to_owned()),
        }
    }

    /// Whether a program is known that saves networks so.
    pub(super) fn is_known(&self) -> bool {
        rank(&self.before).is_some()
    }
}

/// The place of known prefixes, the most likely first.
fn rank(before: &str) -> Option<Vec<usize>> {
    let parts = before.split_terminator('.');
    parts
        .map(|part| WRAPPERS.iter().position(|wrapper| *wrapper == part))
        .collect()
}

fn without_wrapping(name: &str) -> String {
    let parts = name.split('.');
    let kept = parts.filter(|part| !TRANSPARENT.contains(part));
    kept.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Result<Prefix, Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Prefix::of(names.iter())
    }

    #[test]
    fn a_network_is_found_under_what_programs_put_before_it() {
        for before in [
            "",
            "module.",
            "state_dict.",
            "state_dict.module.",
            "_orig_mod.",
            "state_dict.model.",
            "state_dict.model._orig_mod.",
            "model_state_dict.net.",
            "student.",
        ] {
            for (mark, name) in [
                ("backbone.stem.0.weight", "backbone.stem.0.weight"),
                ("backbone.module.stem.0.weight", "backbone.stem.0.weight"),
                (
                    "decode_head._orig_mod.conv_seg.weight",
                    "decode_head.conv_seg.weight",
                ),
                ("stem.0.weight", "backbone.stem.0.weight"),
            ] {
                let full = format!("{before}{mark}");
                let prefix = of(&[&full, "optimizer.state.0.momentum_buffer"]).unwrap();
                assert_eq!(prefix.strip(&full).as_deref(), Some(name), "{full}");
                assert_eq!(prefix.is_known(), before != "student.", "{full}");
            }
        }
        let prefix = of(&["stem.0.weight", "layer1.0.conv1.weight"]).unwrap();
        assert_eq!(prefix.strip("fc.weight").as_deref(), Some("fc.weight"));
        assert_eq!(of(&["weight"]), Ok(Prefix::default()));
    }

    #[test]
    fn of_several_networks_the_known_one_is_taken_and_the_others_named() {
        let prefix = of(&[
            "ema_state_dict.backbone.stem.0.weight",
            "state_dict.backbone.stem.0.weight",
            "state_dict.decode_head.conv_seg.weight",
        ])
        .unwrap();
        assert_eq!(
            (prefix.before.as_str(), prefix.others),
            ("state_dict.", vec!["ema_state_dict.".to_owned()])
        );
        let both = [
            "student.backbone.stem.0.weight",
            "teacher.backbone.stem.0.weight",
        ];
        assert_eq!(
            of(&both),
            Err(vec!["student.".to_owned(), "teacher.".to_owned()])
        );
    }
}
