//! The folder of a run: its files, to which run they belong, and the states it goes through.
//!
//! # Files
//!
//! All names are in this file. `run.json`, the manifest, is the first that a run writes; it names
//! the run, its files, and for each checkpoint its [`Mark`]: how long the log was, the best score
//! and the last evaluation. `run.lock` is locked for as long as a process has the run open; the
//! system lets go of the lock when that process ends, however it ends, and the file stays.
//!
//! # States
//!
//! | state | how it is told | what may follow |
//! |---|---|---|
//! | free | none of a run's files, or, with `run.json`, those of a run that ended before its first log line and left no weights | [`Folder::claim`] makes it *begun* |
//! | begun | `run.json`, `config.toml` and `log.jsonl`, perhaps `best.safetensors` | the first checkpoint makes it *resumable*; a new run must be told to replace this one |
//! | resumable | `last_checkpoint` names a checkpoint whose files are whole | [`Folder::open`] continues from there, as often as need be |
//! | finished | the mark of the last checkpoint says so | resuming writes the results again, or goes on if more iterations are asked for |
//!
//! A checkpoint of iteration N takes four steps, each of which leaves a folder to resume from:
//!
//! 1. the log is flushed to the disk, and `run.json` lists N with its mark;
//! 2. `iter_N.safetensors`, `iter_N.state.safetensors` and, if the mark says that there are averages,
//!    `iter_N.ema.safetensors` appear, each whole;
//! 3. `last_checkpoint` is renamed into place and names N;
//! 4. checkpoints beyond the last `train.keep` go.
//!
//! An evaluation at N begins after the checkpoint of N (unless `train.checkpoint_every` is 0, which
//! asks for no checkpoints before the end), and its result replaces the mark of N. So opening a
//! folder finds what is left to do: the log is cut to the length in the mark, which drops exactly
//! the lines that will be written again; checkpoints after the one that is named, those that should
//! have gone, and temporary files go; an evaluation that is due at N and not in its mark is made up.
//! Files that the manifest does not list are never removed.
//!
//! A folder without `run.json` is that of an earlier version: it can be resumed, from what
//! `last_checkpoint` names, and gets a manifest then.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use halfseg_data::is_own_png;

use super::manifest::{Manifest, Mark};
use crate::atomic::{read_regular, write_text};
use crate::{Error, Log, Recipe};

/// The metadata key of a checkpoint that holds its [`Recipe`] as TOML.
pub const RECIPE_KEY: &str = "halfseg.recipe";
/// Metadata of a checkpoint: the definition of the data set that it was trained on, as TOML.
pub const DEFINITION_KEY: &str = "halfseg.data";
/// The metadata key of a checkpoint that holds the number of iterations that were run.
pub(crate) const ITERATION_KEY: &str = "halfseg.iteration";
/// The metadata key of a checkpoint that holds its mIoU, where it was the best so far.
pub(crate) const MIOU_KEY: &str = "halfseg.miou";

/// Names the last checkpoint of a folder.
const LAST: &str = "last_checkpoint";
const MANIFEST: &str = "run.json";
const LOCK: &str = "run.lock";
const BEST: &str = "best.safetensors";
const CONFIG: &str = "config.toml";
const LOG: &str = "log.jsonl";
const SCORES: &str = "scores.json";
const CURVES: &str = "loss.svg";
const CONFUSION: &str = "confusion.svg";
const PICTURES: &str = "pictures";
const EVALUATION: &str = "evaluation.json";
/// What `halfseg-report` makes of a run, beside its files.
pub const REPORT_FILE: &str = "report.html";
/// What is in such a page, near its beginning.
pub const REPORT_MARK: &str = "<meta name=\"generator\" content=\"halfseg-report";
/// Bytes within which it is.
const REPORT_HEAD: usize = 1024;

/// What a run leaves besides checkpoints and pictures.
const FILES: [&str; 9] = [
    LAST,
    BEST,
    CONFIG,
    LOG,
    SCORES,
    CURVES,
    CONFUSION,
    EVALUATION,
    REPORT_FILE,
];

/// The files that whoever only reads a run wants, in the folder at a path.
pub(super) struct Places {
    pub manifest: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
    pub scores: PathBuf,
    pub evaluation: PathBuf,
    pub pictures: PathBuf,
}

