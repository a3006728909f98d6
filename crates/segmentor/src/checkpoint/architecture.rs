//! Reading an architecture off the names and shapes of tensors.

use halfseg_backbone::{Depth, ResNetConfig};
use halfseg_files::parse_json;

use super::file::{CheckpointFile, quoted};
use super::load::Mode;
use super::mmseg_config::{self, Configuration};
use super::naming::Head;
use super::part::Unsupported;
use super::{CONFIG_KEY, CheckpointError};
use crate::{Method, SegmentorConfig};

/// The first and the last convolution of a deep stem.
const STEM: [&str; 2] = ["backbone.stem.0.weight", "backbone.stem.6.weight"];

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
            parse_json(json).map_err(|error| self.not_a_segmentor(&expected, error))?;
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
                ("binary", config.binary.to_string()),
                ("in_channels", config.in_channels.to_string()),
                ("deep_stem", config.deep_stem.to_string()),
                ("avg_down", config.avg_down.to_string()),
                ("stem_channels", config.stem_channels.to_string()),
                ("base_channels", config.base_channels.to_string()),
                ("head_channels", config.head_channels.to_string()),
                ("head_index", config.head_index.to_string()),
            ];
            // An auxiliary head may be missing.
            if saved.aux_head && shown.aux_head {
                pairs.push(("aux_channels", config.aux_channels.to_string()));
                pairs.push(("aux_index", config.aux_index.to_string()));
                pairs.push(("aux_convs", config.aux_convs.to_string()));
                pairs.push(("aux_concat_input", config.aux_concat_input.to_string()));
            }
            match config.method {
                Method::Fcn => {
                    pairs.push(("head_convs", config.head_convs.to_string()));
                    pairs.push(("head_concat_input", config.head_concat_input.to_string()));
                }
                Method::PspNet => {
                    let levels = config.pool_scales.len();
                    pairs.push(("the number of pool_scales", levels.to_string()));
                }
                Method::DeepLabV3 | Method::DeepLabV3Plus => {
                    let branches = config.dilations.len();
                    pairs.push(("the number of dilations", branches.to_string()));
                    pairs.push(("refine", config.refine.to_string()));
                }
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

    /// `shown`, with what MMSegmentation's configuration says and tensors do not show.
    fn with_settings(&self, shown: SegmentorConfig) -> Result<SegmentorConfig, CheckpointError> {
        if let Configuration::Model(model) = &self.configuration {
            return mmseg_config::settings(model, &shown).map_err(|error| self.unsupported(error));
        }
        let levels = shown.pool_scales.len();
        if shown.method == Method::PspNet && levels != published_scales().len() {
            let expected = "4 levels, since no configuration tells how many bins they have";
            return Err(self.not_a_segmentor(expected, format!("{levels} levels")));
        }
        Ok(shown)
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
                // Training may go on from another network's weights, of which heads may be missing.
                let shown = match (self.architecture_from_shapes(), mode) {
                    (Ok(shown), _) => shown,
                    (Err(_), Mode::Pretrained) => return Ok(remarks),
                    (Err(error), Mode::Whole) => return Err(error),
                };
                match mmseg_config::settings(model, &shown) {
                    Ok(theirs) => {
                        remarks.extend(mmseg_config::other_ways(model));
                        theirs
                    }
                    Err(Unsupported {
                        key,
                        expected,
                        found,
                    }) if mode == Mode::Pretrained => {
                        remarks.push(format!("trained with {key} = {found}, here {expected}"));
                        return Ok(remarks);
                    }
                    Err(error) => return Err(self.unsupported(error)),
                }
            }
            (None, _) if mode == Mode::Pretrained => return Ok(remarks),
            (None, _) if self.renaming.torchvision.is_some() => {
                remarks.push(
                    "torchvision's names, so taken as its models are: output stride 8, colours normalised \
                     as here"
                        .to_owned(),
                );
                self.architecture_from_shapes()?
            }
            (None, configuration) => {
                let why = match configuration {
                    Configuration::Unreadable => "has a configuration that cannot be read",
                    _ => "has no configuration",
                };
                let settings: Vec<String> = unseen(config)
                    .into_iter()
                    .map(|(key, value)| format!("{key} = {value}"))
                    .collect();
                remarks.push(format!(
                    "assumed, since the file {why}: output stride {}, {}",
                    config.output_stride(),
                    settings.join(", ")
                ));
                return Ok(remarks);
            }
        };
        for ((key, ours), (other, theirs)) in unseen(config).into_iter().zip(unseen(&theirs)) {
            // Another method has other keys.
            if key == other && ours != theirs {
                remarks.push(format!("{key} is {ours}, the file's was {theirs}"));
            }
        }
        Ok(remarks)
    }

    /// What the tensors show; the rest is as published.
    pub(crate) fn architecture_from_shapes(&self) -> Result<SegmentorConfig, CheckpointError> {
        let backbone = self.backbone()?;
        let method = self.method()?;
        let mut config = SegmentorConfig::new(method, backbone.depth);
        let stages = backbone.stage_channels();
        config.in_channels = backbone.in_channels;
        config.deep_stem = backbone.deep_stem;
        config.avg_down = backbone.avg_down;
        config.stem_channels = backbone.stem_channels;
        config.base_channels = backbone.base_channels;
        (config.num_classes, config.binary) = match self.extent("decode_head.conv_seg.weight", 0)? {
            1 => (2, true),
            classes => (classes, false),
        };
        config.head_channels = self.extent("decode_head.conv_seg.weight", 1)?;
        config.aux_head = self.has("auxiliary_head.conv_seg.weight");
        if config.aux_head {
            config.aux_channels = self.extent("auxiliary_head.conv_seg.weight", 1)?;
            config.aux_convs = self.count("auxiliary_head.convs.");
            config.aux_concat_input = self.has("auxiliary_head.conv_cat.conv.weight");
        }
        let first = match method {
            Method::Fcn => {
                config.head_convs = self.count("decode_head.convs.");
                config.head_concat_input = self.has("decode_head.conv_cat.conv.weight");
                "decode_head.convs.0.conv.weight"
            }
            Method::PspNet => {
                let levels = self.count("decode_head.psp_modules.");
                if levels != config.pool_scales.len() {
                    config.pool_scales = (1..=levels).collect();
                }
                "decode_head.psp_modules.0.1.conv.weight"
            }
            Method::DeepLabV3 | Method::DeepLabV3Plus => {
                let branches = self.count("decode_head.aspp_modules.");
                if branches != config.dilations.len() {
                    config.dilations = (0..branches).map(|branch| (12 * branch).max(1)).collect();
                }
                "decode_head.image_pool.1.conv.weight"
            }
        };
        // Stages differ in their number of channels.
        let stage = |name| {
            let channels = self.extent(name, 1).ok()?;
            stages.into_iter().position(|stage| stage == channels)
        };
        config.head_index = stage(first).unwrap_or(config.head_index);
        config.aux_index = stage("auxiliary_head.convs.0.conv.weight").unwrap_or(config.aux_index);
        if method == Method::DeepLabV3Plus {
            config.c1_channels = self.extent("decode_head.c1_bottleneck.conv.weight", 0)?;
        }
        config.refine = self.has("decode_head.refine.conv.weight");
        if let Some(head) = self.renaming.torchvision {
            // `torchvision/models/segmentation/{fcn,deeplabv3}.py` and `references/segmentation/train.py`.
            config.aux_weight = 0.5;
            config.dropout = match head {
                Head::Fcn => 0.1,
                Head::DeepLabV3(_) => 0.5,
            };
        }
        Ok(config)
    }

    /// The backbone in this file, with or without a head.
    pub(crate) fn backbone(&self) -> Result<ResNetConfig, CheckpointError> {
        let depth = self.depth()?;
        let deep_stem = self.has(STEM[0]);
        let [first, last] = match deep_stem {
            true => STEM,
            false => ["backbone.conv1.weight"; 2],
        };
        Ok(ResNetConfig::new(depth)
            .with_deep_stem(deep_stem)
            .with_avg_down(self.has("backbone.layer2.0.downsample.2.weight"))
            .with_in_channels(self.extent(first, 1)?)
            .with_stem_channels(self.extent(last, 0)?)
            .with_base_channels(self.extent("backbone.layer1.0.conv1.weight", 0)?))
    }

    /// The depth of the backbone, from its blocks.
    fn depth(&self) -> Result<Depth, CheckpointError> {
        let blocks = [1, 2, 3, 4].map(|stage| self.count(&format!("backbone.layer{stage}.")));
        let bottlenecks = self.has("backbone.layer1.0.conv3.weight");
        if !self.has(STEM[0]) && !self.has("backbone.conv1.weight") {
            let expected = "backbone.stem.0.weight or backbone.conv1.weight of a ResNet";
            return Err(self.not_a_segmentor(expected, "neither"));
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
            ("decode_head.conv_cat.", Method::Fcn),
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

fn published_scales() -> Vec<usize> {
    SegmentorConfig::pspnet_r101_d8().pool_scales
}

/// What changes a network but no tensor's shape, by key.
fn unseen(config: &SegmentorConfig) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("stage_strides", format!("{:?}", config.stage_strides)),
        ("stage_dilations", format!("{:?}", config.stage_dilations)),
        ("contract_dilation", config.contract_dilation.to_string()),
        ("multi_grid", format!("{:?}", config.multi_grid)),
    ];
    if config.backbone.has_bottlenecks() {
        settings.push(("style", format!("{:?}", config.style).to_lowercase()));
    }
    match config.method {
        Method::Fcn => settings.push(("head_dilation", config.head_dilation.to_string())),
        Method::PspNet => settings.push(("pool_scales", format!("{:?}", config.pool_scales))),
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            settings.push(("dilations", format!("{:?}", config.dilations)));
        }
    }
    settings.push(("align_corners", config.align_corners.to_string()));
    if config.binary {
        settings.push(("threshold", config.threshold.to_string()));
    }
    settings
}
