//! Published checkpoints by name, wherever a file of weights is asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use halfseg_train::Error;
use halfseg_zoo::{Cache, Progress, Settings, ZooError};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::is_quiet;

/// What is before the name of a published checkpoint.
const ZOO: &str = "zoo:";

static OFFLINE: AtomicBool = AtomicBool::new(false);

/// Whether nothing is fetched from now on.
pub fn set_offline(offline: bool) {
    OFFLINE.store(offline, Relaxed);
}

/// The name in `zoo:NAME`; `None` for a path.
pub fn name(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix(ZOO)
}

/// The cache that flags and the environment name.
pub fn cache() -> Result<Cache, ZooError> {
    let mut settings = Settings::of_environment()?;
    settings.offline |= OFFLINE.load(Relaxed);
    Cache::new(settings)
}

/// The file of `zoo:NAME`.
///
/// # Panics
/// If it is another path.
pub fn file(path: &Path) -> Result<PathBuf, Error> {
    let name = name(path).expect("the caller looked for a name");
    let fetch = || fetch(&cache()?, name);
    // As a file of weights that cannot be read, which it is to whoever asked for it.
    fetch().map_err(|error| Error::Read {
        path: path.to_owned(),
        source: io::Error::other(error),
    })
}

/// Fetches a file with progress on the terminal.
pub fn fetch(cache: &Cache, name: &str) -> Result<PathBuf, ZooError> {
    let mut bar: Option<ProgressBar> = None;
    let fetched = cache.fetch(name, &mut |progress| match progress {
        Progress::Waiting => message!("waiting for another process, which fetches {name}"),
        Progress::Fetching { url, bytes, of } => {
            let bar = bar.get_or_insert_with(|| {
                message!("fetching {url}");
                new_bar(of.unwrap_or(0))
            });
            bar.set_position(bytes);
        }
        Progress::Retrying { why } => warning!("{name}: {why}; trying again"),
        _ => {}
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    fetched
}

fn new_bar(bytes: u64) -> ProgressBar {
    let template = "{elapsed} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    let bar = match is_quiet() {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(bytes),
    };
    bar.with_style(style.progress_chars("=> "))
}
