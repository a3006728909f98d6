//! Flags of what is done with a trained network.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use halfseg_data::Crop;
use halfseg_devices::DeviceChoice;
use halfseg_predict::EvalScale;
use halfseg_train::RunPrecision;

use super::{ConfigSources, ModelArgs};
use crate::values::{DEVICES, ExportFormat, Mode, PRECISIONS, listed};

/// How pictures pass through networks, and where.
#[derive(Clone, Debug, Default, Args)]
pub struct PassArgs {
    /// How pictures pass through the network
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Window of `--mode slide`
    #[arg(long, value_name = "HxW")]
    pub crop: Option<Crop>,
    /// Distance between windows of `--mode slide`
    #[arg(long, value_name = "HxW")]
    pub stride: Option<Crop>,
    /// Run at the size that fits into this, in the image's ratio, and resize the logits back;
    /// `own` is the image's own size
    #[arg(long, value_name = "WxH|own")]
    pub scale: Option<EvalScale>,
    /// Where to compute: cpu (of which flex, the backend's name, is another name), cuda or cuda:N, wgpu
    /// or wgpu:N
    #[arg(long, value_parser = listed::<DeviceChoice>(DEVICES))]
    pub device: Option<DeviceChoice>,
}

/// How a trained network is run.
#[derive(Clone, Debug, Default, Args)]
pub struct InferenceArgs {
    /// The network, where the checkpoint does not tell
    #[command(flatten)]
    pub model: ModelArgs,
    /// Weights: a file, the output folder of a training run, or zoo:NAME for a published checkpoint
    #[arg(long, value_name = "FILE|zoo:NAME")]
    pub checkpoint: PathBuf,
    /// How pictures pass through the network, and where
    #[command(flatten)]
    pub pass: PassArgs,
    /// Average softmax over six sizes (0.5 to 1.75) and their mirror images
    #[arg(long)]
    pub ms_flip: bool,
    /// Dtype of the computation; unless given, what the checkpoint was trained in, and f32 where it does
    /// not say
    #[arg(long, value_parser = listed::<RunPrecision>(PRECISIONS))]
    pub precision: Option<RunPrecision>,
    /// Take the precision from a policy file (see `halfseg audit`), in place of the checkpoint's; a
    /// --precision that contradicts it is refused
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Configuration
    #[command(flatten)]
    pub sources: ConfigSources,
}

/// What happens to single pictures of a job over many.
#[derive(Clone, Debug, Default, Args)]
pub struct BatchArgs {
    /// Go on after a picture that cannot be read or segmented; those that were left out are listed at
    /// the end, which is a failure then
    #[arg(long)]
    pub skip_bad: bool,
    /// Leave alone what an earlier run has written
    #[arg(long)]
    pub skip_existing: bool,
    /// Replace files that have the names of results and are not this program's
    #[arg(long, conflicts_with = "skip_existing")]
    pub overwrite: bool,
    /// Ignore pixels whose scores are not finite instead of failing their picture
    #[arg(long)]
    pub allow_nonfinite: bool,
}

/// Flags of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// How the network is run
    #[command(flatten)]
    pub inference: InferenceArgs,
    /// A folder with leftImg8bit and gtFine in it, the definition of a data set (see `halfseg data init`),
    /// or `synthetic`
    #[arg(long, value_name = "PATH|FILE.toml|synthetic")]
    pub data: Option<String>,
    /// Single pictures; with --save-predictions, --skip-existing scores those that are there
    #[command(flatten)]
    pub batch: BatchArgs,
    /// Split that is scored
    #[arg(long)]
    pub split: Option<String>,
    /// Write the scores as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write the predictions as labelId PNGs, named as the Cityscapes server expects; of a data set of one's
    /// own, as PNGs of classes
    #[arg(long, value_name = "DIR")]
    pub save_predictions: Option<PathBuf>,
    /// Pack the predictions into a ZIP file for the Cityscapes server
    #[arg(long, value_name = "FILE")]
    pub zip: Option<PathBuf>,
    /// Score outlines, too: the boundary IoU, which takes time
    #[arg(long)]
    pub boundary: bool,
    /// Write the confusion matrix as SVG
    #[arg(long, value_name = "FILE")]
    pub confusion: Option<PathBuf>,
}