impl Places {
    pub fn of(path: &Path) -> Self {
        let [manifest, config, log, scores, evaluation, pictures] =
            [MANIFEST, CONFIG, LOG, SCORES, EVALUATION, PICTURES].map(|name| path.join(name));
        Self {
            manifest,
            config,
            log,
            scores,
            evaluation,
            pictures,
        }
    }
}

/// What is done with the files of another run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// They stay, and there is no new run.
    Refused,
    /// The new run takes their place.
    Replaced,
}

/// The folder of a run that this process has open.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    manifest: Manifest,
    /// What whoever runs it should know.
    pub notes: Vec<String>,
    /// Locked until it is dropped.
    _lock: File,
}

impl Folder {
    /// Makes the folder at `path`, which need not be there, that of a new run with `recipe`.
    pub fn claim(path: &Path, recipe: &Recipe, existing: Existing) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        let mut notes = Vec::new();
        let lock = lock(path, &mut notes)?;
        if existing == Existing::Refused {
            check_free(path, recipe)?;
        }
        // What has the manifest's name and is none stays.
        Manifest::read(&path.join(MANIFEST))?;
        remove_run(path, recipe)?;
        let folder = Self {
            path: path.to_owned(),
            manifest: new_manifest(),
            notes,
            _lock: lock,
        };
        folder.manifest.write(&path.join(MANIFEST))?;
        folder.write_config(recipe)?;
        Ok(folder)
    }

    /// Opens the folder at `path` where its last checkpoint left it, and removes what interrupted
    /// saves left behind. Returns the checkpoint's iteration, too, and its mark; none where an
    /// earlier version wrote it.
    pub fn open(path: &Path) -> Result<(Self, u64, Option<Mark>), Error> {
        if !can_resume(path) {
            return Err(Error::NothingToResume {
                path: path.to_owned(),
                expected: LAST,
            });
        }
        let mut notes = Vec::new();
        let lock = lock(path, &mut notes)?;
        let iteration = last_iteration(path)?;
        let manifest = Manifest::read(&path.join(MANIFEST))?.unwrap_or_else(|| {
            notes.push(format!(
                "an earlier version began this run: it left no {MANIFEST}, which is made from what is \
                 there"
            ));
            new_manifest()
        });
        let mut folder = Self {
            path: path.to_owned(),
            manifest,
            notes,
            _lock: lock,
        };
        folder.check_complete(iteration)?;
        folder.sweep(iteration);
        let mark = folder.manifest.checkpoints.get(&iteration).cloned();
        Ok((folder, iteration, mark))
    }

    /// Whether all files of the last checkpoint are there.
    fn check_complete(&self, iteration: u64) -> Result<(), Error> {
        let mut files = self.files(iteration).into_iter();
        let Some(missing) = files.find(|path| !path.is_file()) else {
            return Ok(());
        };
        let others = self.manifest.checkpoints.keys().copied();
        let others = others.filter(|at| self.is_whole(*at));
        let others: Vec<_> = others.map(weights_name).collect();
        let found = match others.as_slice() {
            [] => "none".to_owned(),
            names => format!(
                "none, but {} is whole: write its name into {LAST} to go on from there",
                names.join(", ")
            ),
        };
        Err(Error::State {
            path: missing,
            expected: format!("a file of the checkpoint that {LAST} names"),
            found,
        })
    }

    pub fn weights(&self, iteration: u64) -> PathBuf {
        self.path.join(weights_name(iteration))
    }

    pub fn state(&self, iteration: u64) -> PathBuf {
        state_path(&self.weights(iteration))
    }

    pub fn averages(&self, iteration: u64) -> PathBuf {
        averages_path(&self.weights(iteration))
    }

    /// Those of a checkpoint.
    fn files(&self, iteration: u64) -> Vec<PathBuf> {
        let mark = self.manifest.checkpoints.get(&iteration);
        let averaged = mark.is_some_and(|mark| mark.averaged);
        let averages = averaged.then(|| self.averages(iteration));
        let mut files = vec![self.weights(iteration), self.state(iteration)];
        files.extend(averages);
        files
    }

    pub fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    pub fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    pub fn curves(&self) -> PathBuf {
        self.path.join(CURVES)
    }

    pub fn confusion(&self) -> PathBuf {
        self.path.join(CONFUSION)
    }

    pub fn pictures(&self) -> PathBuf {
        self.path.join(PICTURES)
    }

    pub fn evaluation(&self) -> PathBuf {
        self.path.join(EVALUATION)
    }

    pub fn write_scores(&self, json: &serde_json::Value) -> Result<(), Error> {
        write_text(&self.path.join(SCORES), &format!("{json:#}\n"))
    }

    pub fn write_config(&self, recipe: &Recipe) -> Result<(), Error> {
        let path = self.path.join(CONFIG);
        // A file that says the same may have been written by hand, with remarks.
        if Recipe::read(&path).is_ok_and(|there| there == *recipe) {
            return Ok(());
        }
        write_text(&path, &recipe.to_toml())
    }

    /// Notes that `config.toml` says something else than the checkpoint that is continued, as it does where
    /// it was edited.
    pub fn note_config(&mut self, recipe: &Recipe) {
        let path = self.path.join(CONFIG);
        if path.exists() && !Recipe::read(&path).is_ok_and(|there| there == *recipe) {
            self.notes.push(format!(
                "{CONFIG} says something else than the last checkpoint, which the run goes on with, and is \
                 written anew: change single values with flags or --set"
            ));
        }
    }

    /// Lists the checkpoint of `iteration`, or replaces its mark. Comes before its files.
    pub fn mark(&mut self, iteration: u64, mark: Mark) -> Result<(), Error> {
        self.manifest.checkpoints.insert(iteration, mark);
        self.manifest.write(&self.path.join(MANIFEST))
    }

    /// Names the checkpoint of `iteration` the last.
    pub fn complete(&self, iteration: u64) -> Result<(), Error> {
        write_text(&self.path.join(LAST), &weights_name(iteration))
    }

    /// Removes all checkpoints but the last `keep`.
    pub fn prune(&mut self, keep: usize) {
        while self.manifest.checkpoints.len() > keep.max(1) {
            let Some((first, _)) = self.manifest.checkpoints.pop_first() else {
                break;
            };
            self.remove_checkpoint(first);
        }
    }

    /// What is left behind here costs space, nothing else.
    fn remove_checkpoint(&self, iteration: u64) {
        let _ = fs::remove_file(self.state(iteration));
        let _ = fs::remove_file(self.averages(iteration));
        let _ = fs::remove_file(self.weights(iteration));
    }

    fn is_whole(&self, iteration: u64) -> bool {
        self.files(iteration).iter().all(|path| path.is_file())
    }

    /// Removes what processes that were killed left behind: checkpoints after the last, those of
    /// which a part is gone, and temporary files, which no other process can be writing while the
    /// folder is locked.
    fn sweep(&mut self, last: u64) {
        let listed: Vec<_> = self.manifest.checkpoints.keys().copied().collect();
        for iteration in listed {
            if iteration > last || !self.is_whole(iteration) {
                self.remove_checkpoint(iteration);
                self.manifest.checkpoints.remove(&iteration);
            }
        }
        // What cannot be removed costs space, nothing else.
        for folder in [&self.path, &self.pictures()] {
            let _ = halfseg_files::sweep(folder);
        }
        let listed = |at| at == last || self.manifest.checkpoints.contains_key(&at);
        let strange = |name: &String| checkpoint_of(name).is_some_and(|at| !listed(at));
        let strangers: Vec<_> = names(&self.path).filter(strange).collect();
        if !strangers.is_empty() {
            self.notes.push(format!(
                "left alone, since {MANIFEST} does not list them: {}",
                strangers.join(", ")
            ));
        }
    }
}

