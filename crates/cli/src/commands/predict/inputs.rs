//! Which pictures are meant, and where what is made of them goes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use halfseg_data::{is_own_png, is_picture, short_name};
use halfseg_files::walk_visible;
use serde::{Deserialize, Serialize};

/// What names of written pictures end with, after the input's stem.
pub const SUFFIXES: [&str; 3] = ["_color.png", "_overlay.png", "_trainIds.png"];
/// What the name of a file with logits ends with.
pub const LOGITS: &str = "_logits.safetensors";

/// The longest stem that leaves room for what is appended to it, in the 255 bytes that file systems
/// give a name.
const LONGEST_STEM: usize = 255 - LOGITS.len();

/// A picture to be segmented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The picture.
    pub path: PathBuf,
    /// The folder below `--out` for what is made of it.
    pub folder: PathBuf,
    /// What the names of that begin with.
    pub stem: String,
    /// The picture's file, if it came on stdin.
    #[serde(skip)]
    pub file: Option<Arc<[u8]>>,
}

/// What a picture on stdin is called, in messages and in the names of its results.
const STDIN: &str = "stdin";

impl Input {
    /// The picture in messages.
    pub fn name(&self) -> String {
        match self.file {
            Some(_) => STDIN.to_owned(),
            None => self.path.display().to_string(),
        }
    }
}

/// What the arguments mean.
#[derive(Debug, Default)]
pub struct Inputs {
    /// The pictures that can be tried.
    pub pictures: Vec<Input>,
    /// Files that cannot be, each with the reason.
    pub bad: Vec<(PathBuf, String)>,
    /// How many pictures were left out because an earlier run of this program wrote them.
    pub own: usize,
    mirror: bool,
}

impl Inputs {
    /// Takes files as they are, `-` as a picture or a list of paths on stdin, and of folders all PNG, JPEG and TIFF files
    /// below them but hidden ones and those that this program wrote. With `mirror`, what is made of a folder's files goes
    /// into the same subfolders below `out`, else all into `out` itself.
    pub fn find(arguments: &[PathBuf], out: &Path, mirror: bool) -> Result<Self> {
        let mut inputs = Self {
            mirror,
            ..Self::default()
        };
        for argument in arguments {
            if argument == Path::new("-") {
                match Stdin::read()? {
                    Stdin::Picture(input) => inputs.pictures.push(input),
                    Stdin::Paths(paths) => {
                        for path in paths {
                            inputs.add(&path, out)?;
                        }
                    }
                }
            } else {
                inputs.add(argument, out)?;
            }
        }
        inputs.pictures = distinct(inputs.pictures)?;
        check_spared(&inputs.pictures, out)?;
        if inputs.pictures.is_empty() && inputs.bad.is_empty() {
            bail!("expected names of pictures on stdin, or a picture, found nothing");
        }
        Ok(inputs)
    }

    fn add(&mut self, argument: &Path, out: &Path) -> Result<()> {
        if !argument.is_dir() {
            if !argument.exists() {
                bail!(
                    "{}: expected an image or a folder, found nothing",
                    argument.display()
                );
            }
            self.take(argument.to_owned(), PathBuf::new());
            return Ok(());
        }
        let cannot = |folder: &Path, error: std::io::Error| {
            anyhow::Error::new(error).context(format!("cannot read {}", folder.display()))
        };
        let mut files = walk_visible(argument, cannot)?;
        files.retain(|path| is_picture_name(path));
        let written = written(&files, out);
        let (before, mut own) = (self.pictures.len() + self.bad.len(), 0);
        for path in files {
            if written.contains(&path) {
                own += 1;
                continue;
            }
            let below = path.strip_prefix(argument).ok().and_then(Path::parent);
            let folder = below.filter(|_| self.mirror).unwrap_or(Path::new(""));
            let folder = folder.to_owned();
            self.take(path, folder);
        }
        if before == self.pictures.len() + self.bad.len() {
            let but = match own {
                0 => String::new(),
                own => format!(" but {own} that this program wrote"),
            };
            bail!(
                "{}: expected PNG, JPEG or TIFF images in it, found none{but} (names that begin with a dot do not \
                 count)",
                argument.display()
            );
        }
        self.own += own;
        Ok(())
    }

    fn take(&mut self, path: PathBuf, folder: PathBuf) {
        // A pipe would be waited for, for ever perhaps.
        if !path.is_file() {
            let what = match path.exists() {
                true => "no regular file",
                false => "a link to nothing",
            };
            self.bad
                .push((path, format!("expected an image, found {what}")));
            return;
        }
        let stem = path.file_stem().unwrap_or_default();
        match stem.to_str() {
            Some(stem) => {
                let stem = short(stem);
                self.pictures.push(Input {
                    path,
                    folder,
                    stem,
                    file: None,
                });
            }
            None => {
                let why = "expected a name of Unicode characters: rename it".to_owned();
                self.bad.push((path, why));
            }
        }
    }
}

