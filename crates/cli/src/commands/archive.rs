//! Predictions in one file.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use halfseg_files::write_atomically;
use zip::ZipWriter;

/// An archive of predictions, without folders.
pub struct Archive {
    path: PathBuf,
    /// Into a file without a name, which goes with the process, however that ends.
    writer: ZipWriter<File>,
}

impl Archive {
    /// An empty one, for a file at `path`.
    pub fn new(path: &Path) -> Result<Self> {
        // On the disk that the archive is to be on, where that can be.
        let folder = path.parent().unwrap_or(Path::new(""));
        let file = tempfile::tempfile_in(Path::new(".").join(folder))
            .or_else(|_| tempfile::tempfile())
            .with_context(|| format!("cannot make a file for {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            writer: ZipWriter::new(file),
        })
    }

    /// Adds a PNG.
    pub fn add(&mut self, name: String, png: &[u8]) -> Result<()> {
        // PNGs are compressed already. The date is the format's first, so that equal predictions
        // give equal archives.
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default());
        let started = self.writer.start_file(name, options);
        let written = started
            .map_err(io::Error::from)
            .and_then(|()| self.writer.write_all(png));
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes the file.
    pub fn finish(self) -> Result<()> {
        let Self { path, writer } = self;
        let copied = writer
            .finish()
            .map_err(io::Error::from)
            .and_then(|mut file| {
                file.rewind()?;
                write_atomically(&path, |out| io::copy(&mut file, out).map(drop))
            });
        copied.with_context(|| format!("cannot write {}", path.display()))
    }
}
