//! What the program says: results on stdout, messages on stderr.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use anyhow::{Context, Result, bail};
use halfseg_files::write_atomically;
use serde_json::Value;

/// How much is said.
static LEVEL: AtomicU8 = AtomicU8::new(NORMAL);
const QUIET: u8 = 0;
const NORMAL: u8 = 1;
const VERBOSE: u8 = 2;

// In place of the standard library's, which panic when nobody reads stderr any more: a run outlives
// its terminal.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
/// A message; `--quiet` leaves it out.
macro_rules! message {
    ($($text:tt)*) => {
        if !$crate::output::is_quiet() {
            eprintln!($($text)*);
        }
    };
}
/// A message for `--verbose`.
macro_rules! detail {
    ($($text:tt)*) => {
        if $crate::output::is_verbose() {
            eprintln!($($text)*);
        }
    };
}
/// What may be wrong although the program goes on; always said.
macro_rules! warning {
    ($($text:tt)*) => {
        eprintln!("warning: {}", format_args!($($text)*))
    };
}

/// Sets how much is said from now on.
pub fn set_level(quiet: bool, verbose: bool) {
    let level = match (quiet, verbose) {
        (true, _) => QUIET,
        (false, false) => NORMAL,
        (false, true) => VERBOSE,
    };
    LEVEL.store(level, Relaxed);
}

/// Whether messages are left out.
pub fn is_quiet() -> bool {
    LEVEL.load(Relaxed) == QUIET
}

/// Whether details are said.
pub fn is_verbose() -> bool {
    LEVEL.load(Relaxed) == VERBOSE
}

/// Prints a result to stdout. That its reader has seen enough, as `head` has, is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to stdout"),
    }
}

/// Prints a result for people: to stdout, or among the messages where JSON takes stdout.
pub fn print_table(text: &str, json: Option<&Path>) -> Result<()> {
    if json == Some(Path::new("-")) {
        message!("{}", text.trim_end_matches('\n'));
        return Ok(());
    }
    print(text)
}

/// Refuses files that could not be written when a long job is over. `-` is stdout.
pub fn check_writable(files: &[&Option<PathBuf>]) -> Result<()> {
    for file in files.iter().filter_map(|file| file.as_ref()) {
        if file == Path::new("-") {
            continue;
        }
        let parent = file
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            bail!(
                "cannot write {}: expected a folder {}, found none",
                file.display(),
                parent.display()
            );
        }
        if file.is_dir() {
            bail!(
                "cannot write {}: expected a file, found a folder",
                file.display()
            );
        }
    }
    Ok(())
}

/// Writes `json` to the file `path`, or to stdout for `-`.
pub fn write_json(path: &Path, json: &Value) -> Result<()> {
    let text = format!("{json:#}\n");
    if path == Path::new("-") {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("cannot write to stdout")
    } else {
        write_atomically(path, |out| out.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
