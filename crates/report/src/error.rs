//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A folder that is not that of a run, or a log that cannot be read.
    #[error(transparent)]
    Run(#[from] halfseg_train::Error),
    /// No run was named.
    #[error("a report: expected the folder of at least one run, found none")]
    NoRuns,
    /// A page is there that is not a report.
    #[error(
        "{}: expected a report that halfseg wrote, or no file, found another one: choose another name, or replace it \
         with --overwrite",
        path.display()
    )]
    NotAReport {
        /// The file.
        path: PathBuf,
    },
    /// The page cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
