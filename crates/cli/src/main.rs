#![doc = include_str!("../README.md")]

mod args;
mod commands;
mod failure;
mod interrupt;
mod output;
mod peak;
mod progress;
mod settings;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    halfseg_kernels::keep_freed_memory();
    let cli = args::Cli::parse();
    failure::to_exit_code(|| commands::run(cli.command))
}
