#![doc = include_str!("../README.md")]

mod atomic;
mod device;
mod error;
mod log;
mod memory;
mod overrides;
mod poly;
mod recipe;
mod sgd;
#[allow(
    dead_code,
    reason = "the trainer that saves and resumes runs is not here yet"
)]
mod state;
mod values;

pub use error::Error;
pub use log::Log;
pub use memory::{Bytes, available_memory, resident_memory};
pub use poly::PolySchedule;
pub use recipe::{
    DataRecipe, EvalMode, EvalRecipe, EvalScale, OptimizerRecipe, PrecisionRecipe, Recipe,
    ScheduleRecipe, TrainRecipe,
};
pub use sgd::Sgd;
pub use values::{Crop, DeviceChoice, LossScale, ParseValueError, Precision, Scale};
