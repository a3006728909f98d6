//! Files that take their place once they are whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::entries;

const ENDING: &str = ".tmp";
/// Bytes of a name that its temporary one repeats: names end at 255 bytes on most file systems.
const KEPT_BYTES: usize = 180;
/// Links that Linux follows before it calls them a circle.
const MOST_LINKS: usize = 40;

/// A name in the folder of `path` that no other file of this process is written under:
/// `.NAME.PROCESS-COUNT.tmp`.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default();
    let mut hidden = OsString::from(".");
    match name.len() <= KEPT_BYTES {
        true => hidden.push(name),
        // Enough for people; four bytes a character at most.
        false => {
            let name = name.to_string_lossy();
            hidden.push(name.chars().take(KEPT_BYTES / 4).collect::<String>());
        }
    }
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    hidden.push(format!(".{process}-{count}{ENDING}"));
    path.with_file_name(hidden)
}

/// Whether a name is one that [`temporary`] makes.
fn is_temporary(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let stem = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(ENDING));
    let numbers = stem.and_then(|stem| stem.rsplit_once('.')?.1.split_once('-'));
    numbers.is_some_and(|(process, count)| number(process) && number(count))
}

/// Creates a file that is written under a temporary name, and locks it for as long as it is open, by
/// which [`sweep`] knows that it is in use.
fn create(path: &Path) -> io::Result<(File, PathBuf)> {
    loop {
        let temporary = temporary(path);
        // Neither another process's file nor what a link points to.
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
        {
            Ok(file) => {
                // Where there are no locks, nothing is swept either.
                let _ = file.lock();
                // Swept between the two.
                if temporary.exists() {
                    return Ok((file, temporary));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Where `path` leads to: what its links, if any, point to, whether that exists or not.
fn destination(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&path) else {
            return Ok(path);
        };
        // An absolute target replaces the whole path.
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    let circle = format!("expected a file, found more than {MOST_LINKS} links in a row");
    Err(io::Error::new(io::ErrorKind::InvalidInput, circle))
}

/// Lets a new name survive a crash of the machine, where folders can be flushed.
fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // A folder may allow writing and not reading, and some systems do not open any.
    let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) else {
        return Ok(());
    };
    match folder.sync_all() {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// The one place where files of the workspace take their names.
#[allow(clippy::disallowed_methods, reason = "the others are to come here")]
fn put(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)
}

/// Lets `write` fill a temporary file in the folder of `path`, flushes it to the disk and renames
/// it to `path`. When anything fails, what was at `path` before stays and the temporary file goes.
///
/// Where `path` is a link, the file that it points to is replaced and the link stays. What is no
/// regular file, such as a device or a pipe, is never replaced: it is written to directly.
///
/// # Errors
/// What `write` returns, a file that cannot be created, flushed or renamed, and a folder at `path`.
/// The error does not name the file: callers have error types of their own that do.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let fill = |file: File| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        // A full disk may show only here.
        out.into_inner().map_err(io::IntoInnerError::into_error)
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => {
            return fill(OpenOptions::new().write(true).open(path)?).map(drop);
        }
        _ => {}
    }
    let path = destination(path)?;
    let (file, temporary) = create(&path)?;
    let result = (|| {
        // Open, and so locked, until it has its name.
        let file = fill(file)?;
        file.sync_all()?;
        put(&temporary, &path)?;
        sync_folder(&path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Flushes the whole file at `from`, which was written over some time, and gives it the name `to`, in the
/// place of what is there. Both are on one file system.
///
/// # Errors
/// A file that cannot be flushed or renamed; it stays at `from`.
pub fn move_into_place(from: &Path, to: &Path) -> io::Result<()> {
    // Opened for writing, which flushing asks for on some systems.
    OpenOptions::new().write(true).open(from)?.sync_all()?;
    put(from, to)?;
    sync_folder(to)
}

/// Removes the temporary files that killed processes have left in `folder`, not in its subfolders,
/// and returns their paths. Files that some process, on this machine or, where the file system has
/// locks, on another one, is writing stay.
///
/// # Errors
/// A folder that cannot be read, and a file that cannot be removed.
pub fn sweep(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        if !is_file || !is_temporary(&name) {
            continue;
        }
        let Ok(file) = OpenOptions::new().write(true).open(&path) else {
            continue;
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => continue,
        }
        match fs::remove_file(&path) {
            Ok(()) => swept.push(path),
            // Renamed or swept in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        entries(folder).unwrap().into_iter().map(name).collect()
    }

    fn write(path: &Path, text: &str) -> io::Result<()> {
        write_atomically(path, |out| out.write_all(text.as_bytes()))
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/file");
        let error = write_atomically(&path, |out| out.write_all(b"x")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_error_of_the_writer_comes_back_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let error = write_atomically(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::create_dir(&path).unwrap();
        assert_eq!(
            write(&path, "x").unwrap_err().kind(),
            io::ErrorKind::IsADirectory
        );
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn names_of_any_length_and_script_are_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a".repeat(255), "\u{1F468}".repeat(63), "é".repeat(127)] {
            write(&folder.path().join(&name), "x").unwrap();
            assert_eq!(names(folder.path()), [name.as_str()]);
            fs::remove_file(folder.path().join(name)).unwrap();
        }
    }

    #[test]
    fn writers_of_one_path_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, |out| {
            out.write_all(b"outer")?;
            write(&path, "inner")?;
            assert_eq!(fs::read_to_string(&path).unwrap(), "inner");
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "outer");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_was_left_behind_is_swept_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (at, path) = (
            |name: &str| folder.path().join(name),
            folder.path().join("file"),
        );
        let kept = [
            ".a.12.tmp",
            ".a.1-.tmp",
            ".a.1-x.tmp",
            ".tmp",
            "a.1-2.tmp",
            ".a.1-2.tmp2",
        ];
        for name in kept.iter().chain(&[".a.99999999-0.tmp", ".b.1-2.tmp"]) {
            fs::write(at(name), "").unwrap();
        }
        fs::create_dir(at(".folder.1-2.tmp")).unwrap();
        write_atomically(&path, |out| {
            out.write_all(b"whole")?;
            let swept = sweep(folder.path())?;
            assert_eq!(swept, [at(".a.99999999-0.tmp"), at(".b.1-2.tmp")]);
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(names(folder.path()).len(), kept.len() + 2);
        assert!(sweep(folder.path()).unwrap().is_empty());
    }

    #[cfg(unix)]
    mod unix {
        use super::*;
        use std::os::unix::fs::symlink;

        #[test]
        fn temporary_names_that_are_taken_or_linked_are_left_alone() {
            let folder = tempfile::tempdir().unwrap();
            let (path, victim) = (folder.path().join("file"), folder.path().join("victim"));
            fs::write(&victim, "kept").unwrap();
            // Tests run side by side: the next name is one of the following.
            let next = temporary(&path).to_string_lossy().into_owned();
            let (start, count) = next.trim_end_matches(ENDING).rsplit_once('-').unwrap();
            let count: u64 = count.parse().unwrap();
            for count in count + 1..count + 60 {
                symlink(&victim, format!("{start}-{count}{ENDING}")).unwrap();
            }
            write(&path, "x").unwrap();
            assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
            assert_eq!(fs::read_to_string(&path).unwrap(), "x");
            assert!(!path.is_symlink());
        }

        #[test]
        fn the_file_behind_links_is_written_and_the_links_stay() {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::create_dir(at("deep")).unwrap();
            fs::write(at("deep/file"), "old").unwrap();
            symlink("deep/file", at("first")).unwrap();
            symlink(at("first"), at("second")).unwrap();
            symlink("deep/new", at("dangling")).unwrap();
            write(&at("second"), "new").unwrap();
            write(&at("dangling"), "made").unwrap();
            assert!(at("first").is_symlink() && at("second").is_symlink());
            assert!(at("dangling").is_symlink() && !at("deep/new").is_symlink());
            assert_eq!(fs::read_to_string(at("deep/file")).unwrap(), "new");
            assert_eq!(fs::read_to_string(at("deep/new")).unwrap(), "made");
            assert_eq!(names(&at("deep")), ["file", "new"]);
            assert_eq!(
                names(folder.path()),
                ["dangling", "deep", "first", "second"]
            );
            symlink("circle", at("circle")).unwrap();
            let error = write(&at("circle"), "x").unwrap_err().to_string();
            assert!(error.contains("links in a row"), "{error}");
        }

        #[test]
        fn devices_and_pipes_are_written_to_and_stay() {
            use std::os::unix::fs::FileTypeExt;
            let folder = tempfile::tempdir().unwrap();
            let link = folder.path().join("null");
            symlink("/dev/null", &link).unwrap();
            for path in [Path::new("/dev/null"), &link] {
                write(path, "gone").unwrap();
                assert!(
                    fs::metadata("/dev/null")
                        .unwrap()
                        .file_type()
                        .is_char_device()
                );
            }
            assert!(link.is_symlink());

            let pipe = folder.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status();
            assert!(made.is_ok_and(|status| status.success()), "mkfifo");
            let reader = std::thread::spawn({
                let pipe = pipe.clone();
                move || fs::read_to_string(pipe).unwrap()
            });
            write(&pipe, "through").unwrap();
            assert_eq!(reader.join().unwrap(), "through");
            assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
            assert_eq!(names(folder.path()), ["null", "pipe"]);
        }
    }
}
