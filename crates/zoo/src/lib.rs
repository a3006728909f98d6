#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cache;
mod entry;
mod error;
#[cfg(feature = "http")]
mod http;
mod progress;
mod verify;

pub use cache::{Cache, Settings};
pub use entry::{Entry, entries, find, nearest, read_table};
pub use error::ZooError;
pub use progress::Progress;
