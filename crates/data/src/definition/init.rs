//! Proposing a definition for an unknown folder.

mod classes;
mod layout;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::text::{PicturesText, SetText, Text};
use super::{Definition, slashed};
use crate::image::PendingImage;
use crate::{DataError, ImageReader, PictureFormat};
use classes::Found;
use layout::{File, Pair};

/// Files of a folder that are looked into to tell what all of it are.
const TRIED: usize = 3;
/// Masks that are read to find classes.
const MASKS: usize = 300;

/// The text of a definition for the pictures and masks below `folder`, whose `root` is written as `root`.
///
/// The layouts of published data sets are known by their folders' names. Elsewhere masks are told from
/// pictures by what they hold, and are joined by their names; splits come from folders or lists called
/// `train`, `val` or the like, else 80 and 20 % are drawn. Classes are the values and colours that occur, under
/// the names of a `labelmap.txt` if there is one, else under names to be replaced.
///
/// # Errors
/// [`DataError::NothingFound`] where there are no pictures with masks, and folders that cannot be read.
pub fn propose(folder: &Path, root: &Path) -> Result<String, DataError> {
    if let Some(name) = known_layout(folder) {
        let text = Definition::preset_text(name, root)?;
        return Ok(format!(
            "# The layout of {name}; classes and splits are its own.\n{text}"
        ));
    }
    let nothing = |expected: &'static str, found: String| DataError::NothingFound {
        path: folder.to_owned(),
        expected,
        found,
    };
    let paths = halfseg_files::walk_visible(folder, |path, e| DataError::io(path, e))?;
    let (mut files, mut lists) = (Vec::new(), Vec::new());
    for path in &paths {
        let Some(below) = path.strip_prefix(folder).ok().and_then(slashed) else {
            continue;
        };
        match path
            .extension()
            .and_then(|ending| ending.to_str())
            .map(str::to_ascii_lowercase)
            .as_deref()
        {
            Some("png" | "jpg" | "jpeg" | "tif" | "tiff") => files.push(File::new(below)),
            Some("txt") => lists.push(below),
            _ => {}
        }
    }
    if files.is_empty() {
        let found = format!("{} files of other kinds", paths.len());
        return Err(nothing("PNG, JPEG or TIFF files", found));
    }
    let (masks, pictures): (Vec<_>, Vec<_>) = {
        let kinds = kinds(folder, &files);
        files.into_iter().partition(|file| kinds[&file.kind()])
    };
    if masks.is_empty() || pictures.is_empty() {
        let found = format!(
            "{} that look like pictures and {} like masks",
            pictures.len(),
            masks.len()
        );
        return Err(nothing("pictures and masks, which hold few values", found));
    }
    let pairs = layout::join(&pictures, &masks);
    if pairs.is_empty() {
        let found = format!("{} and {}", pictures[0].path, masks[0].path);
        return Err(nothing("masks that are named after pictures", found));
    }
    let found = Found::read(folder, &spread(&pairs, MASKS))?;
    let sets = layout::sets(folder, &pairs, &masks, &lists);
    Ok(written(
        folder,
        root,
        (found, shape(folder, &pictures)),
        sets,
        pairs.len(),
        pictures.len(),
    ))
}

/// The published data set whose folders these are.
fn known_layout(folder: &Path) -> Option<&'static str> {
    let there = |paths: &[&str]| paths.iter().all(|path| folder.join(path).exists());
    let labelled = folder.join("labelmap.txt").exists();
    let named = folder
        .file_name()
        .is_some_and(|name| name.to_string_lossy().to_lowercase().contains("ade"));
    match () {
        () if there(&["leftImg8bit/train", "gtFine/train"]) => Some("cityscapes"),
        () if there(&[
            "JPEGImages",
            "SegmentationClass",
            "ImageSets/Segmentation/train.txt",
        ]) && !labelled =>
        {
            Some("voc")
        }
        () if there(&["images/training", "annotations/training"]) && named => Some("ade20k"),
        () if there(&["training/image_2", "training/semantic"]) => Some("kitti"),
        () if there(&["images/10k/train", "labels/sem_seg/masks/train"]) => Some("bdd100k"),
        () if there(&["training/images", "training/v1.2/labels"]) => Some("mapillary"),
        () if there(&["train", "trainannot", "val", "valannot"]) => Some("camvid"),
        () => None,
    }
}

/// Whether the files of each kind are masks, by a few of them.
fn kinds(folder: &Path, files: &[File]) -> BTreeMap<String, bool> {
    let mut by_kind: BTreeMap<String, Vec<&File>> = BTreeMap::new();
    for file in files {
        by_kind.entry(file.kind()).or_default().push(file);
    }
    let is_mask = |files: &[&File]| {
        let tried = spread(files, TRIED);
        let masks = tried
            .iter()
            .filter(|file| classes::looks_like_a_mask(&folder.join(&file.path)));
        2 * masks.count() > tried.len()
    };
    by_kind
        .into_iter()
        .map(|(kind, files)| (kind, is_mask(&files)))
        .collect()
}

/// At most `count` of `all`, spread over them.
fn spread<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    let count = count.min(all.len());
    (0..count)
        .map(|i| all[i * all.len() / count].clone())
        .collect()
}

fn written(
    folder: &Path,
    root: &Path,
    (found, shape): (Found, Option<PicturesText>),
    sets: Vec<SetText>,
    pairs: usize,
    pictures: usize,
) -> String {
    let text = Text {
        root: Some(root.display().to_string()),
        pictures: shape,
        masks: Some(found.masks),
        classes: Some(found.classes),
        sets: Some(sets),
        ..Text::default()
    };
    let mut out = format!(
        "# Proposed by `halfseg data init` for {}: {pairs} pictures with masks",
        folder.display().to_string().replace(char::is_control, "?")
    );
    if pictures > pairs {
        out += &format!(" ({} more without)", pictures - pairs);
    }
    out += ".\n# Give the classes their names, then look at it with `halfseg doctor`.\n";
    for note in found.notes {
        out += &format!("# {note}\n");
    }
    out + "\n" + &toml::to_string(&text).expect("texts and numbers are TOML")
}

/// Channels and bits of the pictures, where reading them as RGB of 8 bits would lose some.
fn shape(folder: &Path, pictures: &[File]) -> Option<PicturesText> {
    let deep = PictureFormat::new(1, 16, vec![0.0], vec![1.0]).ok()?;
    let stored = |file: &File| {
        let path = folder.join(&file.path);
        let picture = PendingImage::open_as(&path, ImageReader::default(), &deep).ok()?;
        let (channels, bits) = picture.channels();
        Some((channels - usize::from(picture.is_transparent()), bits))
    };
    let found: Vec<_> = spread(pictures, TRIED).iter().filter_map(stored).collect();
    let (channels, bits) = *found.first()?;
    let same = found.iter().all(|one| *one == (channels, bits));
    (same && (![1, 3].contains(&channels) || bits == 16)).then_some(PicturesText {
        channels: Some(channels),
        bits: Some(bits),
        ..PicturesText::default()
    })
}

/// A pair's mask in the file system.
fn mask_path(folder: &Path, pair: &Pair) -> PathBuf {
    folder.join(&pair.mask)
}

/// Width and height of what may be a picture.
fn is_picture(path: &Path) -> bool {
    PendingImage::open(path, ImageReader::default()).is_ok()
}
