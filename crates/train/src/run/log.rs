//! The log of a run: one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use halfseg_amp::StepOutcome;
use halfseg_devices::resident_memory;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::atomic::{read_regular, write_atomically};
use crate::{Error, Step, Timing};

/// Appends JSON lines to a file. Every line has an `event` (`start`, `train`, `skip`, `eval`,
/// `end`) and the `iteration` after which it was written; the README lists the other fields.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Length of the file: whole lines.
    bytes: u64,
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
            bytes: 0,
        })
    }

    /// Continues the log at `path` after its first `bytes` bytes. `None` where these are not there
    /// or do not end with a line, so that the file is another than it was.
    pub(crate) fn continued(path: &Path, bytes: u64) -> Result<Option<Self>, Error> {
        let mut file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::append(path, source)),
        };
        let failed = |source| Error::append(path, source);
        if file.metadata().map_err(failed)?.len() < bytes {
            return Ok(None);
        }
        if let Some(last) = bytes.checked_sub(1) {
            let mut end = [0];
            file.seek(SeekFrom::Start(last)).map_err(failed)?;
            file.read_exact(&mut end).map_err(failed)?;
            if end != [b'\n'] {
                return Ok(None);
            }
        }
        file.set_len(bytes).map_err(failed)?;
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            bytes,
        }))
    }

    /// Continues the log at `path` after `iteration`, with those of its lines that `keep` wants of
    /// this iteration and all of those before. Lines that are no JSON are dropped: the last may have
    /// been cut short, within a character, too.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written. A log that is not there is begun anew.
    pub(crate) fn filtered(
        path: &Path,
        iteration: u64,
        keep: impl Fn(&Value) -> bool,
    ) -> Result<Self, Error> {
        let lines = match read_regular(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let kept = |line: &&[u8]| {
            let Ok(value) = serde_json::from_slice::<Value>(line) else {
                return false;
            };
            let at = value.get("iteration").and_then(Value::as_u64);
            at.is_some_and(|at| at < iteration || at == iteration && keep(&value))
        };
        let kept: Vec<_> = lines.split(|byte| *byte == b'\n').filter(kept).collect();
        write_atomically(path, |out| {
            for line in &kept {
                out.write_all(line)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })?;
        let bytes = kept.iter().map(|line| line.len() as u64 + 1).sum();
        let file = OpenOptions::new().append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|source| Error::append(path, source))?,
            bytes,
        })
    }

    /// Writes one line.
    ///
    /// # Errors
    ///
    /// When the disk is full or gone; the log is as it was then.
    pub fn write(&mut self, line: &Value) -> Result<(), Error> {
        let text = format!("{line}\n");
        if let Err(source) = self.file.write_all(text.as_bytes()) {
            // A part of the line may be there.
            let _ = self.file.set_len(self.bytes);
            return Err(Error::append(&self.path, source));
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Flushes everything to the disk and returns the length in bytes.
    pub(crate) fn sync(&self) -> Result<u64, Error> {
        let synced = self.file.sync_data();
        synced.map_err(|source| Error::append(&self.path, source))?;
        Ok(self.bytes)
    }

    /// The `event` lines of the log at `path`, oldest first; lines that are no JSON are left out.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn read(path: &Path, event: &str) -> Result<Vec<Value>, Error> {
        let mut lines = Vec::new();
        Self::each(path, event, |line| lines.push(line))?;
        Ok(lines)
    }

    /// Calls `take` with each line that [`read`](Self::read) would give, one at a time: a log grows with
    /// its run.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn each(path: &Path, event: &str, mut take: impl FnMut(Value)) -> Result<(), Error> {
        Self::lines(path, |line| {
            line.filter(|line| line["event"] == event)
                .into_iter()
                .for_each(&mut take);
        })
    }

    /// Calls `take` with each line of the log at `path`, oldest first: with nothing for one that is no JSON.
    pub(crate) fn lines(path: &Path, mut take: impl FnMut(Option<Value>)) -> Result<(), Error> {
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = halfseg_files::open_regular(path).map_err(failed)?;
        for line in BufReader::new(file).split(b'\n') {
            take(serde_json::from_slice(&line.map_err(failed)?).ok());
        }
        Ok(())
    }
}

