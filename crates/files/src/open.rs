//! Opening files for reading.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Bytes of the longest text that [`read_text`] takes.
const LONGEST_TEXT: u64 = 16 << 20;

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

/// The first bytes of a regular file, at most so many: what tells files of a program from others.
///
/// # Errors
/// As [`open_regular`], and a file that cannot be read.
pub fn read_head(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    open_regular(path)?
        .take(bytes as u64)
        .read_to_end(&mut head)?;
    Ok(head)
}

/// Reads a text that people write, such as a configuration, of at most 16 MiB. A pipe is read to its
/// end, as the shell's `<(..)` is.
///
/// # Errors
/// A file that cannot be read, is longer, or is no UTF-8. The error does not name the file: callers
/// have error types of their own that do.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LONGEST_TEXT + 1)
        .read_to_end(&mut bytes)?;
    let unfit = |found: String| {
        let unfit = format!("expected a text of at most 16 MiB in UTF-8, found {found}");
        io::Error::new(io::ErrorKind::InvalidData, unfit)
    };
    if bytes.len() as u64 > LONGEST_TEXT {
        return Err(unfit("more".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| unfit(error.utf8_error().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_up_to_a_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, "ä").unwrap();
        assert_eq!(read_text(&path).unwrap(), "ä");
        fs::write(&path, b"a\xff").unwrap();
        assert!(
            read_text(&path)
                .unwrap_err()
                .to_string()
                .contains("index 1")
        );
        let long = File::create(&path).unwrap();
        long.set_len(LONGEST_TEXT).unwrap();
        assert_eq!(read_text(&path).unwrap().len() as u64, LONGEST_TEXT);
        long.set_len(LONGEST_TEXT + 1).unwrap();
        assert!(
            read_text(&path)
                .unwrap_err()
                .to_string()
                .contains("at most 16 MiB")
        );
        #[cfg(target_os = "linux")]
        assert!(read_text(Path::new("/dev/zero")).is_err());
    }

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
