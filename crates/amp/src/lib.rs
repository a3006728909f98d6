#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`guide`] for a training loop, [`Policy`] and [`autocast()`], [`nn`] and [`ops`], [`GradScaler`], [`audit()`].
#![forbid(unsafe_code)]

mod audit;
mod autocast;
mod cache;
mod cast;
mod ema;
mod error;
mod grads;
pub mod guide;
pub mod nn;
mod observe;
mod op;
pub mod ops;
mod outcome;
mod paths;
mod policy;
mod precision;
mod promote;
mod report;
mod scale;
mod scaler;
mod scaling;
mod scope;
mod shared;
mod site;
mod statistics;
mod step;
mod support;
mod torch_state;
mod underflow;

pub use audit::{AuditReport, AuditRow, audit};
pub use autocast::{InScope, autocast, in_scope};
pub use cache::{cast_param, invalidate_casts, param_dtype};
pub use cast::cast;
pub use ema::Ema;
pub use error::AmpError;
pub use grads::{Numbers, ScaledGrads, ScaledGraph, ScaledLoss, UnscaledGrads};
pub use observe::observe;
pub use op::{Op, OpClass};
pub use outcome::{OverflowPass, ScaleUpdate, StepOutcome};
pub use paths::{ParameterPath, parameter_paths};
pub use policy::{Policy, UnmatchedModule};
pub use precision::Precision;
pub use promote::{
    add, atan2, cat, cross, div, dot, grid_sample_2d, matmul_operands, mul, operands, promote,
    promote_all, scatter, stack, sub, widest,
};
pub use report::{CastReport, cast_report};
pub use scaler::GradScaler;
pub use scaling::{DynamicScale, Scaling};
pub use scope::current;
pub use shared::{ScalerSchedule, SharedScaler};
pub use site::Site;
pub use step::Overflow;
pub use torch_state::TorchState;
pub use underflow::{Losses, UnderflowReport, UnderflowRow};
