//! Reading event files.

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use prost::Message;

use crate::EventError;
use crate::message::{Event, SessionStatus, What};
use crate::record::{FRAME, Found, next};

/// A value at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// The step.
    pub step: u64,
    /// What it is a value of.
    pub tag: String,
    /// The value.
    pub value: f32,
}

/// The event files in `folder`, in the order in which TensorBoard reads them.
pub(crate) fn event_files(folder: &Path) -> Result<Vec<PathBuf>, EventError> {
    let failed = |source| EventError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_file = entry.file_type().map_err(failed)?.is_file();
        if is_file && entry.file_name().to_string_lossy().contains("tfevents") {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The scalars in the event files of `folder`, in their order, without those that a later file has made void. A record
/// that is cut short ends its file; a folder that is not there has none.
///
/// # Errors
/// Files that cannot be read, and records whose checksums are other ones.
pub fn read_scalars(folder: &Path) -> Result<Vec<Scalar>, EventError> {
    let mut scalars: Vec<Scalar> = Vec::new();
    for path in event_files(folder)? {
        let failed = |source| EventError::Read {
            path: path.clone(),
            source,
        };
        let mut file = BufReader::new(File::open(&path).map_err(failed)?);
        let mut at = 0;
        loop {
            let damaged = |found: String| EventError::Damaged {
                path: path.clone(),
                at,
                expected: "a record of an event with its checksums",
                found,
            };
            let bytes = match next(&mut file).map_err(failed)? {
                Found::End => break,
                Found::Damaged(found) => return Err(damaged(found)),
                Found::Record(bytes) => bytes,
            };
            let event = Event::decode(&*bytes).map_err(|error| damaged(error.to_string()))?;
            at += bytes.len() as u64 + FRAME;
            let step = u64::try_from(event.step).unwrap_or(0);
            match event.what {
                Some(What::SessionLog(log)) if log.status == i32::from(SessionStatus::Start) => {
                    scalars.retain(|scalar| scalar.step < step);
                }
                Some(What::Summary(summary)) => {
                    let values = summary.value.into_iter();
                    scalars.extend(values.filter_map(|value| {
                        Some(Scalar {
                            step,
                            tag: value.tag,
                            value: value.simple_value?,
                        })
                    }));
                }
                _ => {}
            }
        }
    }
    Ok(scalars)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventWriter;

    fn steps(folder: &Path) -> Vec<(u64, f32)> {
        let scalars = read_scalars(folder).unwrap().into_iter();
        scalars.map(|scalar| (scalar.step, scalar.value)).collect()
    }

    #[test]
    fn a_run_that_goes_on_replaces_what_came_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/here");
        assert!(steps(&folder).is_empty());
        let mut first = EventWriter::create(&folder, 0).unwrap();
        for step in 1..=5 {
            first.scalars(step, &[("loss", step as f64)]).unwrap();
        }
        // In the same second.
        let mut second = EventWriter::create(&folder, 4).unwrap();
        second.scalars(4, &[("loss", 40.0)]).unwrap();
        assert_eq!(steps(&folder), [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]);
        // Another run in its place.
        EventWriter::create(&folder, 0).unwrap();
        assert!(steps(&folder).is_empty());
        assert_eq!(event_files(&folder).unwrap().len(), 3);
    }

    #[test]
    fn a_record_that_was_cut_short_ends_its_file_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 0).unwrap();
        for step in 1..=2 {
            writer.scalars(step, &[("loss", 1.0)]).unwrap();
        }
        let path = event_files(folder.path()).unwrap().remove(0);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(steps(folder.path()), [(1, 1.0)]);
        let mut changed = bytes.clone();
        let last = changed.len() - 6;
        changed[last] ^= 1;
        fs::write(&path, changed).unwrap();
        let error = read_scalars(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("tfevents") && error.contains("checksum"),
            "{error}"
        );
    }
}
