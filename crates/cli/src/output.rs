//! Machine-readable output.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use halfseg_files::write_atomically;
use serde_json::Value;

/// Writes `json` to the file `path`, or to stdout for `-`.
pub fn write_json(path: &Path, json: &Value) -> Result<()> {
    let text = format!("{json:#}\n");
    if path == Path::new("-") {
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write to stdout")
    } else {
        write_atomically(path, |out| out.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