/// Sums of the iterations since the last line of the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogLine {
    steps: u32,
    /// Of loss, decode loss, auxiliary loss and accuracy; as bits in JSON, which has no infinities.
    #[serde(with = "bits")]
    sums: [f64; 4],
    skipped: u32,
    waited: Duration,
    total: Duration,
    images: usize,
}

mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(sums: &[f64; 4], serializer: S) -> Result<S::Ok, S::Error> {
        sums.map(f64::to_bits).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f64; 4], D::Error> {
        <[u64; 4]>::deserialize(deserializer).map(|bits| bits.map(f64::from_bits))
    }
}

impl LogLine {
    pub fn add(&mut self, step: &Step, timing: &Timing) {
        // What was read from a damaged folder may be at its end.
        self.steps = self.steps.saturating_add(1);
        let numbers = [step.loss, step.decode, step.aux, step.accuracy];
        self.sums
            .iter_mut()
            .zip(numbers)
            .for_each(|(sum, number)| *sum += number);
        self.skipped = self
            .skipped
            .saturating_add(u32::from(!step.outcome.stepped()));
        self.waited = self.waited.saturating_add(timing.waited);
        self.total = self.total.saturating_add(timing.total);
        self.images = self.images.saturating_add(timing.images);
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
    use std::fs;

    use super::*;
    use serde_json::json;

    fn written(path: &Path, iterations: u64) -> Log {
        let mut log = Log::create(path).unwrap();
        let line = |event: &str, iteration: u64| json!({"event": event, "iteration": iteration});
        log.write(&line("start", 0)).unwrap();
        for iteration in 1..=iterations {
            log.write(&line("train", iteration)).unwrap();
        }
        log
    }

    fn iterations(path: &Path) -> Vec<u64> {
        let lines = Log::read(path, "train").unwrap();
        let at = |line: &Value| line["iteration"].as_u64().unwrap();
        lines.iter().map(at).collect()
    }

    #[test]
    fn what_came_after_the_checkpoint_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = written(&path, 3);
        let bytes = log.sync().unwrap();
        log.write(&json!({"event": "eval", "iteration": 3}))
            .unwrap();
        // Cut short within a character.
        log.file.write_all(b"{\"event\": \"tr\xc3").unwrap();
        drop(log);

        let mut log = Log::continued(&path, bytes).unwrap().unwrap();
        log.write(&json!({"event": "train", "iteration": 4}))
            .unwrap();
        assert_eq!(iterations(&path), [1, 2, 3, 4]);
        assert!(Log::read(&path, "eval").unwrap().is_empty());
        assert_eq!(fs::metadata(&path).unwrap().len(), log.sync().unwrap());
    }

    #[test]
    fn another_log_than_that_of_the_checkpoint_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        assert!(Log::continued(&path, 0).unwrap().is_none());
        let bytes = written(&path, 3).sync().unwrap();
        assert!(Log::continued(&path, bytes + 1).unwrap().is_none());
        assert!(Log::continued(&path, bytes - 1).unwrap().is_none());
        assert_eq!(iterations(&path), [1, 2, 3]);
        assert!(Log::continued(&path, bytes).unwrap().is_some());
    }

    #[test]
    fn a_log_without_a_mark_keeps_the_lines_up_to_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = written(&path, 3);
        log.write(&json!({"event": "eval", "iteration": 3}))
            .unwrap();
        log.write(&json!({"event": "train", "iteration": 4}))
            .unwrap();
        log.file.write_all(b"{\"event\": \"tr\xc3").unwrap();
        drop(log);

        let keep = |line: &Value| line["event"] != "eval";
        let mut log = Log::filtered(&path, 3, keep).unwrap();
        log.write(&json!({"event": "train", "iteration": 4, "again": true}))
            .unwrap();
        assert_eq!(iterations(&path), [1, 2, 3, 4]);
        assert_eq!(Log::read(&path, "train").unwrap()[3]["again"], true);
        assert_eq!(Log::read(&path, "start").unwrap().len(), 1);
        assert!(Log::read(&path, "eval").unwrap().is_empty());
        assert_eq!(fs::metadata(&path).unwrap().len(), log.sync().unwrap());
    }

    #[test]
    fn sums_of_a_line_survive_as_they_are() {
        let line = LogLine {
            steps: 3,
            sums: [0.1 + 0.2, f64::INFINITY, f64::MIN_POSITIVE, -0.0],
            ..LogLine::default()
        };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<LogLine>(&text).unwrap(), line);
    }
}
