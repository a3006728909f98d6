//! Where a bottleneck has its stride.

use serde::{Deserialize, Serialize};

/// Which convolution of a bottleneck has the stride, by the framework that such weights came from first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// The 3x3, as in PyTorch's models.
    #[default]
    Pytorch,
    /// The first 1x1, as in Caffe's models (arXiv:1512.03385).
    Caffe,
}
