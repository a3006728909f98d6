//! A report of one or several runs.

use std::io::Write;
use std::path::Path;

use halfseg_train::is_own_report;

use crate::ReportError;
use crate::page::page;
use crate::run::Run;

/// What is known of some runs, for one page.
#[derive(Debug)]
pub struct Report {
    runs: Vec<Run>,
}

impl Report {
    /// Reads the folders of runs, which stay as they are.
    ///
    /// # Errors
    /// A folder that is not that of a run, and a log that cannot be read. What is missing or damaged besides is told
    /// by the page.
    pub fn read<P: AsRef<Path>>(folders: &[P]) -> Result<Self, ReportError> {
        if folders.is_empty() {
            return Err(ReportError::NoRuns);
        }
        let runs = folders.iter().map(|folder| Run::read(folder.as_ref()));
        let mut runs: Vec<Run> = runs.collect::<Result<_, _>>()?;
        let names: Vec<_> = runs.iter().map(|run| run.name.clone()).collect();
        let unique = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
        if !names.iter().all(unique) {
            // By what tells them apart.
            for run in &mut runs {
                run.name = run.record.path.display().to_string();
            }
        }
        Ok(Self { runs })
    }

    /// The page: HTML that needs nothing else.
    pub fn html(&self) -> String {
        page(&self.runs)
    }

    /// Writes the page, whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written, or one that is there and no report, unless `overwrite` asks for it.
    pub fn write(&self, path: &Path, overwrite: bool) -> Result<(), ReportError> {
        if !overwrite && path.exists() && !is_report(path) {
            return Err(ReportError::NotAReport {
                path: path.to_owned(),
            });
        }
        let html = self.html();
        halfseg_files::write_atomically(path, |out| out.write_all(html.as_bytes())).map_err(
            |source| ReportError::Write {
                path: path.to_owned(),
                source,
            },
        )
    }
}

/// Whether the file at `path` is one that this crate wrote, or a device or pipe that keeps nothing.
fn is_report(path: &Path) -> bool {
    match path.is_file() {
        true => is_own_report(path),
        false => !path.is_dir(),
    }
}
