#![doc = include_str!("../README.md")]

mod autocast;

pub use autocast::{Op, Policy, autocast, cast, cast_param, current};
