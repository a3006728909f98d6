#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

#[macro_use]
mod output;

mod args;
mod commands;
mod failure;
mod interrupt;
mod preset;
mod progress;
mod published;
mod settings;
mod shell;
mod values;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    halfseg_devices::keep_freed_memory();
    let cli = args::Cli::parse();
    output::set_level(cli.quiet, cli.verbose);
    published::set_offline(cli.offline);
    failure::to_exit_code(|| commands::run(cli.command))
}
