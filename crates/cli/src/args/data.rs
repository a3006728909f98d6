//! Flags of what has to do with data sets.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::RecipeArgs;

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The recipe that the data are to be trained with
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Where the run is to leave its checkpoints: the disk that is looked at
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
    /// Read at most so many pairs of each split, spread over it; classes that are absent are then not told
    #[arg(long, value_name = "N")]
    pub sample: Option<usize>,
    /// Write findings and numbers as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write findings and numbers as an HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Flags of `browse`.
#[derive(Debug, Args)]
pub struct BrowseArgs {
    /// The recipe that decides what is shown: data, crop, augmentation, batch and seed
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Folder for the page and its pictures
    #[arg(long, value_name = "DIR", default_value = "browse")]
    pub out: PathBuf,
    /// Batches that are shown
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batches: usize,
    /// The first iteration that is shown, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub start: u64,
}

/// Flags of `data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DataCommand,
}

/// What to do with a data set.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Propose the definition of a folder of pictures and masks
    Init(InitArgs),
    /// Convert the description that Ultralytics (data.yaml) or MMSegmentation (a configuration) has of a data set
    Convert(ConvertArgs),
    /// Write the definition that a checkpoint was trained with
    Extract(ExtractArgs),
}

/// Flags of `data convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// data.yaml, or a configuration in Python, which is read and not run
    #[arg(value_name = "FILE")]
    pub description: PathBuf,
    /// The definition to write; one that is there stays
    #[arg(long, value_name = "FILE.toml")]
    pub out: PathBuf,
    /// The folder of the data, in place of the one that the description names
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The Python file of the data set's class, whose METAINFO has classes and colours that the configuration lacks
    #[arg(long, value_name = "FILE.py")]
    pub classes: Option<PathBuf>,
}

/// Flags of `data extract`.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// The checkpoint, or the folder of a run
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,
    /// The definition to write; one that is there stays
    #[arg(long, value_name = "FILE.toml")]
    pub out: PathBuf,
    /// The folder of the data, in place of the one that the definition names
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Flags of `data init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The folder of pictures and masks
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The definition to write; one that is there stays
    #[arg(long, value_name = "FILE.toml")]
    pub out: PathBuf,
    /// Take the folder for this published data set, whatever it looks like: cityscapes, camvid, voc, ade20k,
    /// kitti, bdd100k or mapillary
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
}
