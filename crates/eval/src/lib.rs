#![doc = include_str!("../README.md")]

mod cityscapes;
mod confusion;
mod error;
mod inference;
mod pictures;
mod plots;
mod png_map;

pub use cityscapes::{CityscapesScore, CityscapesScorer, CityscapesScores};
pub use confusion::{ClassScore, ConfusionMatrix, Scores};
pub use error::EvalError;
pub use inference::{argmax, multi_scale_flip, slide};
pub use pictures::{colorize, overlay, panel, write_gray_png, write_rgb_png};
pub use plots::{Series, confusion_svg, curves_svg};
