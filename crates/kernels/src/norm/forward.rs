//! What a forward pass is told beside its tensors.

use burn::tensor::Tensor;

use super::Running;
use crate::Activation;

/// How running statistics move: they keep a share, and take one of the batch's mean and one of its biased
/// variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moves {
    pub keep: f32,
    pub mean: f32,
    pub variance: f32,
}

/// What a forward pass is told beside its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forward {
    pub epsilon: f64,
    pub activation: Activation,
    pub moves: Moves,
    /// Whether the output is not kept for what reads it in the backward pass, but made again from the input,
    /// which is kept anyway: a pass over the map for its memory. Where something is added before the
    /// activation the output is kept, since the mask is read from it.
    pub again: bool,
}

/// On GPUs, whose memory is what limits a batch.
pub fn is_made_again(x: &Tensor<4>) -> bool {
    #[cfg(feature = "cube")]
    return crate::gpu::launch::handles(&x.device(), x.dtype());
    #[cfg(not(feature = "cube"))]
    {
        let _ = x;
        false
    }
}

impl Running {
    pub(super) fn moves(&self, count: usize) -> Moves {
        let unbiased = count as f64 / count.saturating_sub(1).max(1) as f64;
        Moves {
            keep: (1.0 - self.momentum) as f32,
            mean: self.momentum as f32,
            variance: (self.momentum * unbiased) as f32,
        }
    }
}
