#![doc = include_str!("../README.md")]

mod atomic;
mod audit;
mod cost;
mod device;
mod error;
mod inference;
mod learner;
mod log;
mod memory;
mod memory_plan;
mod overrides;
mod parameters;
mod poly;
mod recipe;
mod results;
mod sgd;
mod state;
mod tensors;
mod trainer;
mod values;

pub use audit::{Audit, audit};
pub use cost::{Cost, PartCost, training_memory};
pub use error::Error;
pub use inference::{Evaluated, Predictor};
pub use learner::{Exchange, Learner, Step};
pub use log::Log;
pub use memory::{Bytes, available_memory, resident_memory};
pub use memory_plan::MemoryPlan;
pub use parameters::parameters;
pub use poly::PolySchedule;
pub use recipe::{
    DataRecipe, EvalMode, EvalRecipe, EvalScale, OptimizerRecipe, PrecisionRecipe, Recipe,
    ScheduleRecipe, TrainRecipe,
};
pub use results::{draw_confusion, draw_curves, draw_prediction, scores_json, write_maps};
pub use sgd::Sgd;
pub use tensors::write_logits;
pub use trainer::{
    Observer, Outcome, RECIPE_KEY, Started, Timing, Trainer, bound_policy, class_names, open_split,
    pipeline, read_recipe, resolve_checkpoint,
};
pub use values::{Crop, DeviceChoice, LossScale, ParseValueError, Precision, Scale};