fn new_manifest() -> Manifest {
    Manifest::new(FILES.into_iter().chain([MANIFEST, LOCK, PICTURES]))
}

/// Locks the folder at `path` for this process. A file system without locks is noted.
fn lock(path: &Path, notes: &mut Vec<String>) -> Result<File, Error> {
    let file = path.join(LOCK);
    let failed = |source| Error::Write {
        path: file.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut lock = options.open(&file).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {
            // For the message that another process prints.
            let text = format!("{}\n", std::process::id());
            lock.set_len(0).map_err(failed)?;
            lock.write_all(text.as_bytes()).map_err(failed)?;
            Ok(lock)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            Err(Error::FolderLocked {
                path: path.to_owned(),
                holder: holder.trim().to_owned(),
            })
        }
        Err(TryLockError::Error(source)) => {
            notes.push(format!(
                "{} cannot be locked ({source}): see to it that no other process trains there",
                file.display()
            ));
            Ok(lock)
        }
    }
}

/// Whether a new run with `recipe` may begin at `path` without being told to replace anything.
pub(crate) fn check_free(path: &Path, recipe: &Recipe) -> Result<(), Error> {
    let config = path.join(CONFIG);
    let alone = config.exists() && ![LOG, MANIFEST].iter().any(|name| path.join(name).exists());
    // By hand, perhaps for this run.
    let strange = alone && !Recipe::read(&config).is_ok_and(|there| there == *recipe);
    match found_run(path).or(strange.then(|| CONFIG.to_owned())) {
        Some(found) => Err(Error::FolderInUse {
            path: path.to_owned(),
            found,
        }),
        None => Ok(()),
    }
}

