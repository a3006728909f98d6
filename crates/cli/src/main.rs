#![doc = include_str!("../README.md")]

mod demo;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use halfseg_segmentor::{Depth, Method};
use halfseg_train::Recipe;

/// Mixed-precision semantic segmentation.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains, evaluates and predicts on generated street scenes, in f16 on the CPU.
    Demo {
        /// Folder for the log and the pictures.
        #[arg(long, default_value = "runs/demo")]
        out: PathBuf,
        /// Training iterations.
        #[arg(long, default_value_t = 150)]
        iterations: u64,
        /// Precision of the convolutions.
        #[arg(long, default_value = "f16", value_parser = ["f32", "f16", "bf16"])]
        precision: String,
    },
    /// Prints the whole published configuration of a method as TOML.
    Config {
        /// fcn, pspnet, deeplabv3 or deeplabv3plus.
        #[arg(long)]
        method: Method,
        /// resnet18, resnet34, resnet50, resnet101 or resnet152.
        #[arg(long, default_value = "resnet101")]
        backbone: Depth,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo {
            out,
            iterations,
            precision,
        } => demo::run(&out, iterations, &precision),
        Command::Config { method, backbone } => {
            print!("{}", Recipe::published(method, backbone).to_toml());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
