//! What other programs call the tensors of these networks.
//!
//! | here, as in MMSegmentation | torchvision's segmentors |
//! |---|---|
//! | `decode_head.convs.0.{conv,bn}` (FCN) | `classifier.{0,1}` |
//! | `decode_head.aspp_modules.i.{conv,bn}` | `classifier.0.convs.i.{0,1}` |
//! | `decode_head.image_pool.1.{conv,bn}` | `classifier.0.convs.N.{1,2}` after `N` branches |
//! | `decode_head.bottleneck.{conv,bn}` | `classifier.0.project.{0,1}`, the pooled map's inputs last |
//! | `decode_head.refine.{conv,bn}` | `classifier.{1,2}` |
//! | `decode_head.conv_seg` | `classifier.4` |
//! | `auxiliary_head.{convs.0.conv,convs.0.bn,conv_seg}` | `aux_classifier.{0,1,4}` |
//!
//! | here | backbones alone |
//! |---|---|
//! | `backbone.` | nothing |
//! | `backbone.stem.{0,1,3,4,6}` and `.7` | timm: `conv1.{0,1,3,4,6}` and `bn1` |
//! | `backbone.stem.{3i,3i+1}` | MMPretrain: `backbone.stem.i.{conv,bn}` |

use std::fmt;

use halfseg_backbone::Style;

use crate::{ConfigError, Method, SegmentorConfig};

/// Whose names a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Naming {
    /// MMSegmentation's.
    Mmseg,
    /// MMSegmentation's of a backbone alone, as its pretrained files have them.
    MmsegBackbone,
    /// Those of torchvision's `fcn_resnet*` and `deeplabv3_resnet*`.
    Torchvision,
    /// Those of torchvision's `resnet*` without the classifier.
    TorchvisionBackbone,
    /// Those of timm's `resnet*`, `resnet*c` and `resnet*d` without the classifier.
    TimmBackbone,
    /// Those of MMPretrain's ResNets without the classifier.
    MmpretrainBackbone,
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mmseg => "MMSegmentation's",
            Self::MmsegBackbone => "MMSegmentation's backbones'",
            Self::Torchvision => "torchvision's segmentors'",
            Self::TorchvisionBackbone => "torchvision's ResNets'",
            Self::TimmBackbone => "timm's ResNets'",
            Self::MmpretrainBackbone => "MMPretrain's ResNets'",
        })
    }
}

impl Naming {
    /// Whether only the backbone has names.
    pub(crate) fn is_backbone(self) -> bool {
        !matches!(self, Self::Mmseg | Self::Torchvision)
    }

    /// Whether the program can have this network.
    ///
    /// # Errors
    /// The first setting that its networks do not have.
    pub(crate) fn check(self, config: &SegmentorConfig) -> Result<(), ConfigError> {
        let needs = |key, ok: bool, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(ConfigError {
                key,
                expected: expected.to_owned(),
                found,
            }),
        };
        if matches!(self, Self::Torchvision | Self::TorchvisionBackbone) {
            needs(
                "deep_stem",
                !config.deep_stem,
                "false",
                config.deep_stem.to_string(),
            )?;
            needs(
                "avg_down",
                !config.avg_down,
                "false",
                config.avg_down.to_string(),
            )?;
        }
        if self != Self::Torchvision {
            return Ok(());
        }
        let method = config.method;
        let known = method == Method::Fcn || (method == Method::DeepLabV3 && config.refine);
        let expected = "fcn, or deeplabv3 with refine = true";
        needs("method", known, expected, method.to_string())?;
        let pytorch = config.style == Style::Pytorch;
        needs("style", pytorch, "pytorch", format!("{:?}", config.style))?;
        let mut one = vec![(
            "aux_convs",
            config.aux_convs,
            config.aux_concat_input,
            config.aux_dilation,
        )];
        if method == Method::Fcn {
            one.push((
                "head_convs",
                config.head_convs,
                config.head_concat_input,
                config.head_dilation,
            ));
        }
        for (key, convs, concat_input, dilation) in one {
            let found = format!("{convs}, dilation {dilation}, concat_input = {concat_input}");
            let ok = convs == 1 && !concat_input && dilation == 1;
            needs(key, ok, "1, not dilated, nothing concatenated", found)?;
        }
        let corners = config.align_corners;
        needs("align_corners", !corners, "false", corners.to_string())
    }

    /// What the program calls a tensor; `None` if it has none like it.
    pub(crate) fn name(self, name: &str, config: &SegmentorConfig) -> Option<String> {
        if self == Self::Mmseg {
            return Some(name.to_owned());
        }
        if self == Self::Torchvision {
            return Some(torchvision(name, config).unwrap_or_else(|| name.to_owned()));
        }
        let backbone = name.strip_prefix("backbone.")?;
        let stem = backbone
            .strip_prefix("stem.")
            .and_then(|rest| rest.split_once('.'));
        Some(match (self, stem) {
            (Self::TimmBackbone, Some(("7", tensor))) => format!("bn1.{tensor}"),
            (Self::TimmBackbone, Some((part, tensor))) => format!("conv1.{part}.{tensor}"),
            (Self::MmpretrainBackbone, Some((part, tensor))) => {
                let part: usize = part.parse().expect("a stem's parts are numbered");
                let kind = match part.is_multiple_of(3) {
                    true => "conv",
                    false => "bn",
                };
                format!("backbone.stem.{}.{kind}.{tensor}", part / 3)
            }
            (Self::MmpretrainBackbone, None) => name.to_owned(),
            _ => backbone.to_owned(),
        })
    }
}

