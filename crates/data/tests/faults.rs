//! Wrong folders: each kind of fault has its own finding, and training refuses it in the same words.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use halfseg_data::{
    Crop, DataError, DefinedData, Definition, Finding, Kind, Report, Severity, SurveyOptions,
};
use png::{BitDepth, ColorType};

/// Pictures and masks of a small data set: `train` and `val` below `images` and `masks`.
struct Folder {
    dir: tempfile::TempDir,
    definition: String,
}

const WIDTH: u32 = 16;
const HEIGHT: u32 = 12;
const TRAIN: usize = 12;
const VAL: usize = 10;

fn save(path: &Path, size: (u32, u32), color: ColorType, depth: BitDepth, data: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), size.0, size.1);
    encoder.set_color(color);
    encoder.set_depth(depth);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(data).unwrap();
}

/// A picture unlike all others.
fn pixels(seed: usize, len: usize) -> Vec<u8> {
    let value = |i: usize| (i * 31 + seed * 97 + i * i * (seed + 3)) as u8;
    (0..len).map(value).collect()
}

/// Halves of 0 and `one`.
fn halves(one: u8) -> Vec<u8> {
    let value = |i: u32| if i % WIDTH < WIDTH / 2 { 0 } else { one };
    (0..WIDTH * HEIGHT).map(value).collect()
}

impl Folder {
    fn sound() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Self {
            dir,
            definition: r#"
                classes = ["wall", "crack"]
                [[sets]]
                split = "train"
                images = "images/train/*.png"
                masks = "masks/train/{stem}.png"
                [[sets]]
                split = "val"
                images = "images/val/*.png"
                masks = "masks/val/{stem}.png"
            "#
            .to_owned(),
        };
        for (split, count, first) in [("train", TRAIN, 0), ("val", VAL, 100)] {
            for i in 0..count {
                folder.picture(&format!("images/{split}/{i}.png"), first + i);
                folder.grey(&format!("masks/{split}/{i}.png"), &halves(1));
            }
        }
        folder
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn picture(&self, path: &str, seed: usize) {
        let data = pixels(seed, (WIDTH * HEIGHT * 3) as usize);
        save(
            &self.at(path),
            (WIDTH, HEIGHT),
            ColorType::Rgb,
            BitDepth::Eight,
            &data,
        );
    }

    fn grey(&self, path: &str, data: &[u8]) {
        save(
            &self.at(path),
            (WIDTH, HEIGHT),
            ColorType::Grayscale,
            BitDepth::Eight,
            data,
        );
    }

    /// Gives all masks of `split` the same values.
    fn masks(&self, split: &str, data: &[u8]) {
        let count = if split == "train" { TRAIN } else { VAL };
        (0..count).for_each(|i| self.grey(&format!("masks/{split}/{i}.png"), data));
    }

    fn rgb_mask(&self, path: &str, data: &[u8]) {
        save(
            &self.at(path),
            (WIDTH, HEIGHT),
            ColorType::Rgb,
            BitDepth::Eight,
            data,
        );
    }

    fn copy(&self, from: &str, to: &str) {
        fs::copy(self.at(from), self.at(to)).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.at(path)).unwrap();
    }

    fn replace(&mut self, what: &str, with: &str) {
        assert!(self.definition.contains(what), "{what}");
        self.definition = self.definition.replace(what, with);
    }

    fn defined(&self) -> Result<Arc<Definition>, DataError> {
        Definition::parse(&self.definition, "own.toml", self.dir.path()).map(Arc::new)
    }

    fn survey(&self) -> Report {
        let options = SurveyOptions {
            train: Some("train"),
            crop: Some(Crop {
                height: 12,
                width: 16,
            }),
            ..SurveyOptions::default()
        };
        self.defined().unwrap().survey(&["train", "val"], &options)
    }

    /// What training says.
    fn open(&self) -> Result<Vec<DefinedData>, DataError> {
        DefinedData::open(&self.defined()?, &["train", "val"], Some("train"))
    }
}

fn short(report: &Report) -> Vec<(&str, usize)> {
    report
        .findings
        .iter()
        .map(|f| (f.kind.name(), f.count))
        .collect()
}

