#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod boundary;
mod calibration;
mod cityscapes;
mod confusion;
mod curve;
mod error;
mod inference;
mod plots;
mod scores_json;

pub use boundary::BoundaryCounts;
pub use calibration::{Calibration, CalibrationBin, Confidences};
pub use cityscapes::{CityscapesScore, CityscapesScorer, CityscapesScores};
pub use confusion::{ClassScore, ConfusionMatrix, Scores};
pub use curve::{Curve, running_mean};
pub use error::EvalError;
pub use inference::{Prediction, Windows, argmax, multi_scale_flip, slide};
pub use plots::{Chart, Series, charts_svg, confusion_svg, curves_svg};
pub use scores_json::{by_class, scores_json};