/// Torchvision's name of a head's tensor.
fn torchvision(name: &str, config: &SegmentorConfig) -> Option<String> {
    let (module, tensor) = name.rsplit_once('.')?;
    let pooled = format!("classifier.0.convs.{}", config.dilations.len());
    let (head, module) = module.split_once('.')?;
    let there = match (head, module, config.method) {
        ("auxiliary_head", "convs.0.conv", _) => "aux_classifier.0".to_owned(),
        ("auxiliary_head", "convs.0.bn", _) => "aux_classifier.1".to_owned(),
        ("auxiliary_head", "conv_seg", _) => "aux_classifier.4".to_owned(),
        ("decode_head", "convs.0.conv", _) => "classifier.0".to_owned(),
        ("decode_head", "convs.0.bn", _) => "classifier.1".to_owned(),
        ("decode_head", "refine.conv", _) => "classifier.1".to_owned(),
        ("decode_head", "refine.bn", _) => "classifier.2".to_owned(),
        ("decode_head", "conv_seg", _) => "classifier.4".to_owned(),
        ("decode_head", "image_pool.1.conv", _) => format!("{pooled}.1"),
        ("decode_head", "image_pool.1.bn", _) => format!("{pooled}.2"),
        ("decode_head", "bottleneck.conv", _) => "classifier.0.project.0".to_owned(),
        ("decode_head", "bottleneck.bn", _) => "classifier.0.project.1".to_owned(),
        ("decode_head", branch, _) => {
            let branch = branch.strip_prefix("aspp_modules.")?;
            let (branch, kind) = branch.split_once('.')?;
            let part = if kind == "conv" { 0 } else { 1 };
            format!("classifier.0.convs.{branch}.{part}")
        }
        _ => return None,
    };
    Some(format!("{there}.{tensor}"))
}

/// How the names in a file become MMSegmentation's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Renaming {
    /// A segmentor of torchvision.
    pub(super) torchvision: Option<Head>,
    /// timm's deep stem.
    deep_conv1: bool,
}

/// A head of torchvision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Head {
    Fcn,
    /// With so many branches before the pooled one.
    DeepLabV3(usize),
}

/// The tensor whose inputs torchvision has in another order: the pooled map's come last there.
pub(super) const JOINED: &str = "decode_head.bottleneck.conv.weight";

