//! Gradients whose type says whether they are still scaled.

#[cfg(feature = "flex")]
mod host;
mod measure;
mod round;
mod scaled;
mod slot;
mod unscaled;

#[cfg(test)]
pub(crate) use measure::READBACKS;
pub(crate) use measure::read_back;
pub(crate) use round::Round;
pub use scaled::{ScaledGrads, ScaledGraph, ScaledLoss};
pub use unscaled::UnscaledGrads;
