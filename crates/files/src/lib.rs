#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod atomic;
mod folder;
mod open;

pub use atomic::{move_into_place, sweep, write_atomically};
pub use folder::{entries, walk};
pub use open::{open_regular, read_text};
