#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod config;
mod error;
mod logits;
mod memory;
mod pictures;
mod predictor;
mod settings;

pub use config::{EvalMode, EvalScale, InvalidConfig, PredictorConfig};
pub use error::PredictError;
pub use logits::{is_own_logits, write_logits};
pub use pictures::{
    GAP_PX, colorize, difference, draw_prediction, overlay, panel, panel_parts, write_maps,
};
pub use predictor::{Evaluated, Predictor};
pub use settings::PredictorSettings;
