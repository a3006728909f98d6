//! Which values a segmentor can have.

use crate::config::default_threshold;
use crate::{Method, SegmentorConfig};

/// A value that no segmentor can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{key} = {found} is not possible: expected {expected}")]
#[non_exhaustive]
pub struct ConfigError {
    /// Name of the value.
    pub key: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// The most channels of a map's narrowest part, and pixels between taps, so that no size overflows.
const MAX_CHANNELS: usize = 65_536;
/// The largest stride of a stage, in pixels.
const MAX_STRIDE: usize = 16;
/// The most levels, branches and convolutions of a head.
const MAX_PARTS: usize = 64;
/// The most bins of a level, in each direction.
const MAX_BINS: usize = 1024;

impl SegmentorConfig {
    /// Whether a segmentor can have these values.
    ///
    /// # Errors
    /// The first value that it cannot have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_backbone()?;
        self.validate_heads()
    }

    fn validate_backbone(&self) -> Result<(), ConfigError> {
        let stem = self.stem_channels;
        let even = (2..=MAX_CHANNELS).contains(&stem) && stem.is_multiple_of(2);
        check(
            "stem_channels",
            even || (!self.deep_stem && (1..=MAX_CHANNELS).contains(&stem)),
            "an even number from 2 to 65536",
            stem,
        )?;
        for (key, width) in [
            ("in_channels", self.in_channels),
            ("base_channels", self.base_channels),
        ] {
            channels(key, width)?;
        }
        numbers("stage_strides", &self.stage_strides, 4, MAX_STRIDE)?;
        numbers("stage_dilations", &self.stage_dilations, 4, MAX_CHANNELS)?;
        if self.multi_grid.is_empty() {
            return Ok(());
        }
        numbers("multi_grid", &self.multi_grid, MAX_PARTS, MAX_CHANNELS)?;
        let [.., blocks] = self.backbone.blocks();
        check(
            "multi_grid",
            self.multi_grid.len() >= blocks,
            "no numbers, or one for each block of the last stage",
            format!("{:?} for {blocks} blocks", self.multi_grid),
        )
    }

    fn validate_heads(&self) -> Result<(), ConfigError> {
        let classes = self.num_classes;
        check(
            "num_classes",
            (2..=255).contains(&classes),
            "2 to 255 (with one there is nothing to tell apart)",
            classes,
        )?;
        check(
            "binary",
            !self.binary || classes == 2,
            "false, but for two classes",
            format!("{} with {classes} classes", self.binary),
        )?;
        check(
            "threshold",
            self.threshold > 0.0 && self.threshold < 1.0,
            "a number between 0 and 1",
            self.threshold,
        )?;
        check(
            "threshold",
            self.binary || self.threshold == default_threshold(),
            "0.3 without binary, to which it belongs",
            self.threshold,
        )?;
        for (key, width) in [
            ("head_channels", self.head_channels),
            ("aux_channels", self.aux_channels),
            ("c1_channels", self.c1_channels),
        ] {
            channels(key, width)?;
        }
        let stages = self.backbone_config().stage_channels();
        for (key, stage) in [
            ("head_index", self.head_index),
            ("aux_index", self.aux_index),
        ] {
            check(key, stage < stages.len(), "a stage, 0 to 3", stage)?;
        }
        let heads = [
            (
                ["head_convs", "head_dilation"],
                [self.head_convs, self.head_dilation],
                stages[self.head_index] == self.head_channels || self.method != Method::Fcn,
            ),
            (
                ["aux_convs", "aux_dilation"],
                [self.aux_convs, self.aux_dilation],
                stages[self.aux_index] == self.aux_channels || !self.aux_head,
            ),
        ];
        for ([convs, dilation], [count, taps], may_have_none) in heads {
            check(
                convs,
                (1..=MAX_PARTS).contains(&count) || (count == 0 && may_have_none),
                "1 to 64, or 0 where the head has as many channels as the map that it reads",
                count,
            )?;
            channels(dilation, taps)?;
        }
        numbers("pool_scales", &self.pool_scales, MAX_PARTS, MAX_BINS)?;
        numbers("dilations", &self.dilations, MAX_PARTS, MAX_CHANNELS)?;
        check(
            "refine",
            !self.refine || self.method == Method::DeepLabV3,
            "false, but for deeplabv3",
            self.refine,
        )?;
        check(
            "dropout",
            (0.0..1.0).contains(&self.dropout),
            "0 or more, below 1",
            self.dropout,
        )?;
        check(
            "aux_weight",
            self.aux_weight.is_finite() && self.aux_weight >= 0.0,
            "0 or more",
            self.aux_weight,
        )
    }
}

fn check(
    key: &'static str,
    ok: bool,
    expected: &str,
    found: impl ToString,
) -> Result<(), ConfigError> {
    match ok {
        true => Ok(()),
        false => Err(ConfigError {
            key,
            expected: expected.to_owned(),
            found: found.to_string(),
        }),
    }
}

fn channels(key: &'static str, width: usize) -> Result<(), ConfigError> {
    let possible = (1..=MAX_CHANNELS).contains(&width);
    check(key, possible, "a number from 1 to 65536", width)
}

/// At most `count` numbers from 1 to `most`, at least one.
fn numbers(
    key: &'static str,
    numbers: &[usize],
    count: usize,
    most: usize,
) -> Result<(), ConfigError> {
    let possible = |number: &usize| (1..=most).contains(number);
    let ok = (1..=count).contains(&numbers.len()) && numbers.iter().all(possible);
    let expected = format!("1 to {count} numbers from 1 to {most}");
    check(key, ok, &expected, format!("{numbers:?}"))
}
