//! The folder that published files are kept in.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::entry::{Entry, entries, nearest, pick, read_table};
use crate::error::ZooError;
use crate::progress::Progress;
use crate::verify::Hash;

/// Where files are looked for and whether they may be fetched.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The folder; `None` for the user's.
    pub folder: Option<PathBuf>,
    /// Fetch nothing.
    pub offline: bool,
    /// An address below which files are looked for by their names, in the place of the published one.
    pub mirror: Option<String>,
    /// A table whose entries come before the published ones.
    pub table: Option<PathBuf>,
    /// How long a server may take to connect, to answer, and to send some more of a file.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            folder: None,
            offline: false,
            mirror: None,
            table: None,
            patience: Duration::from_secs(30),
        }
    }
}

/// The folder that published files are kept in, and the table of what there is.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    settings: Settings,
    table: Vec<Entry>,
}

impl Settings {
    /// As the environment has them: `HALFSEG_CACHE`, `HALFSEG_OFFLINE`, `HALFSEG_MIRROR`, `HALFSEG_ZOO`. Those
    /// that are empty count as absent.
    ///
    /// # Errors
    /// A `HALFSEG_OFFLINE` that says neither yes nor no, and a `HALFSEG_MIRROR` that is no address.
    pub fn of_environment() -> Result<Self, ZooError> {
        Self::of(env::var_os)
    }

