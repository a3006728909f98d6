#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
mod message;
mod read;
mod record;
mod write;

pub use error::EventError;
pub use read::{Scalar, read_scalars};
pub use write::EventWriter;
