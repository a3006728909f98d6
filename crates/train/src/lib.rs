#![doc = include_str!("../README.md")]

mod atomic;
mod error;
mod memory;
mod overrides;
mod poly;
mod sgd;
mod values;

pub use error::Error;
pub use memory::{Bytes, available_memory, resident_memory};
pub use poly::PolySchedule;
pub use sgd::Sgd;
pub use values::{Crop, DeviceChoice, LossScale, ParseValueError, Precision, Scale};
