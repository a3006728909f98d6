#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch;
mod config;
mod error;
mod evaluate;
mod film;
mod logits;
mod memory;
mod pictures;
mod polygons;
mod predictor;
mod settings;

pub use config::{EvalMode, EvalScale, InvalidConfig, PredictorConfig};
pub use error::PredictError;
pub use evaluate::Evaluated;
pub use film::Film;
pub use logits::{is_own_logits, write_logits};
pub use pictures::{
    GAP_PX, colorize, difference, draw_prediction, overlay, panel, panel_parts, write_maps,
};
pub use polygons::{
    ClassPolygons, Polygon, Ring, class_pixels, count_corners, fill_polygons, polygons,
};
pub use predictor::Predictor;
pub use settings::{PredictorSettings, known_classes};
