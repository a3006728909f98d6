//! What folders hold, in an order that does not depend on the file system.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The paths of what `folder` holds, sorted by name.
///
/// # Errors
/// A folder that cannot be read. The error does not name it: callers have error types of their own
/// that do.
pub fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Whether the name at the end of `path` begins with a dot, as those of files that nobody means when a folder
/// is named: macOS's `._x.png` and `.DS_Store`, `.ipynb_checkpoints`, `.git`. The shell's `*` and
/// MMEngine's `list_dir_or_file` leave them out, too.
pub fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// As [`walk`], without what is [hidden](is_hidden) and without what hidden folders hold. `folder` itself may
/// be one.
///
/// # Errors
/// Those of [`walk`]; hidden folders are not read.
pub fn walk_visible<E>(
    folder: &Path,
    failed: impl Fn(&Path, io::Error) -> E,
) -> Result<Vec<PathBuf>, E> {
    search(folder, |path| !is_hidden(path), failed)
}

/// Everything below `folder` that is no folder, in its subfolders, too, sorted by path.
///
/// Links to folders are followed. A folder that several paths lead to is searched once, by the path
/// with the fewest links, so that links to a folder above end the search nowhere else.
///
/// # Errors
/// What `failed` makes of a folder that cannot be read, and of why.
pub fn walk<E>(folder: &Path, failed: impl Fn(&Path, io::Error) -> E) -> Result<Vec<PathBuf>, E> {
    search(folder, |_| true, failed)
}

fn search<E>(
    folder: &Path,
    wanted: impl Fn(&Path) -> bool,
    failed: impl Fn(&Path, io::Error) -> E,
) -> Result<Vec<PathBuf>, E> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    let (mut folders, mut links) = (vec![folder.to_owned()], VecDeque::new());
    while let Some(folder) = folders.pop().or_else(|| links.pop_front()) {
        let identity = folder.canonicalize();
        if !seen.insert(identity.map_err(|e| failed(&folder, e))?) {
            continue;
        }
        for path in entries(&folder).map_err(|e| failed(&folder, e))? {
            if !wanted(&path) {
                continue;
            }
            match (path.is_dir(), path.is_symlink()) {
                (true, false) => folders.push(path),
                (true, true) => links.push_back(path),
                (false, _) => files.push(path),
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let files = walk(root, |path, e| panic!("{}: {e}", path.display())).unwrap_or_default();
        let name = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        files.iter().map(name).collect()
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn files_of_all_subfolders_come_in_the_order_of_their_paths() {
        let root = tree(&["b", "a/z/1", "a/2", "a.png", "c/1"]);
        assert_eq!(names(root.path()), ["a/2", "a/z/1", "a.png", "b", "c/1"]);
        let top = entries(root.path()).unwrap();
        let top: Vec<_> = top.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(top, ["a", "a.png", "b", "c"]);
    }

    #[test]
    fn what_is_hidden_is_left_out_where_a_folder_is_meant() {
        let root = tree(&[
            "._a.png",
            "a.png",
            "b/.c/d",
            "b/.DS_Store",
            "b/e..f",
            ".g/h",
        ]);
        let visible = |folder: &str| {
            let folder = root.path().join(folder);
            let files = walk_visible(&folder, |path, e| format!("{}: {e}", path.display()));
            let name = |path: PathBuf| path.strip_prefix(&folder).unwrap().display().to_string();
            files.unwrap().into_iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(visible(""), ["a.png", "b/e..f"]);
        assert_eq!(visible(".g"), ["h"]);
        assert_eq!(names(root.path()).len(), 6);
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_named() {
        let root = tree(&[]);
        let absent = root.path().join("absent");
        let error = walk(&absent, |path, e| (path.to_owned(), e.kind())).unwrap_err();
        assert_eq!(error, (absent, io::ErrorKind::NotFound));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once_and_never_in_a_circle() {
        use std::os::unix::fs::symlink;
        let (root, other) = (tree(&["a/1", "b/2"]), tree(&["3"]));
        for link in ["one", "two", "a/up"] {
            symlink(root.path(), root.path().join(link)).unwrap();
        }
        symlink("b", root.path().join("a/again")).unwrap();
        symlink(root.path().join("b"), root.path().join("a/first")).unwrap();
        symlink(other.path(), root.path().join("beside")).unwrap();
        symlink(other.path().join("3"), root.path().join("file")).unwrap();
        symlink("nowhere", root.path().join("broken")).unwrap();
        let expected = ["a/1", "a/again", "b/2", "beside/3", "broken", "file"];
        assert_eq!(names(root.path()), expected);
    }
}
