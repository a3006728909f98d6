#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg(feature = "http")]

mod answer;
mod config;
mod connection;
mod error;
mod metrics;
mod model;
mod output;
mod page;
mod problem;
mod queue;
mod routes;
mod server;
mod upload;
mod worker;

pub use config::ServerConfig;
pub use error::ServerError;
pub use model::{Model, Network};
pub use server::Server;
