#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

#[macro_use]
mod output;

mod args;
mod commands;
#[cfg(feature = "tensorboard")]
mod events;
mod failure;
mod fitting;
mod interrupt;
mod observers;
mod preset;
mod progress;
mod published;
mod ranks;
mod settings;
mod shell;
#[cfg(feature = "tui")]
mod tui;
mod values;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    halfseg_devices::keep_freed_memory();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        // The first of several processes tells.
        Err(error) if ranks::is_further() => return ExitCode::from(error.exit_code() as u8),
        Err(error) => error.exit(),
    };
    output::set_level(cli.quiet, cli.verbose);
    published::set_offline(cli.offline);
    failure::to_exit_code(|| commands::run(cli.command))
}
