//! Machine-readable output.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Writes `json` to the file `path`, or to stdout for `-`.
pub fn write_json(path: &Path, json: &Value) -> Result<()> {
    let text = format!("{json:#}\n");
    if path == Path::new("-") {
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write to stdout")
    } else {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
