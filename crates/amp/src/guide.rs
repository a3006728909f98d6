//! How to use this crate: a tutorial.
