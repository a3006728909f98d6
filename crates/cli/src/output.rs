//! What the program says: results on stdout, messages on stderr.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use halfseg_data::is_own_png;
use halfseg_files::write_atomically;
use halfseg_predict::is_own_logits;
use halfseg_train::{is_of_run, is_run_name, resolve_checkpoint};
use serde_json::Value;

/// How much is said.
static LEVEL: AtomicU8 = AtomicU8::new(NORMAL);
const SILENT: u8 = 0;
const QUIET: u8 = 1;
const NORMAL: u8 = 2;
const VERBOSE: u8 = 3;

// In place of the standard library's, which panic when nobody reads stderr any more: a run outlives
// its terminal. In one piece, since several processes may share it.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        $crate::output::say(&$crate::output::printable(format!($($text)*)));
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
/// What may be wrong although the program goes on; always said, but for processes behind the first.
macro_rules! warning {
    ($($text:tt)*) => {
        if !$crate::output::is_silent() {
            eprintln!("warning: {}", format_args!($($text)*))
        }
    };
}

/// What is said while something else has the terminal: all lines, and how many of them were looked at.
static CAPTURED: Mutex<Option<(Vec<String>, usize)>> = Mutex::new(None);

fn captured_lines() -> MutexGuard<'static, Option<(Vec<String>, usize)>> {
    CAPTURED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says a line, at once unless lines are captured.
pub fn say(line: &str) {
    match &mut *captured_lines() {
        Some((lines, _)) => lines.push(line.to_owned()),
        None => {
            let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// Keeps what is said from now on, since something else has the terminal.
#[cfg(feature = "tui")]
pub fn capture() {
    captured_lines().get_or_insert_default();
}

/// What was said since this was last asked.
#[cfg(feature = "tui")]
pub fn captured() -> Vec<String> {
    let mut captured = captured_lines();
    let Some((lines, seen)) = &mut *captured else {
        return Vec::new();
    };
    let new = lines[*seen..].to_vec();
    *seen = lines.len();
    new
}

/// Says everything that was kept, and from now on at once.
#[cfg(feature = "tui")]
pub fn release() {
    let lines = captured_lines().take();
    for line in lines.into_iter().flat_map(|(lines, _)| lines) {
        say(&line);
    }
}

/// `text` with control characters escaped, but for line ends and tabs: names of files come from strangers,
/// and a terminal obeys what is in them.
pub fn printable(text: String) -> String {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(obeyed) {
        return text;
    }
    let escape = |c: char| match obeyed(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
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
    LEVEL.load(Relaxed) <= QUIET
}

/// Has this process say nothing but what it ends with: another speaks for it.
pub fn silence() {
    LEVEL.store(SILENT, Relaxed);
}

/// Whether another process speaks for this one.
pub fn is_silent() -> bool {
    LEVEL.load(Relaxed) == SILENT
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

/// Refuses files that could not be written when a long job is over, and files that would replace each
/// other, one of `inputs`, which may be folders of runs, or what a run has or will have. `-` is stdout.
pub fn check_writable(files: &[&Option<PathBuf>], inputs: &[Option<&Path>]) -> Result<()> {
    let weights = inputs
        .iter()
        .flatten()
        .flat_map(|path| resolve_checkpoint(path));
    let mut taken: Vec<_> = weights.map(|path| place(&path)).collect();
    taken.extend(inputs.iter().flatten().map(|path| place(path)));
    let named = files.iter().filter_map(|file| file.as_ref());
    for file in named.filter(|file| *file != Path::new("-")) {
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
        // Several results may go to one device.
        if file.exists() && !file.is_file() {
            continue;
        }
        let place = place(file);
        if taken.contains(&place) {
            bail!(
                "cannot write {}: expected a file of its own, found what another flag names",
                file.display()
            );
        }
        // Of the data, perhaps. No result that is checked here is one.
        if is_picture(file) {
            bail!(
                "cannot write {}: a picture is there; choose another name",
                file.display()
            );
        }
        let of_input = place
            .parent()
            .is_some_and(|folder| taken.contains(&folder.to_owned()));
        if is_of_run(file) || (of_input && is_run_name(file)) {
            bail!(
                "cannot write {}: a run has a file of this name there; choose another one",
                file.display()
            );
        }
        taken.push(place);
    }
    Ok(())
}

/// Refuses to replace the file at `path`, a PNG or logits, whose name nobody chose, unless this program wrote it
/// or `overwrite` asks for it.
pub fn check_replaceable(path: &Path, overwrite: bool) -> Result<()> {
    if !path.exists() || (overwrite && path.is_file()) {
        return Ok(());
    }
    let own = match path.extension().is_some_and(|extension| extension == "png") {
        true => is_own_png(path)?,
        false => is_own_logits(path),
    };
    if !own {
        bail!(
            "{} is there and not this program's: choose another folder, or replace it with --overwrite",
            path.display()
        );
    }
    Ok(())
}

/// Whether a PNG or a JPEG is at `path`.
fn is_picture(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read(&mut start));
    read.is_ok() && (start == *b"\x89PNG" || start[..2] == [0xFF, 0xD8])
}

/// Where a path leads to, by one name however it is written.
fn place(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let beside = || Some(path.parent()?.canonicalize().ok()?.join(name));
    let there = path.canonicalize().ok().or_else(beside);
    there
        .or_else(|| std::path::absolute(path).ok())
        .unwrap_or_else(|| path.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_by_names() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text.to_owned()), expected);
        check(
            "a\tüber\n\u{939}\u{93f} \u{1f468}\u{200d}\u{1f469}",
            "a\tüber\n\u{939}\u{93f} \u{1f468}\u{200d}\u{1f469}",
        );
        check("\u{1b}[2J\r\u{7f}\u{9b}x", "\\u{1b}[2J\\r\\u{7f}\\u{9b}x");
    }
}
