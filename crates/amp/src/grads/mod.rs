//! Gradients whose type says whether they are still scaled.

mod forward;
#[cfg(feature = "flex")]
mod host;
mod measure;
mod numbers;
mod round;
mod scaled;
mod slot;
mod unscaled;

pub(crate) use measure::read_back;
pub use numbers::Numbers;
pub(crate) use round::Round;
pub use scaled::{ScaledGrads, ScaledGraph, ScaledLoss};
pub use unscaled::UnscaledGrads;
