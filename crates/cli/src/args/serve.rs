//! Flags of `serve`.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use halfseg_data::Scale;
use halfseg_train::RunPrecision;

use super::PassArgs;
use crate::values::{PRECISIONS, listed};

/// Flags of `serve`.
#[derive(Debug, Args)]
#[cfg_attr(
    not(feature = "serve"),
    allow(dead_code, reason = "only the server reads them")
)]
pub struct ServeArgs {
    /// Weights: a file, the output folder of a training run, or zoo:NAME for a published checkpoint; may be
    /// repeated, and requests then choose by name
    #[arg(long, value_name = "FILE|zoo:NAME", required = true)]
    pub checkpoint: Vec<PathBuf>,
    /// Port; 0 takes one that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// Address to listen on: the default is reached from this machine alone
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Ask for `Authorization: Bearer` with the token in this file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Let pages of this origin ask, such as `https://example.org` (`*`: of all); may be repeated
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// Dtype of requests that name none; unless given, what the checkpoint was trained in, and f32 where it
    /// does not say
    #[arg(long, value_parser = listed::<RunPrecision>(PRECISIONS))]
    pub precision: Option<RunPrecision>,
    /// How pictures pass through the networks, and where
    #[command(flatten)]
    pub pass: PassArgs,
    /// Pictures that wait for a network; further requests get 503
    #[arg(long, value_name = "N", default_value = "64", help_heading = "Limits")]
    pub queue: NonZeroUsize,
    /// Waiting pictures of one size that are segmented at once, at most
    #[arg(long, value_name = "N", default_value = "8", help_heading = "Limits")]
    pub batch: NonZeroUsize,
    /// Bytes of a request's body
    #[arg(
        long,
        value_name = "N",
        default_value = "33554432",
        help_heading = "Limits"
    )]
    pub max_bytes: NonZeroUsize,
    /// Pixels of a picture
    #[arg(long, value_name = "N", default_value_t = 1 << 23, help_heading = "Limits")]
    pub max_pixels: u64,
    /// MiB that bodies and decoded pictures of all requests take together; further requests get 503
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 512,
        help_heading = "Limits"
    )]
    pub memory: u64,
    /// Connections at a time; further ones get 503
    #[arg(long, value_name = "N", default_value = "512", help_heading = "Limits")]
    pub connections: NonZeroUsize,
    /// Seconds from a whole request to its answer; bodies have half of it to come
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        help_heading = "Limits"
    )]
    pub timeout: NonZeroUsize,
    /// Size of the grey picture that each network segments before the server begins
    #[arg(
        long,
        value_name = "WxH",
        default_value = "256x256",
        help_heading = "Limits"
    )]
    pub warm_up: Scale,
}