/// The file that shows best that a run was in the folder at `path` and left something worth keeping.
fn found_run(path: &Path) -> Option<String> {
    let there = |name: &&&str| path.join(name).exists();
    if let Some(name) = [LAST, BEST, SCORES].iter().find(there) {
        return Some((*name).to_owned());
    }
    // A run begins with its manifest: what is there without one is somebody's.
    if !path.join(MANIFEST).exists() {
        let pictures = names(&path.join(PICTURES)).next().map(|_| PICTURES);
        let files = [LOG, CURVES, CONFUSION, EVALUATION];
        if let Some(name) = files.iter().find(there).copied().or(pictures) {
            return Some(name.to_owned());
        }
    }
    let mut checkpoints = names(path).filter(|name| checkpoint_of(name).is_some());
    if let Some(name) = checkpoints.next() {
        return Some(name);
    }
    let mut trained = false;
    let read = Log::each(&path.join(LOG), "train", |_| trained = true);
    (read.is_ok() && trained).then(|| LOG.to_owned())
}

/// Whether the page at `path` says that it is a report of a run.
pub fn is_own_report(path: &Path) -> bool {
    let head = halfseg_files::read_head(path, REPORT_HEAD);
    head.is_ok_and(|head| String::from_utf8_lossy(&head).contains(REPORT_MARK))
}

/// Removes the files of whatever run was in the folder at `path`, for a run with `recipe`.
fn remove_run(path: &Path, recipe: &Recipe) -> Result<(), Error> {
    let remove = |path: PathBuf| match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::Write { path, source }),
        _ => Ok(()),
    };
    // First what the others are told by: if this ends here, the folder can be neither resumed nor
    // mistaken for that of the new run.
    let later = [LAST, CONFIG, REPORT_FILE];
    let rest = FILES.iter().filter(|name| !later.contains(name));
    for name in [LAST, MANIFEST].iter().chain(rest) {
        remove(path.join(name))?;
    }
    for name in names(path).filter(|name| checkpoint_of(name).is_some()) {
        remove(path.join(name))?;
    }
    // Another page of that name stays.
    let report = path.join(REPORT_FILE);
    if is_own_report(&report) {
        remove(report)?;
    }
    let _ = halfseg_files::sweep(path);
    remove_pictures(&path.join(PICTURES));
    let config = path.join(CONFIG);
    match Recipe::read(&config) {
        // Perhaps written by hand for this run.
        Ok(there) if there == *recipe => Ok(()),
        _ => remove(config),
    }
}

/// What the names of a picture's files end with.
const PICTURE_ENDINGS: [&str; 5] = [
    ".png",
    "_color.png",
    "_overlay.png",
    "_difference.png",
    "_trainIds.png",
];

/// Removes the pictures of an earlier run, and the folder if nothing else is in it.
fn remove_pictures(folder: &Path) {
    for name in names(folder) {
        if let Some(stem) = name.strip_suffix("_trainIds.png") {
            for ending in PICTURE_ENDINGS {
                let picture = folder.join(format!("{stem}{ending}"));
                if is_own_png(&picture).unwrap_or(false) {
                    let _ = fs::remove_file(picture);
                }
            }
        }
    }
    let _ = fs::remove_dir(folder);
}

/// Whether `out` holds a checkpoint to resume from.
pub(crate) fn can_resume(out: &Path) -> bool {
    out.join(LAST).is_file()
}

/// Whether `out` holds files of a run that a new one would have to replace.
pub(crate) fn holds_run(out: &Path) -> bool {
    found_run(out).is_some()
}

