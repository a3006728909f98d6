//! What the tests have in common: running the program, and inputs for it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use halfseg_data::{SyntheticStreets, write_cityscapes_layout};
use serde_json::Value;
use tempfile::TempDir;

/// Widths and sizes that make a run take a second.
pub const TINY: [&str; 26] = [
    "--set",
    "model.stem_channels=8",
    "--set",
    "model.base_channels=4",
    "--set",
    "model.head_channels=8",
    "--set",
    "model.aux_channels=8",
    "--set",
    "model.c1_channels=4",
    "--set",
    "data.synthetic_train=4",
    "--set",
    "data.synthetic_val=2",
    "--set",
    "train.pictures=1",
    "--scale",
    "64x32",
    "--crop",
    "32x32",
    "--batch",
    "2",
    "--iterations",
    "2",
    "--backbone",
    "resnet18",
];

/// `args` with other values behind some of their flags, each of which must be there.
pub fn changed<'a>(args: &[&'a str], values: &[(&str, &'a str)]) -> Vec<&'a str> {
    let mut args = args.to_vec();
    for (flag, value) in values {
        let place = args.iter().position(|arg| arg == flag);
        args[place.expect("the flag is there") + 1] = value;
    }
    args
}

pub fn halfseg(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfseg"));
    command.args(args).env_remove("RUST_BACKTRACE");
    command
}

pub fn run(args: &[&str]) -> Output {
    halfseg(args).output().expect("the program starts")
}

/// Sends a signal, such as `-INT`, to a program that runs.
pub fn signal(child: &Child, signal: &str) {
    let kill = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program, which must end with `code`, and gives what it said.
pub fn check(args: &[&str], code: i32, expect: &[&str]) -> String {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?} said:\n{said}");
    for text in expect {
        assert!(
            said.contains(text),
            "{args:?}: expected `{text}` in:\n{said}"
        );
    }
    let panicked = said.contains("panicked") || said.contains("the program cannot go on");
    assert!(!panicked, "{args:?} panicked:\n{said}");
    said
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are Unicode")
}

/// What a training run into `out` begins with.
pub fn train_flags<'a>(method: &'a str, data: &'a str, out: &'a Path) -> Vec<&'a str> {
    vec![
        "train",
        "--method",
        method,
        "--data",
        data,
        "--out",
        text(out),
    ]
}

/// What segmenting pictures into `out` begins with.
pub fn predict_flags<'a>(checkpoint: &'a Path, out: &'a Path) -> Vec<&'a str> {
    vec![
        "predict",
        "--checkpoint",
        text(checkpoint),
        "--out",
        text(out),
    ]
}

/// What scoring the weights of `checkpoint` on `data` begins with.
pub fn eval_flags<'a>(checkpoint: &'a Path, data: &'a str) -> Vec<&'a str> {
    vec!["eval", "--checkpoint", text(checkpoint), "--data", data]
}

/// A tiny trained network in a folder of its own.
pub fn trained(folder: &TempDir, method: &str) -> PathBuf {
    let out = folder.path().join(method);
    let args = train_flags(method, "synthetic", &out);
    check(&[&args[..], &TINY].concat(), 0, &["mIoU"]);
    out
}

/// The lines of a run's log that tell of `event`.
pub fn logged(out: &Path, event: &str) -> Vec<Value> {
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["event"] == event)
        .collect()
}

/// A Cityscapes tree of two training and two validation images, 64x32.
pub fn cityscapes(folder: &TempDir) -> PathBuf {
    let root = folder.path().join("cityscapes");
    for (split, seed) in [("train", 1), ("val", 2)] {
        let streets = SyntheticStreets::new(64, 32, 2, seed);
        write_cityscapes_layout(&streets, &root, split, "town").unwrap();
    }
    root
}

pub fn image_file(root: &Path, index: usize) -> PathBuf {
    root.join(format!(
        "leftImg8bit/train/town/town_{index:06}_000000_leftImg8bit.png"
    ))
}

pub fn label_file(root: &Path, index: usize) -> PathBuf {
    root.join(format!(
        "gtFine/train/town/town_{index:06}_000000_gtFine_labelIds.png"
    ))
}

pub fn write_png(path: &Path, (width, height): (u32, u32), color: png::ColorType, data: &[u8]) {
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width, height);
    encoder.set_color(color);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(data)
        .unwrap();
}

/// The files in a ZIP archive.
pub fn archived(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    (0..archive.len())
        .map(|index| {
            let mut file = archive.by_index(index).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            (file.name().unwrap().into_owned(), bytes)
        })
        .collect()
}

/// A file that `halfseg-segmentor` tests its networks with, copied so that these tests read nothing
/// outside their package.
pub fn recorded(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(path)
}