    fn of(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<Self, ZooError> {
        let given = |name| variable(name).filter(|value| !value.is_empty());
        let wrong = |name, expected, found: OsString| ZooError::Variable {
            name,
            expected,
            found: found.display().to_string(),
        };
        let offline = match given("HALFSEG_OFFLINE") {
            Some(value) => says_yes(&value).ok_or_else(|| {
                wrong(
                    "HALFSEG_OFFLINE",
                    "1 or 0 (or yes, no, true, false, on, off)",
                    value,
                )
            })?,
            None => false,
        };
        let is_address = |text: &&str| {
            ["http://", "https://"]
                .iter()
                .any(|start| text.starts_with(start))
        };
        let mirror = match given("HALFSEG_MIRROR") {
            Some(value) => match value.to_str().filter(is_address) {
                Some(address) => Some(address.to_owned()),
                None => {
                    let expected = "an address that begins with http:// or https://";
                    return Err(wrong("HALFSEG_MIRROR", expected, value));
                }
            },
            None => None,
        };
        Ok(Self {
            folder: given("HALFSEG_CACHE").map(PathBuf::from),
            offline,
            mirror,
            table: given("HALFSEG_ZOO").map(PathBuf::from),
            ..Self::default()
        })
    }
}

/// Whether `value` says yes, if it says yes or no.
fn says_yes(value: &OsStr) -> Option<bool> {
    match &*value.to_str()?.to_ascii_lowercase() {
        "1" | "yes" | "true" | "on" => Some(true),
        "0" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

impl Cache {
    /// The cache that `settings` name. Nothing is made before a file is fetched.
    ///
    /// # Errors
    /// A user without a folder of one's own, and a table that is none.
    pub fn new(settings: Settings) -> Result<Self, ZooError> {
        let folder = match &settings.folder {
            Some(folder) => folder.clone(),
            None => users_folder().ok_or(ZooError::NoFolder)?,
        };
        let mut table = match &settings.table {
            Some(path) => read_table(path)?,
            None => Vec::new(),
        };
        table.extend(entries().iter().cloned());
        Ok(Self {
            folder,
            settings,
            table,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All files that there are.
    pub fn entries(&self) -> &[Entry] {
        &self.table
    }

    /// The entry of this name, or of the configuration of this name.
    ///
    /// # Errors
    /// A name that is none; the error has the nearest ones.
    pub fn find(&self, name: &str) -> Result<&Entry, ZooError> {
        pick(&self.table, name).ok_or_else(|| ZooError::Unknown {
            name: name.to_owned(),
            nearest: nearest(&self.table, name).join(", "),
        })
    }

    /// Where an entry's file is or will be.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.folder.join(entry.file_name())
    }

    /// The file of the entry of this name, which is fetched if it is not here. Its hash is looked at
    /// before each use.
    ///
    /// Of a download that breaks, what came is kept beside the file's place and the next one goes on
    /// from there. Two processes at once fetch once: the second waits.
    ///
    /// # Errors
    /// A name that is none, a file that cannot be fetched, written or read, and one whose hash is not
    /// the published one.
    pub fn fetch(
        &self,
        name: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, ZooError> {
        let entry = self.find(name)?;
        let path = self.path(entry);
        if !path.exists() {
            if self.settings.offline {
                let why = "nothing is fetched offline";
                return Err(self.absent(entry, why.to_owned()));
            }
            self.fetch_missing(entry, &path, progress)?;
        } else {
            let read = |source| ZooError::Read {
                path: path.clone(),
                source,
            };
            if let Some(found) = Hash::of(&path)
                .map_err(read)?
                .differs(entry.sha256_prefix())
            {
                return Err(ZooError::WrongHash {
                    file: path.display().to_string(),
                    expected: entry.sha256_prefix().to_owned(),
                    found,
                    remedy: "remove it, so that it is fetched again",
                });
            }
        }
        progress(Progress::Ready);
        Ok(path)
    }

    fn fetch_missing(
        &self,
        entry: &Entry,
        path: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), ZooError> {
        let write = |path: &Path, source| ZooError::Write {
            path: path.to_owned(),
            kept: String::new(),
            source,
        };
        fs::create_dir_all(&self.folder).map_err(|error| write(&self.folder, error))?;
        // The system lets go of it when the process ends, however it ends.
        let lock_path = beside(path, ".lock");
        let lock = File::create(&lock_path).map_err(|error| write(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress(Progress::Waiting);
                lock.lock().map_err(|error| write(&lock_path, error))?;
            }
            // A file system without locks: both write, and the hash tells.
            Err(TryLockError::Error(_)) => {}
        }
        if path.exists() {
            return Ok(());
        }
        self.download(entry, path, progress)
    }

    #[cfg(feature = "http")]
    fn download(
        &self,
        entry: &Entry,
        path: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), ZooError> {
        let url = match &self.settings.mirror {
            Some(mirror) => format!("{}/{}", mirror.trim_end_matches('/'), entry.file_name()),
            None => entry.url.clone(),
        };
        let part = beside(path, ".part");
        let patience = self.settings.patience;
        let got = crate::http::download(&url, &part, entry.sha256_prefix(), patience, progress);
        match got {
            Ok(()) => {}
            Err(crate::http::Failure::Zoo(error)) => return Err(error),
            Err(crate::http::Failure::Connection(why)) => {
                return Err(self.absent(entry, format!("{url} could not be fetched ({why})")));
            }
        }
        halfseg_files::move_into_place(&part, path).map_err(|source| ZooError::Write {
            path: path.to_owned(),
            kept: String::new(),
            source,
        })
    }

    #[cfg(not(feature = "http"))]
    fn download(
        &self,
        entry: &Entry,
        _: &Path,
        _: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), ZooError> {
        let why = "this program was built without the feature `http`";
        Err(self.absent(entry, why.to_owned()))
    }

    fn absent(&self, entry: &Entry, why: String) -> ZooError {
        ZooError::Absent {
            name: entry.name.clone(),
            why,
            file: self.path(entry),
            url: entry.url.clone(),
        }
    }
}

/// `path` with `ending` after its name, hidden.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

/// By the XDG base directory specification; on Windows and macOS by their own customs.
fn users_folder() -> Option<PathBuf> {
    let folder = |name| {
        let path = env::var_os(name).map(PathBuf::from);
        // The specification has relative paths ignored.
        path.filter(|path| path.is_absolute())
    };
    let base = match (cfg!(windows), cfg!(target_os = "macos")) {
        (true, _) => folder("LOCALAPPDATA"),
        (_, true) => {
            folder("XDG_CACHE_HOME").or(folder("HOME").map(|home| home.join("Library/Caches")))
        }
        _ => folder("XDG_CACHE_HOME").or(folder("HOME").map(|home| home.join(".cache"))),
    };
    base.map(|base| base.join("halfseg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_understood_or_refused_by_name() {
        let read = |name: &'static str, value: &str| {
            Settings::of(|asked| (asked == name).then(|| OsString::from(value)))
        };
        let refused = |name, value, expected: &str| {
            let error = read(name, value).unwrap_err().to_string();
            let found = format!("{name}: expected {expected}");
            assert!(
                error.starts_with(&found) && error.ends_with(&format!("found `{value}`")),
                "{error}"
            );
        };
        for (value, offline) in [
            ("1", true),
            ("True", true),
            ("0", false),
            ("off", false),
            ("", false),
        ] {
            assert_eq!(
                read("HALFSEG_OFFLINE", value).unwrap().offline,
                offline,
                "{value}"
            );
        }
        refused("HALFSEG_OFFLINE", "2", "1 or 0");
        let mirror = "https://example.org/files";
        assert_eq!(
            read("HALFSEG_MIRROR", mirror).unwrap().mirror.as_deref(),
            Some(mirror)
        );
        refused("HALFSEG_MIRROR", "example.org/files", "an address");
        refused("HALFSEG_MIRROR", "/srv/files", "an address");
    }
}