/// What `-` stands for.
enum Stdin {
    Picture(Input),
    Paths(Vec<PathBuf>),
}

impl Stdin {
    /// A picture if it begins as one: no name does, but for one of bytes that are no characters or of `II*` or `MM`
    /// in a list with zero bytes.
    fn read() -> Result<Self> {
        let mut bytes = Vec::new();
        let mut stdin = std::io::stdin().lock();
        stdin.read_to_end(&mut bytes).context("cannot read stdin")?;
        if !is_picture(&bytes) {
            return listed(&bytes).map(Self::Paths);
        }
        Ok(Self::Picture(Input {
            path: "-".into(),
            folder: PathBuf::new(),
            stem: STDIN.to_owned(),
            file: Some(bytes.into()),
        }))
    }
}

/// Paths one a line, or, as `find -print0` writes them, each ended by a zero byte.
fn listed(text: &[u8]) -> Result<Vec<PathBuf>> {
    let end = if text.contains(&0) { 0 } else { b'\n' };
    let names = text.split(|byte| *byte == end);
    let names = names.map(|name| match end {
        0 => name,
        _ => name.strip_suffix(b"\r").unwrap_or(name),
    });
    names.filter(|name| !name.is_empty()).map(path).collect()
}

#[cfg(unix)]
fn path(bytes: &[u8]) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    Ok(OsStr::from_bytes(bytes).into())
}

#[cfg(not(unix))]
fn path(bytes: &[u8]) -> Result<PathBuf> {
    let text = std::str::from_utf8(bytes).context("stdin: expected names of Unicode characters")?;
    Ok(text.into())
}

fn is_picture_name(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    ["png", "jpg", "jpeg", "tif", "tiff"].contains(&&*extension.to_ascii_lowercase())
}

/// The files among `files` that this program wrote: where all three of a picture are there, and in `out`,
/// where an interrupted run leaves fewer, those that are named after another of the files and say so.
fn written(files: &[PathBuf], out: &Path) -> BTreeSet<PathBuf> {
    let out = fs::canonicalize(out).ok();
    let is_in_out = |path: &Path| {
        let folder = path
            .parent()
            .and_then(|folder| fs::canonicalize(folder).ok());
        let in_out = folder
            .zip(out.as_ref())
            .map(|(folder, out)| folder.starts_with(out));
        in_out.unwrap_or(false)
    };
    let names = files
        .iter()
        .flat_map(|path| [path.file_stem(), path.file_name()]);
    let names = names.filter_map(|name| Some(short(name?.to_str()?)));
    let names: BTreeSet<String> = names.collect();
    // By folder and stem, which of the three there are.
    let mut found: BTreeMap<PathBuf, Vec<&PathBuf>> = BTreeMap::new();
    for path in files {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if let Some(stem) = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)) {
            found
                .entry(path.with_file_name(stem))
                .or_default()
                .push(path);
        }
    }
    let ours = found.into_iter().filter(|(stem, paths)| {
        let stem = stem.file_name().and_then(OsStr::to_str).unwrap_or_default();
        // Names of folders may come first.
        let mut ends = stem.match_indices('_').map(|(at, _)| &stem[at + 1..]);
        let is_named_after = names.contains(stem) || ends.any(|end| names.contains(end));
        let is_own = |path: &&PathBuf| is_own_png(path).unwrap_or(false);
        paths.len() == SUFFIXES.len()
            || (is_named_after && is_in_out(paths[0]) && paths.iter().all(is_own))
    });
    ours.flat_map(|(_, paths)| paths).cloned().collect()
}

/// `stem`, shortened where names with it would be too long.
fn short(stem: &str) -> String {
    short_name(stem, LONGEST_STEM)
}

