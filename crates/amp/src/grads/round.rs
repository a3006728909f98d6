//! What the gradients of a step carry along.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::module::ParamId;

/// The part of a scaler that its losses and gradients carry along.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Round {
    /// Tells the steps of all scalers apart.
    pub id: u64,
    /// Shared by all that belongs to the step, so that its scaler knows whether anything does.
    pub held: Arc<()>,
    pub scale: f32,
    /// Whether gradients are checked at all.
    pub checked: bool,
    /// The running statistics that the forward pass may have changed.
    pub statistics: Arc<Vec<ParamId>>,
}

impl Round {
    /// What the next step of any scaler carries.
    pub fn new(scale: f32, checked: bool) -> Self {
        static ROUNDS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: ROUNDS.fetch_add(1, Ordering::Relaxed),
            held: Arc::default(),
            scale,
            checked,
            statistics: Arc::default(),
        }
    }

    /// Whether some loss or gradient of the step exists beside this.
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }
}
