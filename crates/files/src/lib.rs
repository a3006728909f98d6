#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod atomic;
mod folder;
mod json;
mod open;
mod python;

pub use atomic::{move_into_place, sweep, write_atomically};
pub use folder::{entries, is_hidden, walk, walk_visible};
pub use json::parse_json;
pub use open::{open_regular, read_head, read_text};
pub use python::{PythonValue, python_text};
