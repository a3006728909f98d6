//! The log of a run: one JSON object per line.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use halfseg_amp::StepOutcome;
use halfseg_devices::resident_memory;
use serde_json::{Value, json};

use crate::atomic::write_atomically;
use crate::{Error, Step, Timing};

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

/// Sums of the iterations since the last line of the log.
#[derive(Default)]
pub(crate) struct LogLine {
    steps: u32,
    sums: [f64; 4],
    skipped: u32,
    waited: Duration,
    total: Duration,
    images: usize,
}

impl LogLine {
    pub fn add(&mut self, step: &Step, timing: &Timing) {
        self.steps += 1;
        let numbers = [step.loss, step.decode, step.aux, step.accuracy];
        self.sums
            .iter_mut()
            .zip(numbers)
            .for_each(|(sum, number)| *sum += number);
        self.skipped += u32::from(!step.outcome.stepped());
        self.waited += timing.waited;
        self.total += timing.total;
        self.images += timing.images;
    }

    pub fn json(self, last: &Step) -> Value {
        let steps = f64::from(self.steps.max(1));
        let [loss, decode, aux, accuracy] = self.sums.map(|sum| number(sum / steps));
        let (scale, grad_norm) = match &last.outcome {
            StepOutcome::Stepped {
                scale, grad_norm, ..
            } => (*scale, *grad_norm),
            StepOutcome::Skipped { scale, .. } => (*scale, None),
            _ => (f32::NAN, None),
        };
        let seconds = self.total.as_secs_f64();
        json!({
            "event": "train",
            "iteration": last.iteration,
            "loss": loss,
            "decode_loss": decode,
            "aux_loss": aux,
            "accuracy": accuracy,
            "lr": last.lr,
            "scale": scale,
            "grad_norm": grad_norm,
            "skipped": self.skipped,
            "step_s": seconds / steps,
            "data_wait_s": self.waited.as_secs_f64() / steps,
            "images_per_s": self.images as f64 / seconds.max(1e-9),
            "rss_mib": resident_memory().map(|(now, _)| now.0 >> 20),
        })
    }
}

/// JSON has no infinities: they become `null`.
pub(crate) fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Into::into)
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
