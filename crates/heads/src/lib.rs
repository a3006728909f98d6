#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod aspp;
mod classifier;
mod deeplabv3;
mod deeplabv3plus;
mod fcn;
mod psp;

pub use aspp::{Aspp, AsppBranch, AsppConfig};
pub use deeplabv3::{DeepLabV3Head, DeepLabV3HeadConfig};
pub use deeplabv3plus::{DeepLabV3PlusHead, DeepLabV3PlusHeadConfig};
pub use fcn::{FcnHead, FcnHeadConfig};
pub use halfseg_layers::{Conv2d, ConvBnAct, DepthwiseSeparable};
pub use psp::{PspHead, PspHeadConfig};
pub use rand::Rng;
