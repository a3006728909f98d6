//! A server on a port of its own, asked over sockets.

mod answers;
mod client;
mod hostile;
mod overload;