/// The weights that a path means: itself, or for the folder of a run its best checkpoint, else its
/// last, as averages if the run has them.
///
/// # Errors
///
/// A folder without a checkpoint.
pub fn resolve_checkpoint(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let best = path.join(BEST);
    match best.is_file() {
        true => Ok(best),
        false => {
            let last = last_checkpoint(path)?;
            let averages = averages_path(&last);
            Ok(if averages.is_file() { averages } else { last })
        }
    }
}

/// The recipe that a checkpoint of a training run carries; `None` for weights from elsewhere.
///
/// # Errors
///
/// A file that is no checkpoint, or a recipe that this version does not understand.
pub fn read_recipe(weights: &Path) -> Result<Option<Recipe>, Error> {
    let metadata = halfseg_segmentor::read_metadata(weights)?;
    let parse = |text: &String| Recipe::parse(text, &format!("{}", weights.display()));
    metadata.get(RECIPE_KEY).map(parse).transpose()
}

/// The weights of the checkpoint that `last_checkpoint` names.
fn last_checkpoint(out: &Path) -> Result<PathBuf, Error> {
    Ok(out.join(weights_name(last_iteration(out)?)))
}

/// The iteration of the checkpoint that `last_checkpoint` names. Nothing else than the name of a
/// checkpoint in the folder itself is taken: it is read, and later removed.
fn last_iteration(out: &Path) -> Result<u64, Error> {
    let path = out.join(LAST);
    let bytes = match read_regular(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::NothingToResume {
                path: out.to_owned(),
                expected: LAST,
            });
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    let text = String::from_utf8_lossy(&bytes);
    let name = text.trim();
    match checkpoint_of(name) {
        Some(iteration) if name == weights_name(iteration) => Ok(iteration),
        _ => Err(Error::State {
            path,
            expected: "the name of a checkpoint, such as iter_8000.safetensors".into(),
            found: format!("`{}`", name.chars().take(80).collect::<String>()),
        }),
    }
}

/// Whether runs have files of the name of `path`, and there is a run in its folder.
pub fn is_of_run(path: &Path) -> bool {
    is_run_name(path) && path.with_file_name(MANIFEST).is_file()
}

/// Whether runs have files of the name of `path`, pictures apart.
pub fn is_run_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let is_one = |name| FILES.contains(&name) || [MANIFEST, LOCK].contains(&name);
    name.is_some_and(|name| is_one(name) || checkpoint_of(name).is_some())
}

fn weights_name(iteration: u64) -> String {
    format!("iter_{iteration}.safetensors")
}

fn state_path(weights: &Path) -> PathBuf {
    weights.with_extension("state.safetensors")
}

fn averages_path(weights: &Path) -> PathBuf {
    weights.with_extension("ema.safetensors")
}

/// The iteration of the checkpoint that a file of this name belongs to.
fn checkpoint_of(name: &str) -> Option<u64> {
    let stem = name.strip_prefix("iter_")?.strip_suffix(".safetensors")?;
    let kinds = [".state", ".ema"];
    let digits = kinds.iter().find_map(|kind| stem.strip_suffix(kind));
    let digits = digits.unwrap_or(stem);
    let iteration = digits.parse().ok()?;
    // No sign and no leading zeros.
    (digits == format!("{iteration}")).then_some(iteration)
}

/// The names of what is in a folder, sorted; none if it is not there.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.collect::<BTreeSet<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_checkpoints_get_are_theirs() {
        assert_eq!(checkpoint_of("iter_0.safetensors"), Some(0));
        assert_eq!(checkpoint_of("iter_8000.state.safetensors"), Some(8000));
        assert_eq!(checkpoint_of("iter_8000.ema.safetensors"), Some(8000));
        for iteration in [7, u64::MAX] {
            assert_eq!(checkpoint_of(&weights_name(iteration)), Some(iteration));
        }
        for name in [
            "iter_.safetensors",
            "iter_08.safetensors",
            "iter_+8.safetensors",
            "iter_8.state.state.safetensors",
            "iter_8.ema.state.safetensors",
            "iter_8-copy.safetensors",
            "iter_8.safetensors.old",
            "iter_18446744073709551616.safetensors",
            "best.safetensors",
        ] {
            assert_eq!(checkpoint_of(name), None, "{name}");
        }
    }
}
