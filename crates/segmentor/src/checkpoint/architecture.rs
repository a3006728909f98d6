//! Reading an architecture off the names and shapes of tensors.

use halfseg_backbone::{Depth, ResNetConfig};

use super::file::{CheckpointFile, quoted};
use super::load::Mode;
use super::mmseg_config::{self, Configuration, Unsupported};
use super::{CONFIG_KEY, CheckpointError};
use crate::{Method, SegmentorConfig};

impl CheckpointFile {
    /// The architecture of the segmentor in this file.
    pub(crate) fn architecture(&self) -> Result<SegmentorConfig, CheckpointError> {
        let shown = self.architecture_from_shapes()?;
        let config = match self.saved_architecture()? {
            Some(saved) => {
                self.check_saved(&saved, &shown)?;
                saved
            }
            None => self.with_settings(shown)?,
        };
        config
            .validate()
            .map_err(|error| self.not_a_segmentor("tensors of a possible size", error))?;
        Ok(config)
    }

    /// The architecture in the metadata that halfseg writes.
    pub(crate) fn saved_architecture(&self) -> Result<Option<SegmentorConfig>, CheckpointError> {
        let Some(json) = self.metadata.get(CONFIG_KEY) else {
            return Ok(None);
        };
        let expected = format!("a configuration under `{CONFIG_KEY}` in its metadata");
        let config: SegmentorConfig =
            serde_json::from_str(json).map_err(|error| self.not_a_segmentor(&expected, error))?;
        config
            .validate()
            .map_err(|error| self.not_a_segmentor(&expected, error))?;
        Ok(Some(config))
    }

    /// Whether metadata and tensors agree in what both of them say.
    fn check_saved(
        &self,
        saved: &SegmentorConfig,
        shown: &SegmentorConfig,
    ) -> Result<(), CheckpointError> {
        let pairs = |config: &SegmentorConfig| {
            let mut pairs = vec![
                ("method", config.method.to_string()),
                ("backbone", config.backbone.to_string()),
                ("num_classes", config.num_classes.to_string()),
                ("stem_channels", config.stem_channels.to_string()),
                ("base_channels", config.base_channels.to_string()),
                ("head_channels", config.head_channels.to_string()),
            ];
            // An auxiliary head may be missing.
            if saved.aux_head && shown.aux_head {
                pairs.push(("aux_channels", config.aux_channels.to_string()));
            }
            if matches!(config.method, Method::DeepLabV3 | Method::DeepLabV3Plus) {
                pairs.push((
                    "the number of dilations",
                    config.dilations.len().to_string(),
                ));
            }
            if config.method == Method::DeepLabV3Plus {
                pairs.push(("c1_channels", config.c1_channels.to_string()));
            }
            pairs
        };
        for ((key, saved), (_, shown)) in pairs(saved).into_iter().zip(pairs(shown)) {
            if saved != shown {
                return Err(CheckpointError::Damaged {
                    path: self.path.clone(),
                    expected: format!("{key} = {saved}, as its metadata says"),
                    found: format!("tensors of {key} = {shown}"),
                });
            }
        }
        Ok(())
    }

    /// `config`, with what MMSegmentation's configuration says and tensors do not show.
    fn with_settings(
        &self,
        mut config: SegmentorConfig,
    ) -> Result<SegmentorConfig, CheckpointError> {
        let Configuration::Model(model) = &self.configuration else {
            return Ok(config);
        };
        let unsupported = |error| self.unsupported(error);
        let settings = mmseg_config::settings(model, config.method).map_err(unsupported)?;
        config.align_corners = settings.align_corners;
        if let Some(dilations) = settings.dilations {
            if dilations.len() != config.dilations.len() {
                return Err(self.unsupported(Unsupported {
                    key: "decode_head.dilations".to_owned(),
                    expected: format!("{} numbers, one a branch", config.dilations.len()),
                    found: format!("{dilations:?}"),
                }));
            }
            config.dilations = dilations;
        }
        Ok(config)
    }

    /// What was assumed because the file does not say it, and what it says otherwise than `config`.
    pub(crate) fn remarks(
        &self,
        config: &SegmentorConfig,
        mode: Mode,
    ) -> Result<Vec<String>, CheckpointError> {
        let mut remarks = Vec::new();
        if !self.prefix.is_known() {
            remarks.push(format!("taken is what is below `{}`", self.prefix.before));
        }
        if !self.prefix.others.is_empty() {
            let others = quoted(&self.prefix.others);
            remarks.push(format!(
                "there are other networks, not used: below {others}"
            ));
        }
        let theirs = match (self.saved_architecture()?, &self.configuration) {
            (Some(saved), _) => saved,
            (None, Configuration::Model(model)) => {
                match mmseg_config::settings(model, config.method) {
                    Ok(_) => {}
                    // Training may go on with other strides and dilations.
                    Err(error) if mode == Mode::Pretrained => {
                        let Unsupported {
                            key,
                            expected,
                            found,
                        } = error;
                        remarks.push(format!("trained with {key} = {found}, here {expected}"));
                        return Ok(remarks);
                    }
                    Err(error) => return Err(self.unsupported(error)),
                }
                if let Some(found) = mmseg_config::other_colors(model) {
                    remarks.push(found);
                }
                self.with_settings(config.clone())?
            }
            (None, _) if mode == Mode::Pretrained => return Ok(remarks),
            (None, configuration) => {
                let why = match configuration {
                    Configuration::Unreadable => "has a configuration that cannot be read",
                    _ => "has no configuration",
                };
                let head = match config.method {
                    Method::Fcn => "a head without dilation".to_owned(),
                    Method::PspNet => "pools of 1, 2, 3 and 6".to_owned(),
                    _ => format!("dilations {:?}", config.dilations),
                };
                let align_corners = config.align_corners;
                remarks.push(format!(
                    "assumed, since the file {why}: output stride 8, {head}, \
                     align_corners = {align_corners}"
                ));
                return Ok(remarks);
            }
        };
        let pyramid = matches!(config.method, Method::DeepLabV3 | Method::DeepLabV3Plus);
        let (ours, theirs) = (config, &theirs);
        if pyramid && ours.dilations != theirs.dilations {
            let (ours, theirs) = (&ours.dilations, &theirs.dilations);
            remarks.push(format!(
                "dilations are {ours:?}, the file's were {theirs:?}"
            ));
        }
        if ours.align_corners != theirs.align_corners {
            let (ours, theirs) = (ours.align_corners, theirs.align_corners);
            remarks.push(format!("align_corners is {ours}, the file's was {theirs}"));
        }
        Ok(remarks)
    }