/// Gives pictures that would be written under one name names of their own: with the folders that tell
/// them apart, and where that does not help, with their extension. A picture that is meant twice, as
/// `x.png` and `./x.png`, stays once.
fn distinct(mut pictures: Vec<Input>) -> Result<Vec<Input>> {
    let mut seen = BTreeSet::new();
    pictures.retain(|input| {
        let path = std::path::absolute(&input.path).unwrap_or_else(|_| input.path.clone());
        // A file may be called `-`.
        seen.insert((path, input.folder.clone(), input.file.is_some()))
    });
    for shared in groups(&pictures) {
        let paths = shared
            .iter()
            .map(|place| std::path::absolute(&pictures[*place].path));
        let paths = paths
            .collect::<std::io::Result<Vec<_>>>()
            .context("no working folder")?;
        let common = common_folder(&paths);
        for (place, path) in shared.iter().zip(&paths) {
            let below = path.strip_prefix(&common).unwrap_or(path);
            let mut name: String = below
                .parent()
                .into_iter()
                .flat_map(Path::components)
                .filter(|part| matches!(part, Component::Normal(_)))
                .map(|part| format!("{}_", part.as_os_str().display()))
                .collect();
            name += &pictures[*place].stem;
            pictures[*place].stem = short(&name);
        }
    }
    for shared in groups(&pictures) {
        for place in shared {
            let Input { path, stem, .. } = &mut pictures[place];
            if let Some(extension) = path.extension() {
                *stem = short(&format!("{stem}.{}", extension.display()));
            }
        }
    }
    if let Some(shared) = groups(&pictures).first() {
        let [one, other] = [shared[0], shared[1]].map(|place| &pictures[place]);
        bail!(
            "{} and {} would both be written as {}{}; predict them separately",
            one.name(),
            other.name(),
            one.folder.join(&one.stem).display(),
            SUFFIXES[0]
        );
    }
    Ok(pictures)
}

/// Refuses pictures that would be replaced by what is made of another one.
fn check_spared(pictures: &[Input], out: &Path) -> Result<()> {
    let place = |path: &Path| path.canonicalize().ok();
    let given: BTreeSet<_> = pictures
        .iter()
        .filter(|input| input.file.is_none())
        .flat_map(|input| place(&input.path))
        .collect();
    for input in pictures {
        for suffix in SUFFIXES {
            let written = out
                .join(&input.folder)
                .join(format!("{}{suffix}", input.stem));
            if place(&written).is_some_and(|path| given.contains(&path)) {
                bail!(
                    "{}: what is made of {} would replace it; choose another folder for --out",
                    written.display(),
                    input.name()
                );
            }
        }
    }
    Ok(())
}

/// The places of pictures that would be written under one name.
fn groups(pictures: &[Input]) -> Vec<Vec<usize>> {
    let mut by_name: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (place, input) in pictures.iter().enumerate() {
        by_name
            .entry((&input.folder, &input.stem))
            .or_default()
            .push(place);
    }
    by_name
        .into_values()
        .filter(|places| places.len() > 1)
        .collect()
}

/// The deepest folder that all of `paths` are in.
fn common_folder(paths: &[PathBuf]) -> PathBuf {
    let folders = |path: &PathBuf| path.parent().map(Path::to_owned).unwrap_or_default();
    let mut common = paths.first().map(folders).unwrap_or_default();
    while !paths.iter().all(|path| path.starts_with(&common)) && common.pop() {}
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(path: &str, folder: &str) -> Input {
        let path = PathBuf::from(path);
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let folder = folder.into();
        Input {
            path,
            folder,
            stem,
            file: None,
        }
    }

    fn names(pictures: Vec<Input>) -> Vec<String> {
        let name = |input: &Input| input.folder.join(&input.stem).display().to_string();
        distinct(pictures).unwrap().iter().map(name).collect()
    }

    #[test]
    fn names_are_told_apart_by_folder_and_then_by_extension() {
        let named = |paths: &[(&str, &str)], expected: &[&str]| {
            let pictures = paths.iter().map(|(path, folder)| input(path, folder));
            assert_eq!(names(pictures.collect()), expected);
        };
        named(&[("a/x.png", ""), ("b/y.png", "")], &["x", "y"]);
        named(&[("a/x.png", ""), ("b/x.png", "")], &["a_x", "b_x"]);
        named(&[("x.png", ""), ("b/c/x.png", "")], &["x", "b_c_x"]);
        named(&[("a/x.png", "a"), ("b/x.png", "b")], &["a/x", "b/x"]);
        named(
            &[("a/x.png", "a"), ("a/x.jpg", "a")],
            &["a/x.png", "a/x.jpg"],
        );
        named(
            &[("a/x.png", ""), ("a/x.jpg", ""), ("b/x.png", "")],
            &["a_x.png", "a_x.jpg", "b_x"],
        );
        named(&[("a/x.png", ""), ("a/x.png", "")], &["x"]);
        named(&[("a/x.png", ""), ("./a/x.png", "")], &["x"]);
    }

    #[test]
    fn long_stems_leave_room_for_what_is_appended() {
        let (one, other) = ("a".repeat(240) + "1", "a".repeat(240) + "2");
        assert_ne!(short(&one), short(&other));
        for stem in [one, "ä".repeat(130), "x".repeat(251)] {
            assert!(short(&stem).len() + LOGITS.len() <= 255);
        }
        assert_eq!(short("town_000000"), "town_000000");
    }
}
