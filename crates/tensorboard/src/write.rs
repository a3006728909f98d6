//! Writing event files.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::EventError;
use crate::message::{Event, SessionLog, SessionStatus, Summary, Value, What};
use crate::read::event_files;
use crate::record::framed;

/// What TensorBoard wants at the beginning of a file.
const VERSION: &str = "brain.Event:2";

/// A new event file in a folder.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// A file in `folder`, which is made if need be. What other files there say of `from` and later steps is void from
    /// now on: a run that goes on after step N gives N + 1, a new one 0.
    ///
    /// # Errors
    /// A folder or file that cannot be made.
    pub fn create(folder: &Path, from: u64) -> Result<Self, EventError> {
        fs::create_dir_all(folder).map_err(|source| EventError::Write {
            path: folder.to_owned(),
            source,
        })?;
        let earlier = event_files(folder)?;
        // TensorBoard reads files in the order of their names, which begin with a time.
        let last = earlier.iter().filter_map(|path| seconds(path)).max();
        let now = now() as u64;
        let began = last.map_or(now, |last| now.max(last + 1));
        let process = std::process::id();
        let path = folder.join(format!(
            "events.out.tfevents.{began:010}.halfseg.{process}.0"
        ));
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.map_err(|source| EventError::Write {
            path: path.clone(),
            source,
        })?;
        let mut writer = Self { path, file };
        writer.put(0, What::FileVersion(VERSION.to_owned()))?;
        if !earlier.is_empty() {
            let status = SessionStatus::Start.into();
            writer.put(from, What::SessionLog(SessionLog { status }))?;
        }
        Ok(writer)
    }

    /// Writes values by tag at a step, as TensorBoard shows them: tags with a part before `/` in common are grouped.
    ///
    /// # Errors
    /// A full disk, or one that is gone.
    pub fn scalars<T: AsRef<str>>(
        &mut self,
        step: u64,
        values: &[(T, f64)],
    ) -> Result<(), EventError> {
        let value = |(tag, value): &(T, f64)| Value {
            tag: tag.as_ref().to_owned(),
            simple_value: Some(*value as f32),
        };
        let value = values.iter().map(value).collect();
        self.put(step, What::Summary(Summary { value }))
    }

    /// In one piece, so that a process that is killed leaves whole records.
    fn put(&mut self, step: u64, what: What) -> Result<(), EventError> {
        let event = Event {
            wall_time: now(),
            step: i64::try_from(step).unwrap_or(i64::MAX),
            what: Some(what),
        };
        let written = self.file.write_all(&framed(&event.encode_to_vec()));
        written.map_err(|source| EventError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

/// When a file was begun, by its name.
fn seconds(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.split('.').nth(3)?.parse().ok()
}