/// Flags of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Folder with one PNG for each image of the split, whose name begins with the image's: of labelIds for --truth,
    /// of classes for --data, as `eval` keeps them and `predict` writes them
    #[arg(long, value_name = "DIR")]
    pub predictions: PathBuf,
    /// A split's labels, such as gtFine/val: CITY/*_gtFine_labelIds.png, and *_instanceIds.png
    /// for instance scores
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "data",
        conflicts_with = "data"
    )]
    pub truth: Option<PathBuf>,
    /// The definition of the data set that the predictions are for
    #[arg(long, value_name = "FILE.toml")]
    pub data: Option<PathBuf>,
    /// Its split
    #[arg(long, value_name = "NAME", requires = "data", default_value = "val")]
    pub split: String,
    /// Write the scores as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

/// Flags of `predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// How the network is run
    #[command(flatten)]
    pub inference: InferenceArgs,
    /// Folder for the pictures; with --video, the film to write
    #[arg(long, value_name = "DIR|FILE")]
    pub out: PathBuf,
    /// Put what is made of a folder's pictures into the same subfolders of --out
    #[arg(long)]
    pub mirror: bool,
    /// Write the logits too, as safetensors
    #[arg(long)]
    pub logits: bool,
    /// Single pictures
    #[command(flatten)]
    pub batch: BatchArgs,
    /// Weight of the colours in the overlay, 0 to 1
    #[arg(long, default_value_t = 0.5)]
    pub opacity: f32,
    /// Films
    #[command(flatten)]
    pub film: FilmArgs,
    /// PNG or JPEG images, folders of them with their subfolders (but for hidden files), or `-` for an image on
    /// stdin, whose results are called stdin_*, or else a list of paths there, one a line or each ended by a zero byte
    #[arg(required_unless_present = "video", value_name = "IMAGE|FOLDER|-")]
    pub inputs: Vec<PathBuf>,
}

/// Flags of `predict` that are about films.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of films")]
pub struct FilmArgs {
    /// Segment a film with the programs ffmpeg and ffprobe, and write it to --out with the overlay, its sound and its
    /// frame rate
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["inputs", "mirror", "logits", "skip_bad", "skip_existing"]
    )]
    pub video: Option<PathBuf>,
    /// Take --video for what ffmpeg calls so: a camera with v4l2 (Linux), avfoundation or dshow, say; it is recorded
    /// without sound until Ctrl-C or --frames
    #[arg(long, value_name = "FORMAT", requires = "video")]
    pub input_format: Option<String>,
    /// End after so many frames
    #[arg(long, value_name = "N", requires = "video", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub frames: Option<u64>,
    /// Hold classes back from flickering: the weight, 0 to below 1, of the mean over the frames before against the
    /// frame's own probabilities [default: 0]
    #[arg(long, value_name = "X", requires = "video")]
    pub smooth: Option<f64>,
}

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The network, where the checkpoint does not tell
    #[command(flatten)]
    pub model: ModelArgs,
    /// Weights: a file, the output folder of a training run, or zoo:NAME for a published checkpoint
    #[arg(long, value_name = "FILE|zoo:NAME")]
    pub checkpoint: PathBuf,
    /// What to write: a checkpoint with the names of a program, or ONNX
    #[arg(long, value_enum, default_value = "mmseg")]
    pub to: ExportFormat,
    /// The file to write: PyTorch's format if it ends with .pth or .pt (with --to mmseg, MMSegmentation's
    /// configuration is written beside it, as .py), else safetensors
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How an ONNX file is made
    #[command(flatten)]
    pub onnx: OnnxArgs,
}

/// Flags of `export --to onnx`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of --to onnx")]
pub struct OnnxArgs {
    /// Take images of this height and width alone; of any without it
    #[arg(long, value_name = "HxW")]
    pub size: Option<Crop>,
    /// Take batches of this many images alone; of any without it
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub batch: Option<usize>,
    /// Give the most likely class of each pixel as bytes, not logits
    #[arg(long)]
    pub argmax: bool,
    /// Take bytes in RGB and normalise them inside
    #[arg(long)]
    pub uint8_input: bool,
    /// How weights are stored: f16 takes half the bytes, bf16 is rounded and stored in f32
    #[arg(long, value_parser = listed::<RunPrecision>(PRECISIONS))]
    pub weights: Option<RunPrecision>,
}

impl OnnxArgs {
    /// The first flag that was given.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--size", self.size.is_some()),
            ("--batch", self.batch.is_some()),
            ("--argmax", self.argmax),
            ("--uint8-input", self.uint8_input),
            ("--weights", self.weights.is_some()),
        ];
        let mut given = flags.into_iter().filter(|(_, given)| *given);
        given.next().map(|(flag, _)| flag)
    }
}
