#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cache;
mod entry;
mod error;
#[cfg(feature = "http")]
mod http;
mod verify;

pub use cache::{Cache, Progress, Settings};
pub use entry::{Entry, entries, find, nearest, read_table};
pub use error::ZooError;
