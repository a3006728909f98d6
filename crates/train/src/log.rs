//! The log of a run: one JSON object per line.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;
use crate::atomic::write_atomically;

/// Appends JSON lines to a file. Every line has an `event` (`start`, `train`, `skip`, `eval`,
/// `end`) and the `iteration` after which it was written; the README lists the other fields.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// A new log at `path`.
    ///
    /// # Errors
    ///
    /// When the file cannot be created.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Continues the log at `path` after `iteration`; lines of later iterations, which a run wrote
    /// after its last checkpoint, and a line cut short by a crash, are dropped.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written. A log that is not there is begun anew.
    pub fn resume(path: &Path, iteration: u64) -> Result<Self, Error> {
        if path.exists() {
            let read = |source| Error::Read {
                path: path.to_owned(),
                source,
            };
            let lines = BufReader::new(File::open(path).map_err(read)?).lines();
            let lines = lines.collect::<Result<Vec<_>, _>>().map_err(read)?;
            write_atomically(path, |out| {
                let kept = lines.iter().filter(|line| {
                    serde_json::from_str::<Value>(line)
                        .ok()
                        .and_then(|line| line.get("iteration")?.as_u64())
                        .is_some_and(|at| at <= iteration)
                });
                for line in kept {
                    writeln!(out, "{line}")?;
                }
                Ok(())
            })?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| Error::Write {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes one line.
    ///
    /// # Errors
    ///
    /// When the disk is full or gone.
    pub fn write(&mut self, line: &Value) -> Result<(), Error> {
        let text = format!("{line}\n");
        self.file
            .write_all(text.as_bytes())
            .map_err(|source| Error::Write {
                path: self.path.clone(),
                source,
            })
    }

    /// The `event` lines of the log at `path`, oldest first; lines that are no JSON are left out.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn read(path: &Path, event: &str) -> Result<Vec<Value>, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["event"] == event)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resuming_drops_what_came_after_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = Log::create(&path).unwrap();
        log.write(&json!({"event": "start", "iteration": 0}))
            .unwrap();
        for iteration in 1..=5 {
            log.write(&json!({"event": "train", "iteration": iteration}))
                .unwrap();
        }
        log.file.write_all(b"{\"event\": \"tr").unwrap();
        drop(log);

        let mut log = Log::resume(&path, 3).unwrap();
        log.write(&json!({"event": "train", "iteration": 4, "again": true}))
            .unwrap();

        let lines = Log::read(&path, "train").unwrap();
        let iterations: Vec<_> = lines
            .iter()
            .map(|line| line["iteration"].as_u64())
            .collect();
        assert_eq!(iterations, [Some(1), Some(2), Some(3), Some(4)]);
        assert_eq!(lines[3]["again"], true);
        assert_eq!(Log::read(&path, "start").unwrap().len(), 1);
    }
}
