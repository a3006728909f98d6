//! The small values of a recipe and how they are written.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use halfseg_amp::{Policy, Scaling};
use halfseg_data::is_definition;
use halfseg_eval::Scores;
use serde::{Deserialize, Serialize};

/// A text that is not a value of this kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found `{found}`")]
pub struct ParseValueError {
    expected: &'static str,
    found: String,
}

/// The arithmetic of convolutions and other matrix work; weights, statistics and the loss are f32
/// throughout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RunPrecision {
    /// Single precision everywhere; the loss is not scaled.
    F32,
    /// IEEE half precision: 11 bits of precision, exponents down to 2^-24.
    #[default]
    F16,
    /// Brain float: 8 bits of precision, the exponents of f32.
    Bf16,
}

impl RunPrecision {
    /// The casting policy of this precision.
    pub fn policy(self) -> Policy {
        match self {
            Self::F32 => Policy::disabled(),
            Self::F16 => Policy::f16(),
            Self::Bf16 => Policy::bf16(),
        }
    }

    /// Bytes of an element of the maps.
    pub fn element_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// By which score the best weights of a run are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Metric {
    /// Mean IoU of the classes.
    #[default]
    Miou,
    /// Mean accuracy (recall).
    Macc,
    /// Share of pixels that are right.
    Aacc,
    /// Mean Dice coefficient, which is the F1 score.
    Mdice,
    /// Mean precision.
    Mprecision,
    /// Mean boundary IoU, which is measured for this alone.
    #[serde(rename = "mboundary_iou")]
    MboundaryIou,
}

impl Metric {
    /// What it is of `scores`, from 0 to 1.
    pub fn of(self, scores: &Scores) -> f64 {
        match self {
            Self::Miou => scores.mean_iou,
            Self::Macc => scores.mean_accuracy,
            Self::Aacc => scores.pixel_accuracy,
            Self::Mdice => scores.mean(|class| class.dice),
            Self::Mprecision => scores.mean(|class| class.precision),
            Self::MboundaryIou => scores.mean(|class| class.boundary_iou),
        }
    }
}

/// What moves the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay.
    AdamW,
}

/// By what the loss is multiplied before the backward pass, so that small gradients survive half
/// precision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum LossScale {
    /// 512 in f16, as published; 1 in bf16 and f32, which have no small gradients to lose.
    #[default]
    Auto,
    /// This one in every precision; `dynamic` is another name of `torch`.
    Given(Scaling),
}

impl LossScale {
    /// How the gradient scaler of a run in `precision` is set.
    pub fn scaling(&self, precision: RunPrecision) -> Scaling {
        match (self, precision) {
            (Self::Given(scaling), _) => scaling.clone(),
            (Self::Auto, RunPrecision::F16) => Scaling::mmcv_static(),
            // Steps with infinite gradients are skipped all the same.
            (Self::Auto, RunPrecision::Bf16 | RunPrecision::F32) => Scaling::Fixed(1.0),
        }
    }
}

/// Where pictures come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum DataSource {
    /// Generated street scenes, written `synthetic`.
    Synthetic,
    /// A folder with `leftImg8bit` and `gtFine` in it, written as its path.
    Folder(String),
    /// The definition of a data set, written as the path of a file that ends with `.toml`.
    Definition(String),
}

impl From<&str> for DataSource {
    fn from(text: &str) -> Self {
        match text {
            "synthetic" => Self::Synthetic,
            file if is_definition(Path::new(file)) => Self::Definition(file.to_owned()),
            folder => Self::Folder(folder.to_owned()),
        }
    }
}

impl From<String> for DataSource {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<DataSource> for String {
    fn from(source: DataSource) -> String {
        source.to_string()
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synthetic => "synthetic",
            Self::Folder(path) | Self::Definition(path) => path,
        })
    }
}

