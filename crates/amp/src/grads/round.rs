//! What the gradients of a step carry along.

use std::sync::Arc;

use burn::module::ParamId;
use burn::tensor::Tensor;

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
    /// Whether some loss or gradient of the step exists beside this.
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }
}

/// A flag on the device that says whether something computed in the forward pass is finite.
#[derive(Clone)]
pub(crate) struct ForwardFlag {
    pub name: String,
    pub finite: Tensor<1>,
}