impl Renaming {
    /// By the names in a file, without what is before them.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let has = |wanted: &str| names.clone().any(|name| name == wanted);
        // The pooled branch has nothing with weights before its convolution.
        let branches = (0..64).find(|branch| has(&format!("classifier.0.convs.{branch}.2.weight")));
        let torchvision = match (has("classifier.4.weight"), branches) {
            (true, Some(branches)) => Some(Head::DeepLabV3(branches)),
            (true, None) if has("classifier.0.weight") => Some(Head::Fcn),
            _ => None,
        };
        Self {
            torchvision,
            deep_conv1: has("backbone.conv1.0.weight"),
        }
    }

    /// MMSegmentation's name of a tensor.
    pub(super) fn name(&self, name: &str) -> String {
        self.backbone(name)
            .or_else(|| self.head(name))
            .unwrap_or_else(|| name.to_owned())
    }

    fn backbone(&self, name: &str) -> Option<String> {
        let rest = name.strip_prefix("backbone.")?;
        if self.deep_conv1 {
            if let Some(rest) = rest.strip_prefix("conv1.") {
                return Some(format!("backbone.stem.{rest}"));
            }
            let rest = rest.strip_prefix("bn1.")?;
            return Some(format!("backbone.stem.7.{rest}"));
        }
        let mut parts = rest.strip_prefix("stem.")?.splitn(3, '.');
        let (index, kind, tensor) = (parts.next()?, parts.next()?, parts.next()?);
        let index: usize = index.parse().ok().filter(|index| *index < 3)?;
        let part = match kind {
            "conv" => 3 * index,
            "bn" => 3 * index + 1,
            _ => return None,
        };
        Some(format!("backbone.stem.{part}.{tensor}"))
    }

    fn head(&self, name: &str) -> Option<String> {
        let head = self.torchvision?;
        let (module, tensor) = name.rsplit_once('.')?;
        let there = match (module, head) {
            ("aux_classifier.0", _) => "auxiliary_head.convs.0.conv".to_owned(),
            ("aux_classifier.1", _) => "auxiliary_head.convs.0.bn".to_owned(),
            ("aux_classifier.4", _) => "auxiliary_head.conv_seg".to_owned(),
            ("classifier.4", _) => "decode_head.conv_seg".to_owned(),
            ("classifier.0", Head::Fcn) => "decode_head.convs.0.conv".to_owned(),
            ("classifier.1", Head::Fcn) => "decode_head.convs.0.bn".to_owned(),
            ("classifier.1", Head::DeepLabV3(_)) => "decode_head.refine.conv".to_owned(),
            ("classifier.2", Head::DeepLabV3(_)) => "decode_head.refine.bn".to_owned(),
            ("classifier.0.project.0", _) => "decode_head.bottleneck.conv".to_owned(),
            ("classifier.0.project.1", _) => "decode_head.bottleneck.bn".to_owned(),
            (branch, Head::DeepLabV3(branches)) => {
                let branch = branch.strip_prefix("classifier.0.convs.")?;
                let (branch, part) = branch.split_once('.')?;
                let index: usize = branch.parse().ok()?;
                match (index == branches, part) {
                    (true, "1") => "decode_head.image_pool.1.conv".to_owned(),
                    (true, "2") => "decode_head.image_pool.1.bn".to_owned(),
                    (false, "0") => format!("decode_head.aspp_modules.{branch}.conv"),
                    (false, "1") => format!("decode_head.aspp_modules.{branch}.bn"),
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(format!("{there}.{tensor}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Depth;
    use crate::cost::tensor_shapes;

    #[test]
    fn names_that_were_given_are_read_back() {
        let plain = |method| SegmentorConfig::new(method, Depth::R50).with_deep_stem(false);
        let fcn = plain(Method::Fcn)
            .with_head_convs(1)
            .with_head_concat_input(false);
        let v3 = plain(Method::DeepLabV3).with_refine(true);
        let deep = SegmentorConfig::new(Method::PspNet, Depth::R18).with_avg_down(true);
        for (naming, config) in [
            (Naming::Torchvision, &fcn),
            (Naming::Torchvision, &v3),
            (Naming::TorchvisionBackbone, &fcn),
            (Naming::TimmBackbone, &fcn),
            (Naming::TimmBackbone, &deep),
            (Naming::MmpretrainBackbone, &deep),
            (Naming::MmsegBackbone, &deep),
            (Naming::Mmseg, &deep),
        ] {
            naming.check(config).unwrap();
            let given: Vec<(String, String)> = tensor_shapes(config)
                .into_keys()
                .filter_map(|name| Some((naming.name(&name, config)?, name)))
                .collect();
            // As a file of a backbone alone is read.
            let place = |name: &str| match name.starts_with("backbone.") || !naming.is_backbone() {
                true => name.to_owned(),
                false => format!("backbone.{name}"),
            };
            let there: Vec<String> = given.iter().map(|(there, _)| place(there)).collect();
            let renaming = Renaming::of(there.iter().map(String::as_str));
            for (there, (_, here)) in there.iter().zip(&given) {
                assert_eq!(&renaming.name(there), here, "{naming:?}: {there}");
            }
            let backbones = given
                .iter()
                .filter(|(_, here)| here.starts_with("backbone."));
            assert!(!naming.is_backbone() || backbones.count() == given.len());
        }
    }

    #[test]
    fn networks_that_a_program_does_not_have_are_refused_by_key() {
        let fcn = SegmentorConfig::new(Method::Fcn, Depth::R50);
        for (config, key) in [
            (fcn.clone(), "deep_stem"),
            (fcn.clone().with_deep_stem(false), "head_convs"),
            (
                SegmentorConfig::new(Method::PspNet, Depth::R50).with_deep_stem(false),
                "method",
            ),
        ] {
            assert_eq!(Naming::Torchvision.check(&config).unwrap_err().key, key);
        }
    }
}
