//! How pictures pass through a network.

use std::str::FromStr;

use halfseg_data::{Crop, ParseSizeError, Scale};
use serde::{Deserialize, Serialize};

/// Ratios of the multi-scale views, each also mirrored
/// (`configs/_base_/datasets/cityscapes.py` of MMSegmentation).
pub(crate) const RATIOS: [f64; 6] = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75];

/// How pictures pass through a network.
///
/// The default is that of MMSegmentation's published Cityscapes configurations: whole pictures at their
/// own size (`configs/_base_/datasets/cityscapes.py`), and for windows 512x1024 with a third of overlap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PredictorConfig {
    /// `whole` or `slide`.
    pub mode: EvalMode,
    /// `HEIGHTxWIDTH` of a window, for `slide`.
    pub slide_crop: Crop,
    /// `HEIGHTxWIDTH` between windows, for `slide`.
    pub slide_stride: Crop,
    /// Average softmax over six sizes and their mirror images.
    pub ms_flip: bool,
    /// `WIDTHxHEIGHT` that images are resized to fit (logits are resized back); `own` keeps them.
    pub scale: EvalScale,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self {
            mode: EvalMode::Whole,
            slide_crop: Crop {
                height: 512,
                width: 1024,
            },
            slide_stride: Crop {
                height: 341,
                width: 683,
            },
            ms_flip: false,
            scale: EvalScale::Own,
        }
    }
}

/// A value of a [`PredictorConfig`] that no picture could be run with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: expected {expected}, found {found}")]
#[non_exhaustive]
pub struct InvalidConfig {
    /// The field.
    pub key: &'static str,
    /// What it takes.
    pub expected: String,
    /// What was there.
    pub found: String,
}

impl PredictorConfig {
    /// Whether pictures can be run so.
    ///
    /// # Errors
    /// Windows with gaps between them, or of no size.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let (crop, stride) = (self.slide_crop, self.slide_stride);
        if self.mode == EvalMode::Whole {
            return Ok(());
        }
        for (key, size) in [("slide_crop", crop), ("slide_stride", stride)] {
            if size.height == 0 || size.width == 0 {
                return Err(InvalidConfig {
                    key,
                    expected: "a size of at least 1x1".into(),
                    found: size.to_string(),
                });
            }
        }
        if stride.height > crop.height || stride.width > crop.width {
            return Err(InvalidConfig {
                key: "slide_stride",
                expected: format!("at most slide_crop, {crop}, so that windows leave no gaps"),
                found: stride.to_string(),
            });
        }
        Ok(())
    }
}

/// How one image passes through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalMode {
    /// At once.
    Whole,
    /// In overlapping windows whose logits are averaged.
    Slide,
}

/// The size at which images are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EvalScale {
    /// Their own.
    Own,
    /// As large as fits into this, in their own ratio.
    Fit(Scale),
}

impl FromStr for EvalScale {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "own" {
            Ok(Self::Own)
        } else {
            text.parse().map(Self::Fit)
        }
    }
}

impl TryFrom<String> for EvalScale {
    type Error = ParseSizeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EvalScale> for String {
    fn from(scale: EvalScale) -> String {
        match scale {
            EvalScale::Own => "own".into(),
            EvalScale::Fit(scale) => scale.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(change: impl FnOnce(&mut PredictorConfig), key: &str) {
        let mut config = PredictorConfig {
            mode: EvalMode::Slide,
            ..PredictorConfig::default()
        };
        assert_eq!(config.validate(), Ok(()));
        change(&mut config);
        assert_eq!(config.validate().unwrap_err().key, key);
        config.mode = EvalMode::Whole;
        assert_eq!(config.validate(), Ok(()), "windows are not used");
    }

    #[test]
    fn windows_that_leave_gaps_or_have_no_size_are_refused() {
        check_refused(|config| config.slide_stride.width = 1025, "slide_stride");
        check_refused(|config| config.slide_crop.height = 340, "slide_stride");
        check_refused(|config| config.slide_stride.height = 0, "slide_stride");
        check_refused(|config| config.slide_crop.width = 0, "slide_crop");
    }

    #[test]
    fn configurations_read_back_and_fill_in_what_is_left_out() {
        let mut config = PredictorConfig::default();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<PredictorConfig>(&json).unwrap(),
            config
        );
        config.scale = "640x320".parse().map(EvalScale::Fit).unwrap();
        config.mode = EvalMode::Slide;
        let short = r#"{"mode": "slide", "scale": "640x320"}"#;
        assert_eq!(
            serde_json::from_str::<PredictorConfig>(short).unwrap(),
            config
        );
        assert!(serde_json::from_str::<PredictorConfig>(r#"{"modes": "slide"}"#).is_err());
    }
}
