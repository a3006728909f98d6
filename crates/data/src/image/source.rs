//! What a picture is read from.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::DataError;

/// A file, or bytes under a name that messages call them by.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    name: PathBuf,
    bytes: Option<Arc<[u8]>>,
}

impl Source {
    /// The regular file at `path`.
    pub(crate) fn file(path: &Path) -> Self {
        Self {
            name: path.to_owned(),
            bytes: None,
        }
    }

    /// `bytes`, called `name`.
    pub(crate) fn memory(name: &str, bytes: Arc<[u8]>) -> Self {
        Self {
            name: name.into(),
            bytes: Some(bytes),
        }
    }

    /// The file, or the name.
    pub(crate) fn path(&self) -> &Path {
        &self.name
    }

    /// From its first byte on.
    pub(crate) fn open(&self) -> Result<Opened, DataError> {
        self.reopen().map_err(|e| DataError::io(&self.name, e))
    }

    /// The same, where errors have words elsewhere.
    pub(crate) fn reopen(&self) -> io::Result<Opened> {
        Ok(match &self.bytes {
            Some(bytes) => Opened::Memory(Cursor::new(bytes.clone())),
            None => Opened::File(halfseg_files::open_regular(&self.name)?),
        })
    }
}

/// An opened [`Source`].
pub(crate) enum Opened {
    File(File),
    Memory(Cursor<Arc<[u8]>>),
}

impl Read for Opened {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(out),
            Self::Memory(bytes) => bytes.read(out),
        }
    }

    fn read_to_end(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            // Which asks for the file's length first.
            Self::File(file) => file.read_to_end(out),
            Self::Memory(bytes) => bytes.read_to_end(out),
        }
    }
}

impl Seek for Opened {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Memory(bytes) => bytes.seek(to),
        }
    }
}