#[test]
fn nothing_is_found_in_a_sound_folder() {
    let folder = Folder::sound();
    let report = folder.survey();
    assert_eq!(short(&report), []);
    assert!(!report.has_errors());
    let half = u64::from(WIDTH * HEIGHT / 2);
    assert_eq!(report.splits[0].pixels, [half * TRAIN as u64; 2]);
    assert_eq!(report.splits[1].pictures_with, [VAL as u64; 2]);
    assert_eq!(report.weights, [Some(1.0); 2]);
    let opened = folder.open().unwrap();
    assert_eq!(opened.len(), 2);
}

/// A name, what is done to a sound folder, and the finding: its kind, how often, and the end of its example.
type Fault = (&'static str, fn(&mut Folder), Kind, usize, &'static str);

/// 52x36 pixels.
const JPEG: &[u8] = include_bytes!("pictures/grey.jpg");
const LIST: &str = "list = \"val.txt\"\nimages = \"images/val/{line}.png\"";

const FAULTS: &[Fault] = &[
    (
        "no folder",
        |f| f.replace("images/val/", "pictures/val/"),
        Kind::FolderMissing,
        1,
        "pictures/val",
    ),
    (
        "another ending",
        |f| f.replace("images/val/*.png", "images/val/*.PNG"),
        Kind::SplitEmpty,
        1,
        "val",
    ),
    (
        "another split",
        |f| f.replace("split = \"val\"", "split = \"test\""),
        Kind::SplitMissing,
        1,
        "val",
    ),
    (
        "no list",
        |f| f.replace("images = \"images/val/*.png\"", LIST),
        Kind::ListUnreadable,
        1,
        "val.txt",
    ),
    (
        "a list with a name too many",
        |f| {
            f.replace("images = \"images/val/*.png\"", LIST);
            fs::write(f.at("val.txt"), "0\n1\n2\n3\nother\n4\n5\n6\n\n7\n8\n9").unwrap();
        },
        Kind::PictureMissing,
        1,
        "images/val/other.png",
    ),
    (
        "masks that are missing",
        |f| (2..5).for_each(|i| f.remove(&format!("masks/train/{i}.png"))),
        Kind::MaskMissing,
        3,
        "images/train/2.png",
    ),
    (
        "a missing picture",
        |f| f.remove("images/val/3.png"),
        Kind::MaskUnused,
        1,
        "masks/val/3.png",
    ),
    (
        "a set without masks",
        |f| f.replace("masks = \"masks/train/{stem}.png\"", ""),
        Kind::NoMasks,
        1,
        "images/train/0.png",
    ),
    (
        "two pictures with one mask",
        |f| {
            f.picture("images/train/1.jpg", 77);
            f.replace("images/train/*.png", "images/train/*.{png,jpg}");
        },
        Kind::MaskShared,
        1,
        "masks/train/1.png",
    ),
    (
        "masks that are the pictures",
        |f| f.replace("masks/val/{stem}.png", "images/val/{name}"),
        Kind::MaskIsPicture,
        VAL,
        "images/val/0.png",
    ),
    (
        "a picture in both splits",
        |f| {
            f.definition += "[[sets]]\nsplit = \"val\"\nimages = \"images/train/1.png\"\nmasks = \"masks/train/{stem}.png\"";
        },
        Kind::PictureInTwoSplits,
        1,
        "images/train/1.png",
    ),
    (
        "a picture in two sets",
        |f| {
            f.definition += "[[sets]]\nsplit = \"val\"\nimages = \"images/val/1.png\"\nmasks = \"masks/val/{stem}.png\"";
        },
        Kind::PictureTwice,
        1,
        "images/val/1.png",
    ),
    (
        "a picture of zero bytes",
        |f| fs::write(f.at("images/train/7.png"), "").unwrap(),
        Kind::PictureUnreadable,
        1,
        "images/train/7.png",
    ),
    (
        "a picture that is cut off",
        |f| {
            let bytes = fs::read(f.at("images/val/7.png")).unwrap();
            fs::write(f.at("images/val/7.png"), &bytes[..bytes.len() / 2]).unwrap();
        },
        Kind::PictureUnreadable,
        1,
        "images/val/7.png",
    ),
    (
        "a mask that is text",
        |f| fs::write(f.at("masks/val/7.png"), "version https://git-lfs").unwrap(),
        Kind::MaskUnreadable,
        1,
        "masks/val/7.png",
    ),
    (
        "masks of half the size",
        |f| {
            let (size, data) = (
                (WIDTH / 2, HEIGHT / 2),
                vec![1; (WIDTH * HEIGHT / 4) as usize],
            );
            save(
                &f.at("masks/train/3.png"),
                size,
                ColorType::Grayscale,
                BitDepth::Eight,
                &data,
            );
        },
        Kind::SizesDiffer,
        1,
        "masks/train/3.png",
    ),
    (
        "a picture on its side",
        |f| {
            let data = pixels(5, (WIDTH * HEIGHT * 3) as usize);
            save(
                &f.at("images/train/3.png"),
                (HEIGHT, WIDTH),
                ColorType::Rgb,
                BitDepth::Eight,
                &data,
            );
        },
        Kind::SizesDiffer,
        1,
        "masks/train/3.png",
    ),
    (
        "colours where values are expected",
        |f| {
            f.rgb_mask(
                "masks/train/2.png",
                &pixels(1, (WIDTH * HEIGHT * 3) as usize),
            )
        },
        Kind::MaskFormat,
        1,
        "masks/train/2.png",
    ),
    (
        "colours of 16 bits",
        |f| {
            let data = pixels(1, (WIDTH * HEIGHT * 6) as usize);
            save(
                &f.at("masks/val/2.png"),
                (WIDTH, HEIGHT),
                ColorType::Rgb,
                BitDepth::Sixteen,
                &data,
            );
        },
        Kind::MaskFormat,
        1,
        "masks/val/2.png",
    ),
    (
        "a JPEG as a mask",
        |f| {
            fs::write(f.at("masks/train/4.png"), JPEG).unwrap();
            fs::write(f.at("images/train/4.png"), JPEG).unwrap();
        },
        Kind::MaskJpeg,
        1,
        "masks/train/4.png",
    ),
    (
        "a value that no class has",
        |f| {
            let mut data = halves(1);
            data[5] = 9;
            f.grey("masks/train/8.png", &data);
            f.grey("masks/train/9.png", &data);
        },
        Kind::MaskValues,
        2,
        "masks/train/8.png",
    ),
    (
        "a colour that no class has",
        |f| {
            f.replace("classes = [\"wall\", \"crack\"]", "masks.encoding = \"rgb\"\nclasses = [{ name = \"a\", color = [0, 0, 0] }, { name = \"b\", color = [1, 1, 1] }]");
            f.rgb_mask(
                "masks/val/1.png",
                &[7].repeat((WIDTH * HEIGHT * 3) as usize),
            );
        },
        Kind::MaskColors,
        1,
        "masks/val/1.png",
    ),
    (
        "masks of 0 and 255 whose 255 is ignored",
        |f| {
            ["train", "val"]
                .iter()
                .for_each(|split| f.masks(split, &halves(255)))
        },
        Kind::Mask0And255,
        TRAIN + VAL,
        "masks/train/0.png",
    ),
    (
        "masks of 0 and 255 whose 255 is unknown",
        |f| {
            f.replace("classes =", "masks.ignore = []\nclasses =");
            f.masks("val", &halves(255));
        },
        Kind::Mask0And255,
        VAL,
        "masks/val/0.png",
    ),
    (
        "classes that are counted from 1",
        |f| {
            let data: Vec<_> = halves(1).iter().map(|v| v + 1).collect();
            f.masks("train", &data);
        },
        Kind::MaskOneBased,
        TRAIN,
        "masks/train/0.png",
    ),
    (
        "smoothed edges",
        |f| {
            let mut data = halves(1);
            (0..10).for_each(|i| data[16 * i + 8] = 100 + i as u8);
            f.grey("masks/train/0.png", &data);
        },
        Kind::MaskSmoothed,
        1,
        "masks/train/0.png",
    ),
    (
        "all is ignored",
        |f| f.masks("train", &[255; 192]),
        Kind::AllIgnored,
        1,
        "train",
    ),
    (
        "nothing but background",
        |f| f.masks("train", &[0; 192]),
        Kind::OneClass,
        1,
        "wall",
    ),
    (
        "a class that is scored and never learnt",
        |f| {
            f.replace("\"crack\"]", "\"crack\", \"hole\"]");
            f.grey("masks/val/0.png", &halves(2));
        },
        Kind::ClassNotTrained,
        1,
        "hole",
    ),
    (
        "a copy in the other split",
        |f| f.copy("images/train/5.png", "images/val/5.png"),
        Kind::DuplicatesAcrossSplits,
        1,
        "images/val/5.png",
    ),
    (
        "copies with other masks",
        |f| {
            f.copy("images/train/5.png", "images/train/6.png");
            f.grey("masks/train/6.png", &[1; 192]);
        },
        Kind::MasksContradict,
        1,
        "images/train/6.png",
    ),
    (
        "copies",
        |f| f.copy("images/train/5.png", "images/train/6.png"),
        Kind::Duplicates,
        1,
        "images/train/6.png",
    ),
    (
        "an absent class",
        |f| f.replace("\"crack\"]", "\"crack\", \"hole\"]"),
        Kind::ClassAbsent,
        1,
        "hole",
    ),
    (
        "a class that is not scored",
        |f| {
            f.replace("\"crack\"]", "\"crack\", \"hole\"]");
            f.grey("masks/train/0.png", &halves(2));
        },
        Kind::ClassNotEvaluated,
        1,
        "hole",
    ),
    (
        "one class nearly everywhere",
        |f| {
            let mut data = vec![0; 192];
            data[..1].fill(1);
            f.masks("train", &data);
        },
        Kind::ClassDominates,
        1,
        "wall",
    ),
    (
        "much that is ignored",
        |f| {
            let mut data = halves(1);
            data[..150].fill(255);
            f.masks("val", &data);
        },
        Kind::MostlyIgnored,
        1,
        "val",
    ),
    (
        "a mask that is ignored",
        |f| f.grey("masks/train/1.png", &[255; 192]),
        Kind::MaskIgnored,
        1,
        "masks/train/1.png",
    ),
    (
        "a picture of one colour",
        |f| {
            let data = [9].repeat((WIDTH * HEIGHT * 3) as usize);
            save(
                &f.at("images/train/1.png"),
                (WIDTH, HEIGHT),
                ColorType::Rgb,
                BitDepth::Eight,
                &data,
            );
        },
        Kind::PictureBlank,
        1,
        "images/train/1.png",
    ),
    (
        "few pictures to score",
        |f| {
            for i in 2..VAL {
                f.remove(&format!("images/val/{i}.png"));
                f.remove(&format!("masks/val/{i}.png"));
            }
        },
        Kind::SplitSmall,
        1,
        "val",
    ),
    (
        "16 bits",
        |f| {
            let data = pixels(1, (WIDTH * HEIGHT * 6) as usize);
            save(
                &f.at("images/val/2.png"),
                (WIDTH, HEIGHT),
                ColorType::Rgb,
                BitDepth::Sixteen,
                &data,
            );
        },
        Kind::PictureDepth,
        1,
        "images/val/2.png",
    ),
    (
        "transparency",
        |f| {
            let data = pixels(1, (WIDTH * HEIGHT * 4) as usize);
            save(
                &f.at("images/val/2.png"),
                (WIDTH, HEIGHT),
                ColorType::Rgba,
                BitDepth::Eight,
                &data,
            );
        },
        Kind::PictureTransparent,
        1,
        "images/val/2.png",
    ),
    (
        "a picture smaller than the crop",
        |f| {
            let (size, data) = ((8, 8), pixels(1, 8 * 8 * 3));
            save(
                &f.at("images/val/2.png"),
                size,
                ColorType::Rgb,
                BitDepth::Eight,
                &data,
            );
            let mask: Vec<_> = (0..64).map(|i| i / 32).collect();
            save(
                &f.at("masks/val/2.png"),
                size,
                ColorType::Grayscale,
                BitDepth::Eight,
                &mask,
            );
        },
        Kind::PictureSmall,
        1,
        "images/val/2.png",
    ),
];

