//! `halfseg config`.

use std::io::Write;

use anyhow::{Context, Result};

use crate::args::ConfigArgs;
use crate::settings;

/// Prints the whole effective configuration to stdout.
pub fn run(args: &ConfigArgs) -> Result<()> {
    let toml = settings::recipe(&args.recipe, args.policy.as_deref())?.to_toml();
    std::io::stdout()
        .write_all(toml.as_bytes())
        .context("cannot write to stdout")
}
