//! Whole files with the crate's error.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use halfseg_files::parse_json;
use serde::de::DeserializeOwned;

use crate::Error;

/// [`halfseg_files::write_atomically`], with an error that names the file.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Error> {
    halfseg_files::write_atomically(path, write).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

/// All of a file, if it is one: reading a pipe would wait for its writer.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    halfseg_files::open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is in the file of JSON at `path`, which is to be what `expected` says; `None` if there is no file.
pub(crate) fn read_json<T: DeserializeOwned>(
    path: &Path,
    expected: &str,
) -> Result<Option<T>, Error> {
    let bytes = match read_regular(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let read = parse_json(&bytes);
    read.map(Some)
        .map_err(|error| Error::state(path, expected, error))
}

pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    write_atomically(path, |out| out.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();

        let error = write_atomically(&path, |out| {
            out.write_all(b"half of the new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();

        assert!(error.to_string().contains("file"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_regular(folder.path()).unwrap_err().to_string();
        assert!(error.contains("expected a regular file"), "{error}");
        let path = folder.path().join("file");
        write_text(&path, "text").unwrap();
        assert_eq!(read_regular(&path).unwrap(), b"text");
    }
}
