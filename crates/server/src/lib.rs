// Its example needs the feature.
#![cfg_attr(feature = "http", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "http"), doc = "Empty without the feature `http`.")]
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