macro_rules! text {
    ($type:ty, $expected:literal, $parse:expr, $print:expr) => {
        impl FromStr for $type {
            type Err = ParseValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let parse: fn(&str) -> Option<$type> = $parse;
                parse(text).ok_or_else(|| ParseValueError {
                    expected: $expected,
                    found: text.to_owned(),
                })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let print: fn(&$type, &mut fmt::Formatter<'_>) -> fmt::Result = $print;
                print(self, f)
            }
        }

        impl TryFrom<String> for $type {
            type Error = ParseValueError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}

text!(
    RunPrecision,
    "f32, f16 or bf16",
    |text| match text {
        "f32" => Some(RunPrecision::F32),
        "f16" => Some(RunPrecision::F16),
        "bf16" => Some(RunPrecision::Bf16),
        _ => None,
    },
    |precision, f| f.pad(match precision {
        RunPrecision::F32 => "f32",
        RunPrecision::F16 => "f16",
        RunPrecision::Bf16 => "bf16",
    })
);
text!(
    LossScale,
    "auto, a number from 2^-126 to 2^126 such as 512, torch (or dynamic), megatron, flax, apex, \
     keras, mmcv-static or none",
    |text| match text {
        "auto" => Some(LossScale::Auto),
        "dynamic" => "torch".parse().ok(),
        scaling => scaling.parse().ok().map(LossScale::Given),
    },
    |scale, f| match scale {
        LossScale::Auto => f.write_str("auto"),
        LossScale::Given(scaling) => scaling.fmt(f),
    }
);

#[cfg(test)]
mod tests {
    use halfseg_amp::DynamicScale;

    use super::*;

    fn check<T>(text: &str, value: T)
    where
        T: FromStr<Err = ParseValueError> + fmt::Display + PartialEq + fmt::Debug,
    {
        assert_eq!(text.parse::<T>().unwrap(), value);
        assert_eq!(value.to_string(), text);
    }

    #[test]
    fn values_read_what_they_print() {
        check("bf16", RunPrecision::Bf16);
        check("auto", LossScale::Auto);
        check("512", LossScale::Given(Scaling::Fixed(512.0)));
        let torch = Scaling::Dynamic(DynamicScale::torch());
        check("torch", LossScale::Given(torch));
        check("none", LossScale::Given(Scaling::Disabled));
    }

    #[test]
    fn a_source_of_data_is_the_word_or_a_path() {
        for (text, source) in [
            ("synthetic", DataSource::Synthetic),
            ("./synthetic", DataSource::Folder("./synthetic".into())),
            ("Synthetic", DataSource::Folder("Synthetic".into())),
            ("a/b.toml", DataSource::Definition("a/b.toml".into())),
        ] {
            assert_eq!(DataSource::from(text), source);
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_named_with_what_was_expected() {
        for text in [
            "0", "-0", "-1", "nan", "inf", "big", "", "1e38", "3e39", "1e-38", "1e-46", "Torch",
        ] {
            let error = text.parse::<LossScale>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("mmcv-static"));
        }
        assert!("fp16".parse::<RunPrecision>().is_err());
    }

    #[test]
    fn every_loss_scale_that_parses_makes_a_scaler() {
        for text in [
            "auto",
            "8e37",
            "1.2e-38",
            "512",
            "torch",
            "dynamic",
            "megatron",
            "flax",
            "apex",
            "keras",
            "mmcv-static",
            "none",
        ] {
            let scale: LossScale = text.parse().unwrap();
            assert_eq!(scale.to_string().parse(), Ok(scale.clone()), "{text}");
            for precision in [RunPrecision::F16, RunPrecision::Bf16, RunPrecision::F32] {
                let scaling = scale.scaling(precision);
                assert!(scaling.validate().is_ok(), "{text}");
                if !["auto", "dynamic", "mmcv-static"].contains(&text) {
                    assert_eq!(text.parse::<Scaling>().unwrap(), scaling, "{text}");
                }
            }
        }
    }

    #[test]
    fn only_f16_scales_the_loss_unless_asked() {
        let auto = |precision| LossScale::Auto.scaling(precision);
        assert_eq!(auto(RunPrecision::F16), Scaling::Fixed(512.0));
        assert_eq!(auto(RunPrecision::Bf16), Scaling::Fixed(1.0));
        assert_eq!(auto(RunPrecision::F32), Scaling::Fixed(1.0));
        let given = LossScale::Given(Scaling::Fixed(512.0));
        assert_eq!(given.scaling(RunPrecision::Bf16), Scaling::Fixed(512.0));
    }
}
