//! The command line.

mod data;
mod inference;
mod published;
mod serve;
mod shown;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use halfseg_data::{Crop, Scale};
use halfseg_devices::{DeviceChoice, ExchangePrecision};
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{LossScale, RunPrecision};

pub use self::data::{
    BrowseArgs, ConvertArgs, DataArgs, DataCommand, DoctorArgs, ExtractArgs, InitArgs,
};
pub use self::inference::{EvalArgs, ExportArgs, InferenceArgs, PassArgs, PredictArgs, ScoreArgs};
pub use self::published::{PlotArgs, ZooArgs};
pub use self::serve::ServeArgs;
pub use self::shown::{ReportArgs, ShownArgs};
use crate::values::{DEPTHS, DEVICES, LOSS_SCALES, METHODS, PRECISIONS, listed};

/// Semantic segmentation of street scenes in mixed precision.
///
/// Results go to stdout, progress and messages to stderr; `--json -` leaves stdout to the JSON alone.
/// Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted. NO_COLOR turns colours off.
#[derive(Debug, Parser)]
#[command(
    name = "halfseg",
    version,
    long_version = env!("HALFSEG_VERSION"),
    propagate_version = true
)]
pub struct Cli {
    /// Say nothing but results, warnings and errors
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        display_order = 1000
    )]
    pub quiet: bool,
    /// Say more: what runs, with which settings, and each picture that is done
    #[arg(short, long, global = true, display_order = 1001)]
    pub verbose: bool,
    /// Fetch nothing: published checkpoints must be in the cache
    #[arg(long, global = true, display_order = 1002)]
    pub offline: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train on generated scenes, evaluate and predict: the whole job in a few minutes
    Demo(DemoArgs),
    /// Train a network
    Train(Box<TrainArgs>),
    /// Look at a data set before it is trained on: every file, every class, and the machine
    Doctor(Box<DoctorArgs>),
    /// Show augmented samples with their classes, exactly as the network would see them
    Browse(Box<BrowseArgs>),
    /// Define a data set of your own
    Data(DataArgs),
    /// Score a checkpoint on a labelled split
    Eval(Box<EvalArgs>),
    /// Score a folder of predictions, as the official Cityscapes scorer does or by a definition
    Score(ScoreArgs),
    /// Segment images or a film
    Predict(Box<PredictArgs>),
    /// Segment pictures that are sent over HTTP, with a page to try it (in programs built with the feature `serve`)
    Serve(Box<ServeArgs>),
    /// Print the whole effective configuration as TOML
    Config(Box<ConfigArgs>),
    /// Convert a checkpoint
    Export(ExportArgs),
    /// Rank the operations of a network by the error of half precision, and write a policy
    Audit(Box<AuditArgs>),
    /// Print parameters, multiply-accumulates and the memory that training takes
    Info(InfoArgs),
    /// Measure the speed and memory of inference or of a training step
    Bench(Box<BenchArgs>),
    /// Show training runs as one HTML page: curves, scores, calibration, pictures
    Report(ReportArgs),
    /// Lay the curves of training runs over one another, MMSegmentation's too
    Plot(PlotArgs),
    /// List published checkpoints, or fetch them
    Zoo(ZooArgs),
    /// Print the script that completes commands and flags in a shell
    Completions(CompletionsArgs),
    /// Print or write the manual
    Man(ManArgs),
}

/// Which network.
#[derive(Clone, Debug, Default, Args)]
pub struct ModelArgs {
    /// Which network
    #[arg(long, value_parser = listed::<Method>(METHODS))]
    pub method: Option<Method>,
    /// Which ResNet
    #[arg(long, value_parser = listed::<Depth>(DEPTHS))]
    pub backbone: Option<Depth>,
    /// Number of classes
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(2..=255))]
    pub classes: Option<usize>,
}

/// Configuration files and single values.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigSources {
    /// Read the configuration from a TOML file (see `halfseg config`)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one value of the configuration, such as optimizer.lr=0.02; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// What the file holds, once it was read: a pipe can be read once
    #[arg(skip)]
    pub text: OnceLock<String>,
}

