//! The four methods.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A segmentation method: which head follows the backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Method {
    /// Fully convolutional network (arXiv:1411.4038).
    Fcn,
    /// Pyramid scene parsing network (arXiv:1612.01105).
    PspNet,
    /// Atrous spatial pyramid pooling (arXiv:1706.05587).
    DeepLabV3,
    /// The same with separable convolutions and a low-level branch (arXiv:1802.02611).
    DeepLabV3Plus,
}

/// A name that is not a method's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownMethod(
    /// The name that was found.
    pub String,
);

impl Method {
    /// All methods.
    pub const ALL: [Self; 4] = [
        Self::Fcn,
        Self::PspNet,
        Self::DeepLabV3,
        Self::DeepLabV3Plus,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Fcn => "fcn",
            Self::PspNet => "pspnet",
            Self::DeepLabV3 => "deeplabv3",
            Self::DeepLabV3Plus => "deeplabv3plus",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| UnknownMethod(name.to_owned()))
    }
}

impl fmt::Display for UnknownMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Method::ALL.map(Method::name).join(", ");
        write!(f, "unknown method '{}': expected one of {names}", self.0)
    }
}

impl std::error::Error for UnknownMethod {}
