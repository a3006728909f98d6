#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod block;
mod depth;
mod resnet;
mod style;

pub use block::{BasicBlock, Block, BlockConfig, Bottleneck};
pub use depth::{Depth, UnknownDepth};
pub use halfseg_layers::ConvBnAct;
pub use resnet::{ResNet, ResNetConfig, Stages};
pub use style::Style;