/// Flags of `train` and `config`.
#[derive(Clone, Debug, Default, Args)]
pub struct RecipeArgs {
    /// The network
    #[command(flatten)]
    pub model: ModelArgs,
    /// A folder with leftImg8bit and gtFine in it, the definition of a data set (see `halfseg data init`),
    /// or `synthetic`
    #[arg(long, value_name = "PATH|FILE.toml|synthetic")]
    pub data: Option<String>,
    /// Iterations of the whole run
    #[arg(long, value_name = "N")]
    pub iterations: Option<u64>,
    /// Images per iteration, on all devices together
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Take each batch in so many parts, one after the other, whose gradients are added up: as much less
    /// memory
    #[arg(long, value_name = "N")]
    pub accumulate: Option<usize>,
    /// Training crop
    #[arg(long, value_name = "HxW")]
    pub crop: Option<Crop>,
    /// Size that random ratios multiply; also the size of generated scenes
    #[arg(long, value_name = "WxH")]
    pub scale: Option<Scale>,
    /// Dtype of the computation; weights and the loss stay f32
    #[arg(long, value_parser = listed::<RunPrecision>(PRECISIONS))]
    pub precision: Option<RunPrecision>,
    /// A number (the factor of the whole run), or the name of a scale; unless given, 512 in f16 and 1 in
    /// bf16 and f32
    #[arg(long, value_name = "X|NAME", value_parser = listed::<LossScale>(LOSS_SCALES))]
    pub loss_scale: Option<LossScale>,
    /// Learning rate of the first iteration
    #[arg(long, value_name = "X")]
    pub lr: Option<f64>,
    /// Where to compute: cpu (of which flex, the backend's name, is another name), cuda or cuda:N, wgpu
    /// or wgpu:N
    #[arg(long, value_parser = listed::<DeviceChoice>(DEVICES))]
    pub device: Option<DeviceChoice>,
    /// Train on several devices, each with an equal part of every batch, such as cuda:0,cuda:1
    /// (cpu,cpu: in two threads); the results are those of one device
    #[arg(
        long,
        value_name = "DEVICE,..",
        value_delimiter = ',',
        value_parser = listed::<DeviceChoice>(DEVICES),
        conflicts_with = "device"
    )]
    pub devices: Vec<DeviceChoice>,
    /// Weights to start from: a whole model, whose network is taken over where flags ask for no
    /// other, or a backbone; zoo:NAME for a published one (see `halfseg zoo`)
    #[arg(long, value_name = "FILE|zoo:NAME")]
    pub checkpoint: Option<PathBuf>,
    /// Weights that the backbone alone starts from, such as zoo:resnet101_v1c
    #[arg(long, value_name = "FILE|zoo:NAME", conflicts_with = "checkpoint")]
    pub backbone_weights: Option<PathBuf>,
    /// Train as a published model was: its name (see `halfseg zoo`) sets network, backbone weights, data
    /// preparation, precision, schedule and a batch of 8
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub preset: Option<String>,
    /// Decides initial weights, order of images, augmentation and dropout
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Iterations between evaluations; 0 evaluates at the end only
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Keep a moving average of the weights, with a decay such as 0.999, which is evaluated and saved beside
    /// them; 0 for none
    #[arg(long, value_name = "DECAY")]
    pub ema: Option<f64>,
    /// Iterations between checkpoints, besides those before evaluations; 0 writes one at the end only
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints that are kept, the last of them; 1 unless given
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// Background threads that load and augment images
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Compute each residual block again in the backward pass instead of keeping its inner maps: less
    /// memory, one more forward pass, the same results
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// How gradients travel between several processes, which add them up in f32
    #[arg(long, value_parser = listed::<ExchangePrecision>(PRECISIONS))]
    pub exchange_precision: Option<ExchangePrecision>,
    /// Seconds that a process waits for another before it names it and ends the job; 0 waits forever
    #[arg(long, value_name = "SECONDS")]
    pub exchange_timeout: Option<u64>,
    /// Configuration
    #[command(flatten)]
    pub sources: ConfigSources,
}

/// Flags of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Folder for checkpoints, log, scores and pictures
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Take the precision from a policy file (see `halfseg audit`), in place of the configuration's;
    /// a --precision that contradicts it is refused
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Continue the run in --out from its last checkpoint, on the devices that it ran on
    #[arg(long)]
    pub resume: bool,
    /// Begin a new run even if --out holds another, whose files are removed
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// Write the final scores as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// How the run is shown
    #[command(flatten)]
    pub shown: ShownArgs,
}

