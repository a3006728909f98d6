#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod atomic;
mod audit;
mod error;
mod finite;
mod learner;
mod machine;
mod optimizer;
mod poly;
mod recipe;
mod run;
mod schedule;
mod source;
mod start;

pub use audit::{Audit, audit};
pub use error::Error;
pub use halfseg_amp::{
    AmpError, AuditReport, CastReport, GradScaler, Op, Policy, Precision, Scaling, StepOutcome,
    UnderflowReport,
};
pub use halfseg_data::{Crop, DataError, Dataset, Pipeline, Scale};
pub use halfseg_devices::{
    Bytes, DeviceChoice, DeviceError, ExchangePrecision, RankFailure, Ranks, Route,
};
pub use halfseg_eval::{EvalError, Scores};
pub use halfseg_layers::Objective;
pub use halfseg_predict::{EvalMode, EvalScale, PredictError, PredictorConfig};
pub use halfseg_segmentor::{
    CheckpointError, Depth, LoadReport, Method, Segmentor, SegmentorConfig, TrainingStep,
};
pub use learner::{Learner, Step};
pub use machine::machine_findings;
pub use optimizer::{AdamW, Factors, Sgd};
pub use poly::PolySchedule;
pub use recipe::values::{
    DataSource, LossScale, Metric, OptimizerKind, ParseValueError, RunPrecision,
};
pub use recipe::{
    DataRecipe, LossRecipe, OptimizerRecipe, PrecisionRecipe, Recipe, ScheduleRecipe, TrainRecipe,
};
pub use run::Trainer;
pub use run::details::{PictureScores, RunEvaluation};
pub use run::folder::{
    DEFINITION_KEY, Existing, RECIPE_KEY, REPORT_FILE, REPORT_MARK, is_of_run, is_own_report,
    is_run_name, read_recipe, resolve_checkpoint,
};
pub use run::log::Log;
pub use run::observer::{Observer, Outcome, Started, Timing};
pub use run::record::RunRecord;
pub use run::results::draw_curves;
pub use run::together::{check_same, check_same_weights};
pub use schedule::{Decay, Schedule};
pub use source::{Splits, check_channels, check_classes, open_split, pipeline, pipeline_for};
pub use start::{bound_policy, check_memory, open_device};
