#![doc = include_str!("../README.md")]

mod atomic;
mod folder;

pub use atomic::write_atomically;
pub use folder::{entries, walk};
