#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod boundary;
mod cityscapes;
mod confusion;
mod error;
mod inference;
mod plots;
mod scores_json;

pub use boundary::BoundaryCounts;
pub use cityscapes::{CityscapesScore, CityscapesScorer, CityscapesScores};
pub use confusion::{ClassScore, ConfusionMatrix, Scores};
pub use error::EvalError;
pub use inference::{Prediction, Windows, argmax, multi_scale_flip, slide};
pub use plots::{Chart, Series, charts_svg, confusion_svg, curves_svg};
pub use scores_json::{by_class, scores_json};