    /// What the tensors show; the rest is as published.
    fn architecture_from_shapes(&self) -> Result<SegmentorConfig, CheckpointError> {
        let backbone = self.backbone()?;
        let method = self.method()?;
        let mut config = SegmentorConfig::new(method, backbone.depth);
        config.stem_channels = backbone.stem_channels;
        config.base_channels = backbone.base_channels;
        config.num_classes = self.extent("decode_head.conv_seg.weight", 0)?;
        config.head_channels = self.extent("decode_head.conv_seg.weight", 1)?;
        config.aux_head = self.has("auxiliary_head.conv_seg.weight");
        if config.aux_head {
            config.aux_channels = self.extent("auxiliary_head.conv_seg.weight", 1)?;
        }
        if method == Method::DeepLabV3Plus {
            config.c1_channels = self.extent("decode_head.c1_bottleneck.conv.weight", 0)?;
        }
        let branches = self.count("decode_head.aspp_modules.");
        if branches > 0 && branches != config.dilations.len() {
            config.dilations = (0..branches).map(|branch| (12 * branch).max(1)).collect();
        }
        Ok(config)
    }

    /// The backbone in this file, with or without a head.
    pub(crate) fn backbone(&self) -> Result<ResNetConfig, CheckpointError> {
        Ok(ResNetConfig::new(self.depth()?)
            .with_stem_channels(self.extent("backbone.stem.6.weight", 0)?)
            .with_base_channels(self.extent("backbone.layer1.0.conv1.weight", 0)?))
    }

    /// The depth of the backbone, from its blocks.
    fn depth(&self) -> Result<Depth, CheckpointError> {
        let blocks = [1, 2, 3, 4].map(|stage| self.count(&format!("backbone.layer{stage}.")));
        let bottlenecks = self.has("backbone.layer1.0.conv3.weight");
        if !self.has("backbone.stem.0.weight") {
            let found = match self.has("backbone.conv1.weight") {
                true => "a ResNet with one 7x7 convolution (not V1c)",
                false => "no such tensor",
            };
            return Err(self.not_a_segmentor("backbone.stem.0.weight of ResNetV1c", found));
        }
        Depth::ALL
            .into_iter()
            .find(|depth| depth.blocks() == blocks && depth.has_bottlenecks() == bottlenecks)
            .ok_or_else(|| {
                let kind = if bottlenecks {
                    "bottlenecks"
                } else {
                    "basic blocks"
                };
                self.not_a_segmentor(
                    "a ResNet of depth 18, 34, 50, 101 or 152",
                    format!("stages of {blocks:?} {kind}"),
                )
            })
    }

    /// The method, from the tensors that only its head has.
    fn method(&self) -> Result<Method, CheckpointError> {
        let marks = [
            ("decode_head.psp_modules.", Method::PspNet),
            ("decode_head.c1_bottleneck.", Method::DeepLabV3Plus),
            ("decode_head.aspp_modules.", Method::DeepLabV3),
            ("decode_head.convs.", Method::Fcn),
        ];
        let has = |mark: &str| self.tensors.keys().any(|name| name.starts_with(mark));
        marks
            .into_iter()
            .find(|(mark, _)| has(mark))
            .map(|(_, method)| method)
            .ok_or_else(|| {
                let found = match has("decode_head.") {
                    true => "another head",
                    false => "a backbone without a head",
                };
                self.not_a_segmentor("the head of fcn, pspnet, deeplabv3 or deeplabv3plus", found)
            })
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The number of different parts right after `prefix`.
    fn count(&self, prefix: &str) -> usize {
        let mut parts: Vec<&str> = self
            .tensors
            .keys()
            .filter_map(|name| name.strip_prefix(prefix)?.split('.').next())
            .collect();
        parts.sort_unstable();
        parts.dedup();
        parts.len()
    }

    fn extent(&self, name: &str, dim: usize) -> Result<usize, CheckpointError> {
        let shape = self.tensors.get(name).map(|tensor| &tensor.shape);
        shape
            .and_then(|shape| shape.get(dim).copied())
            .ok_or_else(|| {
                let found = shape.map_or("no such tensor".to_owned(), |s| format!("shape {s:?}"));
                self.not_a_segmentor(name, found)
            })
    }

    fn not_a_segmentor(&self, expected: &str, found: impl ToString) -> CheckpointError {
        CheckpointError::NotASegmentor {
            path: self.path.clone(),
            expected: expected.to_owned(),
            found: found.to_string(),
        }
    }

    fn unsupported(&self, error: Unsupported) -> CheckpointError {
        CheckpointError::Unsupported {
            path: self.path.clone(),
            key: error.key,
            expected: error.expected,
            found: error.found,
        }
    }
}
