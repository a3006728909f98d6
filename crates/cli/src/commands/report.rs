//! `halfseg report`, and the report that `train` leaves.

#[cfg(feature = "report")]
use std::path::{Path, PathBuf};

#[cfg(feature = "report")]
use anyhow::Context;
use anyhow::Result;
#[cfg(feature = "report")]
use halfseg_report::{Report, ReportError};
#[cfg(feature = "report")]
use halfseg_train::REPORT_FILE;

use crate::args::ReportArgs;
#[cfg(feature = "report")]
use crate::output::check_writable;

/// Shows runs as one page.
#[cfg(feature = "report")]
pub fn run(args: &ReportArgs) -> Result<()> {
    let own = match args.runs.as_slice() {
        [one] => one.join(REPORT_FILE),
        _ => PathBuf::from(REPORT_FILE),
    };
    let out = args.out.clone().unwrap_or_else(|| own.clone());
    // The run's own report is the one file of a run that may be replaced here.
    if out != own {
        let inputs: Vec<_> = args.runs.iter().map(|run| Some(&**run)).collect();
        check_writable(&[&Some(out.clone())], &inputs)?;
    }
    let report = Report::read(&args.runs)?;
    report.write(&out, args.overwrite)?;
    let bytes = std::fs::metadata(&out).map_or(0, |file| file.len());
    message!("wrote {} ({:.1} MB)", out.display(), bytes as f64 / 1e6);
    Ok(())
}

/// Says that this program cannot.
#[cfg(not(feature = "report"))]
pub fn run(_: &ReportArgs) -> Result<()> {
    let why = "this program was built without reports: build it with `--features report`";
    Err(crate::failure::Usage(why.to_owned()).into())
}

/// Writes the report of the run in the folder `run`, beside its files.
#[cfg(feature = "report")]
pub fn write_of_run(run: &Path) -> Result<PathBuf> {
    let path = run.join(REPORT_FILE);
    let write = || -> Result<(), ReportError> { Report::read(&[run])?.write(&path, false) };
    write().context("the report was not written")?;
    Ok(path)
}
