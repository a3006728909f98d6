//! Flags of what has to do with published checkpoints and their logs.

use std::path::PathBuf;

use clap::Args;

/// Flags of `zoo`.
#[derive(Debug, Args)]
pub struct ZooArgs {
    /// Fetch the files of these names into the cache; otherwise list what there is
    #[arg(long)]
    pub fetch: bool,
    /// Write the list as JSON (`-`: to stdout)
    #[arg(long, value_name = "FILE|-", conflicts_with = "fetch")]
    pub json: Option<PathBuf>,
    /// Names, or with a list parts of them: the four models in half precision and their backbones if
    /// there are none
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Flags of `plot`.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// The SVG file to write
    #[arg(long, value_name = "FILE", default_value = "curves.svg")]
    pub out: PathBuf,
    /// The CSV file to write; --out with another ending unless given
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// What the runs are called, in their order
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    pub names: Vec<String>,
    /// Points that a point of the curves (but of mIoU) averages; 1 draws each as it is
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub smooth: usize,
    /// Output folders of `halfseg train`, their log.jsonl, or MMSegmentation's *.log.json or scalars.json
    #[arg(required = true, value_name = "RUN|LOG")]
    pub logs: Vec<PathBuf>,
}
