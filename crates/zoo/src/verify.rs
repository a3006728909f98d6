//! Hashes of files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// The hash of what was read or written so far.
#[derive(Clone, Default)]
pub(crate) struct Hash(Sha256);

impl Hash {
    /// Of a file's content.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let mut hash = Self::default();
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hash),
                count => hash.update(&buffer[..count]),
            }
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As hexadecimal digits, 64 of them.
    pub(crate) fn digits(&self) -> String {
        let bytes = self.0.clone().finalize();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The digits if they begin otherwise than `prefix`, as many as `prefix` has.
    pub(crate) fn differs(&self, prefix: &str) -> Option<String> {
        let digits = self.digits();
        let same = digits.starts_with(&prefix.to_lowercase());
        (!same).then(|| digits[..prefix.len().min(digits.len())].to_owned())
    }
}
