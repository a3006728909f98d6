//! Reading an architecture off the names and shapes of tensors.

use halfseg_backbone::{Depth, ResNetConfig};

use super::file::CheckpointFile;
use super::mmseg_config::HeadSettings;
use super::{CONFIG_KEY, CheckpointError};
use crate::{Method, SegmentorConfig};

impl CheckpointFile {
    /// The architecture of the segmentor in this file.
    pub(crate) fn architecture(&self) -> Result<SegmentorConfig, CheckpointError> {
        match self.metadata.get(CONFIG_KEY) {
            Some(json) => serde_json::from_str(json)
                .map_err(|error| self.not_a_segmentor("a configuration in its metadata", error)),
            None => self.architecture_from_shapes(),
        }
    }

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
        let settings = HeadSettings::of_checkpoint(&self.path);
        config.align_corners = settings.align_corners.unwrap_or(config.align_corners);
        if let Some(dilations) = settings.dilations.filter(|list| list.len() == branches) {
            config.dilations = dilations;
        }
        config
            .validate()
            .map_err(|error| self.not_a_segmentor("tensors of a possible size", error))?;
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
}
