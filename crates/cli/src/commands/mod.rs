//! The subcommands, one per file.

mod archive;
mod audit;
mod bench;
mod browse;
mod completions;
mod config;
mod data;
mod demo;
mod doctor;
mod eval;
mod export;
pub mod info;
mod kept;
mod left_out;
mod man;
mod plot;
mod predict;
pub mod report;
mod score;
mod serve;
mod train;
mod zoo;

use std::num::NonZeroUsize;

use anyhow::{Context, Result};

use halfseg_devices::Ranks;

use crate::args::Command;
#[cfg(feature = "flex")]
use crate::failure::Usage;
use crate::{interrupt, ranks};

/// Runs a subcommand.
pub fn run(command: Command) -> Result<()> {
    interrupt::install(match command {
        Command::Demo(_) | Command::Train(_) => Some("saving what was learned"),
        Command::Eval(_) | Command::Predict(_) => Some("stopping after this picture"),
        Command::Bench(_) => Some("stopping after this pass"),
        Command::Serve(_) => Some("answering what was accepted"),
        _ => None,
    });
    detail!("halfseg {}", env!("HALFSEG_VERSION"));
    interrupt::survive_file_size_limit();
    let ranks = ranks::start(&command)?;
    ranks::together(check_environment())?;
    if let Command::Demo(_)
    | Command::Train(_)
    | Command::Eval(_)
    | Command::Predict(_)
    | Command::Serve(_)
    | Command::Audit(_) = &command
    {
        start_threads(own_threads(&ranks))?;
    }
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Browse(args) => browse::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Zoo(args) => zoo::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// What the kernels on this CPU are compiled for, and what multiplies f32; nothing without them.
fn cpu_kernels() -> Option<(&'static str, &'static str)> {
    #[cfg(feature = "flex")]
    return halfseg_kernels::instruction_set()
        .ok()
        .zip(halfseg_kernels::f32_products().ok());
    #[cfg(not(feature = "flex"))]
    None
}

/// Refuses what the environment says and nothing understands, before the first operation would.
fn check_environment() -> Result<()> {
    #[cfg(feature = "flex")]
    for checked in [
        halfseg_kernels::instruction_set(),
        halfseg_kernels::f32_products(),
    ] {
        checked.map_err(|error| Usage(error.to_string()))?;
    }
    Ok(())
}

/// The threads that one of several processes of a machine computes with, unless the user says it.
fn own_threads(ranks: &Ranks) -> Option<NonZeroUsize> {
    let threads = ranks.fair_threads();
    let said = std::env::var_os("RAYON_NUM_THREADS").is_some();
    if let Some(threads) = threads.filter(|_| !said) {
        let [_, here] = ranks.local();
        message!(
            "{} processes, {here} on this machine, each with {threads} thread(s) by the processors that the \
             launcher leaves it (RAYON_NUM_THREADS sets another number)",
            ranks.size()
        );
        return Some(threads);
    }
    None
}

/// Starts the threads that compute, `count` of them or one for each core: where the system has none
/// left, that is an error and not a panic in the midst of a run.
pub fn start_threads(count: Option<NonZeroUsize>) -> Result<()> {
    let mut threads = rayon::ThreadPoolBuilder::new();
    if let Some(count) = count {
        threads = threads.num_threads(count.get());
    }
    threads
        .build_global()
        .context("cannot start the threads that compute (`ulimit -u` limits how many there are)")
}
