//! A server on a port of its own, asked over sockets.

mod answers;
mod client;
#[path = "../../../segmentor/tests/drawn/mod.rs"]
mod drawn;
mod hostile;
mod overload;
