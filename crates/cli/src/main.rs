#![doc = include_str!("../README.md")]

// In place of the standard library's, which panic when nobody reads stderr any more: a run outlives
// its terminal.
macro_rules! eprint {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = write!(std::io::stderr(), $($text)*);
    }};
}
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod args;
mod commands;
mod failure;
mod interrupt;
mod output;
mod progress;
mod settings;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    halfseg_devices::keep_freed_memory();
    let cli = args::Cli::parse();
    failure::to_exit_code(|| commands::run(cli.command))
}
