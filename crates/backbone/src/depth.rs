//! The depths that ResNets come in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Depth of a ResNet, in layers with weights (arXiv:1512.03385, table 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Depth {
    /// 18 layers, basic blocks.
    #[serde(rename = "resnet18")]
    R18,
    /// 34 layers, basic blocks.
    #[serde(rename = "resnet34")]
    R34,
    /// 50 layers, bottlenecks.
    #[serde(rename = "resnet50")]
    R50,
    /// 101 layers, bottlenecks.
    #[serde(rename = "resnet101")]
    R101,
    /// 152 layers, bottlenecks.
    #[serde(rename = "resnet152")]
    R152,
}

/// A name that is not a depth's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDepth(
    /// The name that was found.
    pub String,
);

impl Depth {
    /// All depths, shallowest first.
    pub const ALL: [Self; 5] = [Self::R18, Self::R34, Self::R50, Self::R101, Self::R152];

    /// Residual blocks of the four stages.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::R18 => [2, 2, 2, 2],
            Self::R34 | Self::R50 => [3, 4, 6, 3],
            Self::R101 => [3, 4, 23, 3],
            Self::R152 => [3, 8, 36, 3],
        }
    }

    /// Whether blocks are bottlenecks (1x1, 3x3, 1x1) rather than basic (3x3, 3x3).
    pub fn has_bottlenecks(self) -> bool {
        !matches!(self, Self::R18 | Self::R34)
    }

    /// Output channels of a block, in multiples of its width.
    pub fn expansion(self) -> usize {
        if self.has_bottlenecks() { 4 } else { 1 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::R18 => "resnet18",
            Self::R34 => "resnet34",
            Self::R50 => "resnet50",
            Self::R101 => "resnet101",
            Self::R152 => "resnet152",
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Depth {
    type Err = UnknownDepth;

    fn from_str(name: &str) -> Result<Self, UnknownDepth> {
        Self::ALL
            .into_iter()
            .find(|depth| depth.name() == name)
            .ok_or_else(|| UnknownDepth(name.to_owned()))
    }
}

impl fmt::Display for UnknownDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Depth::ALL.map(Depth::name).join(", ");
        write!(f, "unknown backbone '{}': expected one of {names}", self.0)
    }
}

impl std::error::Error for UnknownDepth {}