#[test]
fn each_fault_has_its_finding_and_stops_training_in_the_same_words() {
    const { assert!(FAULTS.len() >= 40) };
    let mut wrong = Vec::new();
    for (name, damage, kind, count, example) in FAULTS {
        let checked = std::panic::catch_unwind(|| {
            let mut folder = Folder::sound();
            damage(&mut folder);
            check(name, &folder, *kind, *count, example);
        });
        // All that are wrong are told, not the first alone.
        wrong.extend(checked.err().map(|_| *name));
    }
    assert_eq!(wrong, [""; 0]);
}

fn check(name: &str, folder: &Folder, kind: Kind, count: usize, example: &str) {
    let report = folder.survey();
    let found: Vec<&Finding> = report.findings.iter().filter(|f| f.kind == kind).collect();
    let [finding] = found[..] else {
        panic!("{name}: expected {kind}, found {:?}", report.findings)
    };
    let context = || format!("{name}: {finding:?}");
    assert_eq!(finding.count, count, "{}", context());
    assert!(finding.example.ends_with(example), "{}", context());
    assert_eq!(finding.severity, kind.severity(), "{}", context());
    assert!(
        ["expected ", "cannot be decoded as "]
            .iter()
            .any(|words| finding.message.contains(words))
            || finding.severity != Severity::Error,
        "{}",
        context()
    );
    assert_eq!(
        report.has_errors(),
        finding.severity == Severity::Error,
        "{name}: {:?}",
        report.findings
    );
    match folder.open() {
        Err(error) => {
            let first = report.findings[0].to_string();
            assert_eq!(error.to_string(), first, "{name}");
            assert_eq!(finding.severity, Severity::Error, "{}", context());
        }
        Ok(opened) => {
            assert_ne!(finding.severity, Severity::Error, "{}", context());
            let notes: Vec<_> = opened
                .iter()
                .flat_map(halfseg_data::Dataset::notes)
                .collect();
            let told = notes.contains(&finding.to_string());
            assert_eq!(
                told,
                finding.severity == Severity::Warning,
                "{name}: {notes:?}"
            );
        }
    }
}

