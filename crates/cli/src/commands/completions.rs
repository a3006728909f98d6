//! `halfseg completions`.

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::output::print;

/// Prints the script that completes commands, flags and their values in a shell.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "halfseg", &mut script);
    print(&String::from_utf8(script).context("the script is no text")?)
}
