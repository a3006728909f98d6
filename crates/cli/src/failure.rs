//! How the program ends: messages and exit codes.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;
use std::sync::Mutex;

use halfseg_amp::AmpError;
use halfseg_devices::{Ranks, RanksError};
use halfseg_train::Error as TrainError;

use crate::ranks::is_further;

/// Bad usage that clap cannot see, such as flags that contradict each other: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Ctrl-C: exit code 130.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// The last panic: its message with its place, and a backtrace if one was asked for.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the program, prints what went wrong to stderr and chooses the exit code: 0 done, 1 failed,
/// 2 bad usage, 130 interrupted. A panic, in whatever thread, becomes a message too.
pub fn to_exit_code(body: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let mut text = message.to_owned();
        if let Some(place) = info.location() {
            text.push_str(&format!(" (at {}:{})", place.file(), place.line()));
        }
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text.push_str(&format!("\n{backtrace}"));
        }
        // The first panic tells the cause; those that follow are its consequences.
        PANIC
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .get_or_insert(text);
    }));
    let ended = catch_unwind(AssertUnwindSafe(body));
    let joins_none = matches!(&ended, Ok(Err(error)) if error.is::<RanksError>());
    let (text, code, told) = match ended {
        Ok(Ok(())) => (None, 0, true),
        Ok(Err(error)) => (
            Some(chain(&error)),
            code(&error),
            // All processes stop together.
            error.is::<Interrupted>(),
        ),
        Err(_) => {
            let panic = PANIC
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .take();
            let panic = panic.unwrap_or_else(|| "no message".into());
            let text = match panic.contains(OUT_OF_MEMORY) {
                true => format!("{TOO_SMALL} ({})", of_memory(&panic)),
                false => format!("the program cannot go on: {panic}"),
            };
            (Some(text), 1, false)
        }
    };
    let ranks = Ranks::current();
    if ranks.size() > 1 {
        return ExitCode::from(together(&ranks, text, code, told));
    }
    if let Some(text) = text {
        // The same of all processes of a job that this build cannot join.
        if !(joins_none && is_further()) {
            eprintln!("error: {text}");
        }
    }
    ExitCode::from(code)
}

/// What CubeCL says where a GPU has no memory left, in the midst of what could not be computed for it.
const OUT_OF_MEMORY: &str = "out of device memory";
const TOO_SMALL: &str = "the GPU's memory is too small: make the batch or the crop smaller, or train with \
                         --gradient-checkpointing; `halfseg info` predicts what a step takes";

/// The line of `panic` that says how much was asked for.
fn of_memory(panic: &str) -> &str {
    let line = panic.lines().find(|line| line.contains(OUT_OF_MEMORY));
    line.unwrap_or(OUT_OF_MEMORY).trim()
}

/// The end of one of several processes, which all end with one code: that of the first that failed. What it
/// failed with is said once, by itself.
fn together(ranks: &Ranks, text: Option<String>, code: u8, told: bool) -> u8 {
    let own = ranks.name(ranks.rank());
    let text = text.unwrap_or_default();
    let named = match text.starts_with(&own) {
        true => text.clone(),
        false => format!("{own}: {text}"),
    };
    if !told && ranks.can_agree() {
        // The others hear of it where they would begin, or in the same way.
        let _ = ranks.agree(Err(&text));
    }
    let code = match ranks.speaker() {
        Some(speaker) => {
            if speaker == ranks.rank() {
                eprintln!("error: {named}");
            }
            let codes = ranks.gather(&[code]);
            codes[speaker].first().copied().unwrap_or(1)
        }
        None if told => {
            if ranks.is_first() && code != 0 {
                eprintln!("error: {text}");
            }
            code
        }
        None => {
            eprintln!("error: {named}");
            ranks.abort(code)
        }
    };
    ranks.finish();
    code
}

fn code(error: &anyhow::Error) -> u8 {
    let usage = |error: &TrainError| {
        matches!(
            error,
            TrainError::UnknownKey { .. } | TrainError::Value { .. } | TrainError::Config { .. }
        ) || matches!(error, TrainError::Policy(error) if !matches!(error, AmpError::Io { .. }))
    };
    if error.is::<Interrupted>() {
        130
    } else if error.is::<Usage>() || error.downcast_ref::<TrainError>().is_some_and(usage) {
        2
    } else {
        1
    }
}

/// Characters of the longest message: some repeat a line of a file, however long.
const LONGEST: usize = 4000;

/// The message and its causes in one line, without those that only repeat what was said.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push_str(" (and so on)");
    }
    text
}
