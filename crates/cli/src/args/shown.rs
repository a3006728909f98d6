//! Flags of how a training run is shown.

use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::Args;

/// Flags of `train` that show a run and change nothing of it.
#[derive(Clone, Debug, Default, Args)]
pub struct ShownArgs {
    /// Write the report (see `halfseg report`) after every N evaluations, too, not at the end alone
    #[arg(long, value_name = "N")]
    pub report_every: Option<NonZeroU64>,
    /// Write scalars into this folder as event files that TensorBoard shows (in programs built with the
    /// feature `tensorboard`)
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
    /// Show the run as a dashboard that takes the whole terminal (in programs built with the feature `tui`)
    #[arg(long)]
    pub tui: bool,
}

/// Flags of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The HTML file to write; unless given, report.html in the folder of the run, or here for several runs
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Replace a file that is no report
    #[arg(long)]
    pub overwrite: bool,
    /// Output folders of `halfseg train`; several are shown side by side
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
}