#[cfg(unix)]
#[test]
fn names_that_are_not_unicode_are_told() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::sound();
    let name = std::ffi::OsStr::from_bytes(b"images/train/\xff.png");
    if fs::copy(
        folder.at("images/train/0.png"),
        folder.dir.path().join(name),
    )
    .is_err()
    {
        // Some file systems have no such names.
        return;
    }
    check(
        "a strange name",
        &folder,
        Kind::NameNotUnicode,
        1,
        "\u{fffd}.png",
    );
}

#[test]
fn what_a_definition_accepts_is_a_warning() {
    let mut folder = Folder::sound();
    folder.remove("images/val/3.png");
    assert!(folder.survey().has_errors() && folder.open().is_err());
    folder.definition = format!("accept = [\"mask-unused\"]\n{}", folder.definition);
    let report = folder.survey();
    assert_eq!(short(&report), [("mask-unused", 1), ("split-small", 1)]);
    assert_eq!(report.findings[0].severity, Severity::Warning);
    assert!(folder.open().is_ok());
}

/// Training looks at some of a large data set before it begins, and meets the rest when it is loaded.
#[test]
fn a_fault_that_is_met_later_has_the_same_words() {
    use halfseg_data::Dataset;
    let folder = Folder::sound();
    let opened = folder.open().unwrap();
    let mut data = halves(1);
    data[0] = 77;
    folder.grey("masks/train/4.png", &data);
    let finding = folder.survey().findings.remove(0);
    let place = (0..opened[0].len())
        .find(|i| opened[0].source(*i).ends_with("/4.png"))
        .unwrap();
    let error = opened[0].get(place).unwrap_err();
    match &error {
        DataError::Finding(met) => assert_eq!(
            (met.kind, &met.message),
            (Kind::MaskValues, &finding.message)
        ),
        other => panic!("{other}"),
    }
}