/// Flags of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The recipe
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Take the precision from a policy file (see `halfseg audit`), in place of the configuration's;
    /// a --precision that contradicts it is refused
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// Flags of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The network
    #[command(flatten)]
    pub model: ModelArgs,
    /// Read the network off these weights: a file, or zoo:NAME
    #[arg(long, value_name = "FILE|zoo:NAME")]
    pub checkpoint: Option<PathBuf>,
    /// Size of the input image
    #[arg(long, value_name = "HxW", default_value = "512x1024")]
    pub size: Crop,
    /// Images of a training step whose memory is predicted; 2 unless given
    #[arg(long, value_name = "N")]
    pub batch: Option<NonZeroUsize>,
    /// Predict the time of such a step on a device that does so many multiply-adds a second, each counted as two
    /// operations, in its convolutions: `halfseg bench` measures it
    #[arg(long, value_name = "X")]
    pub gflops: Option<f64>,
    /// Write the numbers as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// The network's other values, without --checkpoint
    #[command(flatten)]
    pub sources: ConfigSources,
}

/// Flags of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// The recipe; with --checkpoint alone, the one that the checkpoint carries
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Write a policy that runs what errs too much in f32, for `train --policy`
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Relative error above which an operation runs in f32 in that policy
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    pub max_error: f64,
    /// Also count the gradients that half precision would lose at these loss scales
    #[arg(long, value_name = "SCALE,..", value_delimiter = ',', num_args = 0..,
        default_missing_values = ["1", "512", "65536"])]
    pub underflow: Option<Vec<f32>>,
    /// Write everything as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The network
    #[command(flatten)]
    pub model: ModelArgs,
    /// Size of the images
    #[arg(long, value_name = "HxW", default_value = "512x1024")]
    pub size: Crop,
    /// Dtype of the computation; weights and the loss stay f32
    #[arg(long, default_value = "f32", value_parser = listed::<RunPrecision>(PRECISIONS))]
    pub precision: RunPrecision,
    /// Measure training steps instead of inference
    #[arg(long)]
    pub train: bool,
    /// With --train: compute each residual block again in the backward pass instead of keeping its
    /// inner maps
    #[arg(long, requires = "train")]
    pub gradient_checkpointing: bool,
    /// Measure what a step exchanges between several processes, started by mpirun or srun, instead of passes
    #[arg(long, conflicts_with_all = ["train", "batch", "peak_gflops", "gradient_checkpointing"])]
    pub exchange: bool,
    /// With --exchange: how gradients travel
    #[arg(long, requires = "exchange", default_value = "f32", value_parser = listed::<ExchangePrecision>(PRECISIONS))]
    pub exchange_precision: ExchangePrecision,
    /// Images at once; 1, or 2 with --train
    #[arg(long, value_name = "N")]
    pub batch: Option<NonZeroUsize>,
    /// Passes that are measured
    #[arg(long, value_name = "N", default_value = "5")]
    pub iterations: NonZeroUsize,
    /// Passes before them that are not
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup: usize,
    /// Where to compute: cpu (of which flex, the backend's name, is another name), cuda or cuda:N, wgpu
    /// or wgpu:N
    #[arg(long, default_value = "cpu", value_parser = listed::<DeviceChoice>(DEVICES))]
    pub device: DeviceChoice,
    /// Threads that compute; all cores otherwise
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Multiply-add peak of the device (on the CPU: over these threads) in GFLOP/s; measured
    /// otherwise on the CPU, and on GPUs not held against
    #[arg(long, value_name = "X")]
    pub peak_gflops: Option<f64>,
    /// Tell of each convolution how long it takes, on the CPU: those that are alike on one line
    #[arg(long, conflicts_with = "exchange")]
    pub layers: bool,
    /// Write the numbers as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for checkpoints, log, scores and pictures; a number is appended where a run exists
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub out: PathBuf,
    /// Dtype of the computation; weights and the loss stay f32
    #[arg(long, default_value = "f16", value_parser = listed::<RunPrecision>(PRECISIONS))]
    pub precision: RunPrecision,
    /// Iterations of the whole run
    #[arg(long, value_name = "N")]
    pub iterations: Option<u64>,
    /// Decides initial weights, order of images, augmentation and dropout
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Where to compute: cpu (of which flex, the backend's name, is another name), cuda or cuda:N, wgpu
    /// or wgpu:N
    #[arg(long, default_value = "cpu", value_parser = listed::<DeviceChoice>(DEVICES))]
    pub device: DeviceChoice,
}

/// Flags of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for the program and one for each command into this folder, instead of printing the
    /// program's
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
