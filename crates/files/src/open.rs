//! Opening files for reading.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Opens a regular file, or a link to one, for reading.
///
/// Opening a pipe waits for its writer, and a device may never end: neither is opened.
///
/// # Errors
/// What is no regular file, with its kind, and a file that cannot be opened. The error does not
/// name the file: callers have error types of their own that do.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if found.is_file() {
        return File::open(path);
    }
    let kind = if found.is_dir() {
        "a folder"
    } else {
        "a pipe, a socket or a device"
    };
    let unfit = format!("expected a regular file, found {kind}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, unfit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let error = open_regular(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("expected a regular file, found a folder"),
            "{error}"
        );
        let path = folder.path().join("file");
        assert_eq!(
            open_regular(&path).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        fs::write(&path, "x").unwrap();
        assert!(open_regular(&path).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_or_a_device_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("x.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo");
        for path in [&pipe, Path::new("/dev/zero")] {
            let error = open_regular(path).unwrap_err().to_string();
            assert!(
                error.contains("found a pipe, a socket or a device"),
                "{error}"
            );
        }
    }
}
