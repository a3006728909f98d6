//! What can go wrong with a published file.

use std::io;
use std::path::PathBuf;

/// A file that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// No file is published under this name.
    #[error(
        "no published checkpoint is called '{name}': `halfseg zoo` lists them; the nearest are {nearest}"
    )]
    Unknown {
        /// The name.
        name: String,
        /// Names like it.
        nearest: String,
    },
    /// A variable of the environment says what nothing understands.
    #[error("{name}: expected {expected}, found `{found}`")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// There is no folder for the cache.
    #[error(
        "there is no folder to keep published files in: expected HALFSEG_CACHE, XDG_CACHE_HOME or HOME to \
         name one, found none of them"
    )]
    NoFolder,
    /// The file is not here and may not or could not be fetched.
    #[error(
        "{name} is not on this machine and {why}: expected {file}; fetch {url} elsewhere and put it there"
    )]
    Absent {
        /// The entry.
        name: String,
        /// Why it was not fetched.
        why: String,
        /// Where it belongs.
        file: PathBuf,
        /// Where it is published.
        url: String,
    },
    /// The file's content is not what was published.
    #[error(
        "{file} is not the published file: expected a SHA-256 that begins with {expected}, found {found}; \
         {remedy}"
    )]
    WrongHash {
        /// The file, or the address that it came from.
        file: String,
        /// The digits in the file's name.
        expected: String,
        /// Those of the content.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A file of the cache cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the cache cannot be written.
    #[error("cannot write {path}{kept}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What is left of the download.
        kept: String,
        /// Why.
        source: io::Error,
    },
    /// A table of one's own that is none.
    #[error(
        "line {line} of {path} is no entry: expected 13 fields with tabs between them as in zoo.tsv, and a \
         file name that ends in `-`, 8 or more digits of its SHA-256, and an ending"
    )]
    Table {
        /// The table.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
    },
}
