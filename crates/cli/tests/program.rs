//! The program as a user runs it: jobs that work, and input that cannot.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use halfseg_data::{
    SyntheticStreets, read_image, read_label, write_cityscapes_layout, write_label,
};
use halfseg_eval::{CityscapesScorer, CityscapesScores};
use serde_json::Value;
use tempfile::TempDir;

/// Widths and sizes that make a run take a second.
const TINY: [&str; 26] = [
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

fn halfseg(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfseg"));
    command.args(args).env_remove("RUST_BACKTRACE");
    command
}

fn run(args: &[&str]) -> Output {
    halfseg(args).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program, which must end with `code`, and gives what it said.
fn check(args: &[&str], code: i32, expect: &[&str]) -> String {
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

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are Unicode")
}

/// A tiny trained network in a folder of its own.
fn trained(folder: &TempDir, method: &str) -> PathBuf {
    let out = folder.path().join(method);
    let args = [
        "train",
        "--method",
        method,
        "--data",
        "synthetic",
        "--out",
        text(&out),
    ];
    check(&[&args[..], &TINY].concat(), 0, &["mIoU"]);
    out
}

/// A Cityscapes tree of two training and two validation images, 64x32.
fn cityscapes(folder: &TempDir) -> PathBuf {
    let root = folder.path().join("cityscapes");
    for (split, seed) in [("train", 1), ("val", 2)] {
        let streets = SyntheticStreets::new(64, 32, 2, seed);
        write_cityscapes_layout(&streets, &root, split, "town").unwrap();
    }
    root
}

fn image_file(root: &Path, index: usize) -> PathBuf {
    root.join(format!(
        "leftImg8bit/train/town/town_{index:06}_000000_leftImg8bit.png"
    ))
}

fn label_file(root: &Path, index: usize) -> PathBuf {
    root.join(format!(
        "gtFine/train/town/town_{index:06}_000000_gtFine_labelIds.png"
    ))
}

fn write_png(path: &Path, (width, height): (u32, u32), color: png::ColorType, data: &[u8]) {
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width, height);
    encoder.set_color(color);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(data)
        .unwrap();
}

/// The files in a ZIP archive.
fn archived(path: &Path) -> BTreeMap<String, Vec<u8>> {
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

/// Training on `root` must fail and say all of `expect`.
fn check_training_fails(folder: &TempDir, root: &Path, expect: &[&str]) {
    let out = folder.path().join("out");
    let args = [
        "train",
        "--method",
        "fcn",
        "--data",
        text(root),
        "--out",
        text(&out),
    ];
    check(&[&args[..], &TINY].concat(), 1, expect);
    let _ = fs::remove_dir_all(out);
}

#[test]
fn a_run_is_evaluated_and_predicts_without_being_told_its_method() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    let out = folder.path().join("run");
    let args = [
        "train",
        "--method",
        "deeplabv3plus",
        "--data",
        text(&root),
        "--out",
        text(&out),
        "--precision",
        "bf16",
        "--loss-scale",
        "dynamic",
        "--lr",
        "0.01",
        "--seed",
        "3",
        "--eval-every",
        "1",
        "--device",
        "flex",
    ];
    check(&[&args[..], &TINY].concat(), 0, &["best so far", "mIoU"]);

    let predictions = folder.path().join("predictions");
    let zip = folder.path().join("predictions.zip");
    let output = run(&[
        "eval",
        "--checkpoint",
        text(&out),
        "--data",
        text(&root),
        "--split",
        "val",
        "--mode",
        "slide",
        "--crop",
        "24x32",
        "--json",
        "-",
        "--save-predictions",
        text(&predictions),
        "--zip",
        text(&zip),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let scores: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON alone");
    assert_eq!(scores["images"], 2);
    assert!(scores["miou"].as_f64().is_some() && scores["classes"]["road"]["iou"].is_number());
    let names = [0, 1].map(|index| format!("town_{index:06}_000000_pred_labelIds.png"));
    let archive = archived(&zip);
    assert_eq!(archive.keys().collect::<Vec<_>>(), names.each_ref());
    for (name, bytes) in &archive {
        assert_eq!(*bytes, fs::read(predictions.join(name)).unwrap(), "{name}");
    }
    let kept = read_label(&predictions.join(&names[0])).unwrap();
    assert_eq!((kept.width, kept.height), (64, 32));
    assert!(
        kept.data.iter().all(|&id| (7..=33).contains(&id)),
        "labelIds, not trainIds"
    );

    let pictures = folder.path().join("pictures");
    let image = image_file(&root, 0);
    check(
        &[
            "predict",
            "--checkpoint",
            text(&out.join("best.safetensors")),
            "--out",
            text(&pictures),
            "--logits",
            text(&image),
        ],
        0,
        &["1 images"],
    );
    let stem = image.file_stem().unwrap().to_str().unwrap();
    let map = read_label(&pictures.join(format!("{stem}_trainIds.png"))).unwrap();
    for name in ["color", "overlay"] {
        let picture = read_image(&pictures.join(format!("{stem}_{name}.png"))).unwrap();
        assert_eq!((picture.width, picture.height), (64, 32));
    }
    let bytes = fs::read(pictures.join(format!("{stem}_logits.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = file.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [1, 19, 32, 64]);
    let values: Vec<f32> = logits
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    for (pixel, &class) in map.data.iter().enumerate() {
        let of = |class: usize| values[class * map.data.len() + pixel];
        assert!(
            (0..19).all(|other| of(other) <= of(usize::from(class))),
            "pixel {pixel}"
        );
    }

    // Whole folders, another size, several views.
    let images = root.join("leftImg8bit/train");
    let views = folder.path().join("views");
    let base = ["predict", "--checkpoint", text(&out), "--out", text(&views)];
    check(
        &[&base[..], &["--ms-flip", "--scale", "48x48", text(&images)]].concat(),
        0,
        &[],
    );
    assert_eq!(fs::read_dir(&views).unwrap().count(), 3 * 2);
    // Both splits of the tree have the same names.
    let all = root.join("leftImg8bit");
    check(
        &[&base[..], &[text(&all)]].concat(),
        1,
        &["would both be written as"],
    );
}

/// The scorer of files, which the tests of `halfseg-eval` compare with the official one, and the
/// program's own count must agree.
#[test]
fn a_folder_gets_the_scores_of_categories_and_instances() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    let truth = root.join("gtFine/val");
    for index in 0..2 {
        // Half a line of car: two instances of unequal size, the second of which lies in the road.
        let path = truth.join(format!("town/town_{index:06}_000000_gtFine_labelIds.png"));
        let mut label = read_label(&path).unwrap();
        label.data[..40].fill(26);
        write_label(&path, &label).unwrap();
        let instances = label.data.iter().enumerate().map(|(pixel, &id)| match id {
            26 if pixel < 10 => 26_001,
            24.. => u16::from(id) * 1000 + 2,
            _ => u16::from(id),
        });
        let bytes: Vec<u8> = instances.flat_map(u16::to_be_bytes).collect();
        let path = truth.join(format!(
            "town/town_{index:06}_000000_gtFine_instanceIds.png"
        ));
        let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), 64, 32);
        encoder.set_depth(png::BitDepth::Sixteen);
        encoder
            .write_header()
            .unwrap()
            .write_image_data(&bytes)
            .unwrap();
    }
    let predictions = folder.path().join("predictions");
    let output = run(&[
        "eval",
        "--checkpoint",
        text(&checkpoint),
        "--data",
        text(&root),
        "--split",
        "val",
        "--save-predictions",
        text(&predictions),
        "--json",
        "-",
    ]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("category") && said.contains("iIoU"), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = CityscapesScorer::score_folders(&predictions, &truth).unwrap();
    assert!(expected.mean_instance_iou.is_some() && expected.mean_category_iou.is_some());
    assert_eq!(
        serde_json::from_value::<CityscapesScores>(found["cityscapes"].clone()).unwrap(),
        expected
    );
    // Predictions alone get the same scores.
    let args = ["score", "--predictions", text(&predictions), "--truth"];
    let output = run(&[&args[..], &[text(&truth), "--json", "-"]].concat());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("2 images: mIoU"), "{said}");
    assert_eq!(
        serde_json::from_slice::<CityscapesScores>(&output.stdout).unwrap(),
        expected
    );
    fs::remove_dir_all(&predictions).unwrap();
    fs::create_dir(&predictions).unwrap();
    let expect = ["one prediction town_000000_000000*.png", "found none"];
    check(&[&args[..], &[text(&truth)]].concat(), 1, &expect);
}

/// Weights from elsewhere say what they are: a whole network, or a backbone alone.
#[test]
fn training_takes_over_the_network_of_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../segmentor/tests");
    let config = |flags: &[&str]| -> toml::Table {
        let output = run(&[&["config"], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        text.parse::<toml::Table>().unwrap()["model"]
            .as_table()
            .unwrap()
            .clone()
    };
    let model = |flags: &[&str]| {
        let model = config(flags);
        let name = |key: &str| model[key].as_str().unwrap().to_owned();
        let number = |key: &str| model[key].as_integer().unwrap();
        let widths = ["base_channels", "stem_channels", "head_channels"].map(number);
        (
            name("method"),
            name("backbone"),
            widths,
            number("num_classes"),
        )
    };
    let whole = tests.join("recordings/pspnet/model.pth");
    let whole = ["--checkpoint", text(&whole)];
    let (pspnet, r50) = ("pspnet".to_owned(), "resnet50".to_owned());
    let widths = [2, 4, 4];
    assert_eq!(model(&whole), (pspnet.clone(), r50.clone(), widths, 4));
    // Flags go before the file, and what they leave open comes from it.
    let flags = ["--classes", "7", "--method", "pspnet"];
    assert_eq!(
        model(&[&whole[..], &flags].concat()),
        (pspnet.clone(), r50, widths, 7)
    );
    let flags = ["--backbone", "resnet34"];
    assert_eq!(
        model(&[&whole[..], &flags].concat()),
        (pspnet, "resnet34".to_owned(), [64, 64, 128], 4)
    );
    let backbone = tests.join("backbones/resnet18_v1c_old.pth");
    let backbone = ["--checkpoint", text(&backbone), "--method", "deeplabv3"];
    let r18 = "resnet18".to_owned();
    assert_eq!(
        model(&backbone),
        ("deeplabv3".to_owned(), r18, [2, 4, 128], 19)
    );
    // Flags that say what the file is leave its widths alone.
    let flags = ["--backbone", "resnet18"];
    assert_eq!(model(&[&backbone[..], &flags].concat()), model(&backbone));

    let short = [
        "--data",
        "synthetic",
        "--scale",
        "64x32",
        "--crop",
        "32x32",
        "--iterations",
        "1",
        "--set",
        "data.synthetic_train=4",
        "--set",
        "data.synthetic_val=1",
        "--set",
        "train.pictures=0",
    ];
    let train = |name: &str, flags: &[&str], expect: &[&str]| {
        let out = folder.path().join(name);
        let args = [&["train", "--out", text(&out)], flags, &short].concat();
        check(&args, 0, expect);
    };
    let expect = [
        "4 re-initialised",
        "[19, 4, 1, 1], the file's is [4, 4, 1, 1]",
    ];
    train(
        "whole",
        &[&whole[..], &["--classes", "19"]].concat(),
        &expect,
    );
    train("backbone", &backbone, &["2 unexpected", "fc.weight"]);
    // The output of a run is a checkpoint, too.
    let before = folder.path().join("whole");
    train("again", &["--checkpoint", text(&before)], &["0 missing"]);
}

/// What MMSegmentation recorded for its own checkpoint, from the file and the picture alone.
#[test]
fn a_checkpoint_from_elsewhere_gives_its_recorded_logits() {
    let folder = tempfile::tempdir().unwrap();
    let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../segmentor/tests/recordings");
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let (values, rest) = bytes.as_chunks();
        assert!(rest.is_empty());
        values
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect()
    };
    for method in ["fcn", "pspnet", "deeplabv3", "deeplabv3plus"] {
        let recording = recordings.join(method);
        let bytes = fs::read(recording.join("slide_tta.safetensors")).unwrap();
        let recorded = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let image = recorded.tensor("image").unwrap();
        let size = (image.shape()[1] as u32, image.shape()[0] as u32);
        let (bgr, _) = image.data().as_chunks::<3>();
        let rgb: Vec<u8> = bgr.iter().flat_map(|&[b, g, r]| [r, g, b]).collect();
        let picture = folder.path().join("image.png");
        write_png(&picture, size, png::ColorType::Rgb, &rgb);
        let settings = fs::read(recording.join("slide_tta.json")).unwrap();
        let settings: Value = serde_json::from_slice(&settings).unwrap();
        let pair = |key: &str| format!("{}x{}", settings[key][0], settings[key][1]);
        let (crop, stride) = (pair("crop"), pair("stride"));
        let weights = recording.join("model.pth");
        let args = ["predict", "--checkpoint", text(&weights), "--logits"];
        let args = [&args[..], &["--out", text(folder.path()), text(&picture)]].concat();
        let slide = ["--mode", "slide", "--crop", &crop, "--stride", &stride];
        for (name, flags) in [("whole", &[][..]), ("slide", &slide)] {
            let expect = [method, " in f32 from ", " 0 missing"];
            check(&[&args[..], flags].concat(), 0, &expect);
            let bytes = fs::read(folder.path().join("image_logits.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let found = floats(file.tensor("logits").unwrap().data());
            let expected = recorded.tensor(&format!("{name}.logits")).unwrap();
            let expected = floats(expected.data());
            assert_eq!(found.len(), expected.len());
            let errors = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let error = errors.fold(0.0, f32::max);
            assert!(error <= 1e-3, "{method}, {name}: {error}");
        }
        let flags = ["--precision", "bf16"];
        check(&[&args[..], &flags].concat(), 0, &[" in bf16 from "]);
    }
}

/// A benchmark keeps the labels of its test split to itself.
#[test]
fn a_split_without_labels_is_packed_for_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    fs::remove_dir_all(root.join("gtFine/val")).unwrap();
    let (kept, zip) = (
        folder.path().join("kept"),
        folder.path().join("sub/all.zip"),
    );
    let base = [
        "eval",
        "--checkpoint",
        text(&checkpoint),
        "--data",
        text(&root),
        "--split",
        "val",
        "--zip",
        text(&zip),
    ];
    // The folder of the archive is not there: known before an hour of predictions, not after.
    check(&base, 1, &["all.zip", "sub"]);
    fs::create_dir(zip.parent().unwrap()).unwrap();
    // A prediction of an earlier run is no part of this archive.
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("old_000000_000000_pred_labelIds.png"), "old").unwrap();
    check(
        &[&base[..], &["--save-predictions", text(&kept)]].concat(),
        0,
        &["nothing to score"],
    );
    let names = [0, 1].map(|index| format!("town_{index:06}_000000_pred_labelIds.png"));
    assert_eq!(archived(&zip).keys().collect::<Vec<_>>(), names.each_ref());
    assert_eq!(
        fs::read_dir(zip.parent().unwrap()).unwrap().count(),
        1,
        "something was left beside the archive"
    );
    // Without a folder to keep, nothing but the archive stays, and it is the same one.
    let first = fs::read(&zip).unwrap();
    check(&base, 0, &["nothing to score"]);
    assert_eq!(fs::read(&zip).unwrap(), first);
    assert_eq!(fs::read_dir(zip.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn an_exported_checkpoint_gives_the_same_scores() {
    let folder = tempfile::tempdir().unwrap();
    let out = trained(&folder, "pspnet");
    let file = folder.path().join("exported.safetensors");
    check(
        &[
            "export",
            "--checkpoint",
            text(&out),
            "--to",
            "mmseg",
            "--out",
            text(&file),
        ],
        0,
        &[],
    );
    let miou = |checkpoint: &Path| {
        let args = [
            "eval",
            "--checkpoint",
            text(checkpoint),
            "--data",
            "synthetic",
            "--json",
            "-",
        ];
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
        scores["miou"].as_f64().unwrap()
    };
    assert_eq!(miou(&out), miou(&file));
}

#[test]
fn a_printed_configuration_reads_back_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recipe.toml");
    let args = [
        "config",
        "--method",
        "deeplabv3",
        "--backbone",
        "resnet50",
        "--lr",
        "0.5",
    ];
    let first = run(&[&args[..], &["--set", "data.flip=0.25", "--crop", "96x128"]].concat());
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    fs::write(&file, &first.stdout).unwrap();
    let second = run(&["config", "--config", text(&file)]);
    assert_eq!(first.stdout, second.stdout);
    let toml = String::from_utf8(second.stdout).unwrap();
    for line in [
        "method = \"deeplabv3\"",
        "lr = 0.5",
        "flip = 0.25",
        "crop = \"96x128\"",
    ] {
        assert!(toml.contains(line), "expected `{line}` in:\n{toml}");
    }
}

/// Audits a tiny network with further flags; gives what went to stderr and the JSON.
fn audited(flags: &[&str]) -> (String, Value) {
    let args = [&["audit", "--json", "-"], flags].concat();
    let output = run(&args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{args:?} said:\n{said}");
    (said, serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn an_audit_ranks_operations_and_writes_a_policy_that_training_obeys() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.json");
    let flags = ["--method", "deeplabv3plus", "--data", "synthetic"];
    let (said, json) = audited(
        &[
            &flags[..],
            &TINY,
            &[
                "--policy",
                text(&policy),
                "--max-error",
                "4e-4",
                "--underflow",
                "1,65536",
            ],
        ]
        .concat(),
    );
    for expect in [
        "site",
        "rel error",
        "weight casts reused",
        "gradient values",
        "wrote",
    ] {
        assert!(said.contains(expect), "expected `{expect}` in:\n{said}");
    }
    let rows = json["operations"].as_array().unwrap();
    let errors: Vec<f64> = rows
        .iter()
        .map(|row| row["relative_error"].as_f64().unwrap())
        .collect();
    assert!(errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
    let ops = |op: &str| rows.iter().filter(|row| row["op"] == op).count();
    for op in ["conv2d", "batch_norm", "interpolate", "pool", "loss"] {
        assert!(ops(op) > 0, "no {op} in {said}");
    }
    assert!(json["casts"]["casts"].as_u64().unwrap() > 0);
    assert_eq!(json["underflow"]["scales"].as_array().unwrap().len(), 2);
    let (exact, rounded) = (
        json["loss"].as_f64().unwrap(),
        json["policy_loss"].as_f64().unwrap(),
    );
    assert!(
        exact != rounded && (exact - rounded).abs() < 0.05 * exact,
        "{exact} {rounded}"
    );

    // The written file holds what the JSON says, and names modules of the network alone.
    let written: Value = serde_json::from_str(&fs::read_to_string(&policy).unwrap()).unwrap();
    assert_eq!(written, json["policy"]);
    let modules = written["modules"].as_object().unwrap();
    assert!(!modules.is_empty() && modules.values().all(|precision| precision == "f32"));
    let bad = |row: &&Value| {
        row["is_module"] == true
            && row["policy"] != "f32"
            && row["relative_error"].as_f64().unwrap() > 4e-4
    };
    assert_eq!(modules.len(), rows.iter().filter(bad).count());

    let out = folder.path().join("run");
    let train = [
        "train",
        "--data",
        "synthetic",
        "--method",
        "deeplabv3plus",
        "--out",
        text(&out),
    ];
    let with = format!("f16 with {} exceptions", modules.len());
    check(
        &[&train[..], &TINY, &["--policy", text(&policy)]].concat(),
        0,
        &[&with, "mIoU"],
    );
    // The exceptions are in the run's configuration, so that the file is no longer needed.
    fs::remove_file(&policy).unwrap();
    let config = fs::read_to_string(out.join("config.toml")).unwrap();
    for module in modules.keys() {
        assert!(
            config.contains(&format!("\"{module}\" = \"f32\"")),
            "{module} in:\n{config}"
        );
    }
    // An audit of the run begins with them: nothing is left that errs.
    let (_, again) = audited(&[
        "--checkpoint",
        text(&out),
        "--max-error",
        "1",
        "--data",
        "synthetic",
    ]);
    assert_eq!(again["policy"]["modules"], written["modules"]);

    let miou = |flags: &[&str]| {
        let args = ["eval", "--checkpoint", text(&out), "--json", "-"];
        let output = run(&[&args[..], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(miou(&[])["policy"]["modules"], written["modules"]);
    let plain = folder.path().join("plain.json");
    fs::write(&plain, r#"{"compute": "bf16"}"#).unwrap();
    let with_policy = miou(&["--policy", text(&plain)]);
    assert_eq!(with_policy["precision"], "bf16");
    assert_eq!(with_policy["policy"]["modules"], Value::Null);
    let eval = ["eval", "--checkpoint", text(&out), "--precision", "f16"];
    let eval = [&eval[..], &["--policy", text(&plain)]].concat();
    check(&eval, 2, &["`--precision` in the flags: expected bf16"]);
    // Resuming keeps the exceptions, too.
    let more = [
        "train",
        "--out",
        text(&out),
        "--resume",
        "--iterations",
        "3",
    ];
    check(&more, 0, &[&with]);
}

#[test]
fn policies_that_cannot_be_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.json");
    let out = folder.path().join("out");
    let train = [
        "train",
        "--method",
        "fcn",
        "--data",
        "synthetic",
        "--out",
        text(&out),
    ];
    let train = [&train[..], &TINY, &["--policy", text(&file)]].concat();

    check(&train, 1, &["policy.json", "No such file"]);
    let refused = |policy: &str, expect: &[&str]| {
        fs::write(&file, policy).unwrap();
        check(&train, 2, expect);
        assert!(!out.join("log.jsonl").exists());
    };
    refused("{", &["policy.json", "line 1"]);
    refused(
        r#"{"compute": "f12"}"#,
        &["policy.json", "`compute`", "bf16", "f12"],
    );
    refused(
        r#"{"compute": "f16", "op": {}}"#,
        &["policy.json", "`op`", "nearest valid key is `ops`"],
    );
    refused(
        r#"{"compute": "f16", "ops": {"conv_2d": "f32"}}"#,
        &["`ops.conv_2d`", "nearest valid key is `ops.conv2d`"],
    );
    refused(
        r#"{"compute": "f16", "modules": {"backbone.layer5": "f32"}}"#,
        &[
            "`precision.modules.backbone.layer5`",
            "`precision.modules.backbone.layer",
        ],
    );
    refused(
        r#"{"compute": "f16", "param": "f16"}"#,
        &["`param`", "expected f32"],
    );

    // What contradicts the file is refused, by every command; what agrees with it is not.
    fs::write(&file, r#"{"compute": "bf16"}"#).unwrap();
    let contradiction = [
        "`--precision` in the flags: expected bf16, as `--policy ",
        "policy.json` has it, or none, found `f32`",
    ];
    let f32 = ["--precision", "f32"];
    check(&[&train[..], &f32].concat(), 2, &contradiction);
    assert!(!out.join("log.jsonl").exists());
    let config = ["config", "--policy", text(&file)];
    check(&[&config[..], &f32].concat(), 2, &contradiction);
    let dtype = |flags: &[&str]| {
        let output = run(&[&config[..], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let printed = String::from_utf8(output.stdout).unwrap();
        let dtype = printed.lines().find(|line| line.starts_with("dtype = "));
        dtype.expect("a configuration has a dtype").to_owned()
    };
    assert_eq!(dtype(&["--precision", "bf16"]), "dtype = \"bf16\"");
    // `--set` is above all flags.
    assert_eq!(dtype(&["--set", "precision.dtype=f32"]), "dtype = \"f32\"");

    let audit = ["audit", "--method", "fcn", "--data", "synthetic"];
    let fails = |flags: &[&str], code: i32, expect: &[&str]| {
        check(&[&audit[..], &TINY, flags].concat(), code, expect);
    };
    fails(
        &["--precision", "f32"],
        2,
        &["`precision.dtype`", "f16 or bf16"],
    );
    fails(&["--max-error=-1"], 2, &["--max-error"]);
    fails(&["--underflow", "0"], 2, &["--underflow"]);
    let absent = folder.path().join("absent/policy.json");
    fails(&["--policy", text(&absent)], 1, &["absent/policy.json"]);
}

#[test]
fn skipped_steps_name_their_culprits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let train = [
        "train",
        "--method",
        "fcn",
        "--data",
        "synthetic",
        "--out",
        text(&out),
    ];
    // No f16 gradient survives this scale.
    let flags = ["--loss-scale", "1e30", "--set", "train.max_skipped=9"];
    let overflow = "skipped, backward overflow at scale";
    let said = check(&[&train[..], &TINY, &flags].concat(), 0, &[overflow]);
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let skips: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["event"] == "skip")
        .collect();
    assert_eq!(skips.len(), 2, "{log}");
    for skip in &skips {
        let culprits = skip["culprits"].as_array().unwrap();
        assert_eq!(
            (skip["pass"].as_str(), skip["at_floor"].as_bool()),
            (Some("backward"), Some(false))
        );
        assert!(
            culprits
                .iter()
                .any(|path| path.as_str().unwrap().ends_with("conv.weight"))
        );
        assert!(said.contains(culprits[0].as_str().unwrap()), "{said}");
    }
}

#[test]
fn the_loss_is_scaled_in_f16_unless_flags_say_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, flags: &[&str], expect: &str| {
        let out = folder.path().join(name);
        let args = ["train", "--method", "fcn", "--data", "synthetic", "--out"];
        let said = check(
            &[&args[..], &[text(&out)], &TINY[..], flags].concat(),
            0,
            &[expect],
        );
        let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
        let lines: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let scale = &lines.iter().find(|line| line["event"] == "train").unwrap()["scale"];
        (said, lines[0]["loss_scaling"].clone(), scale.as_f64())
    };
    let check = |name: &str, flags: &[&str], scaling: &str, scale: f64| {
        let (_, found, first) = train(name, flags, &format!("with loss scale {scaling} on flex"));
        assert_eq!(
            (found.as_str(), first),
            (Some(scaling), Some(scale)),
            "{flags:?}"
        );
    };
    check("f16", &["--precision", "f16"], "512", 512.0);
    check("bf16", &["--precision", "bf16"], "1", 1.0);
    check("f32", &["--precision", "f32"], "1", 1.0);
    check(
        "given",
        &["--precision", "bf16", "--loss-scale", "64"],
        "64",
        64.0,
    );
    check(
        "flax",
        &["--precision", "bf16", "--loss-scale", "flax"],
        "flax",
        65536.0,
    );
    check(
        "none",
        &["--precision", "f16", "--loss-scale", "none"],
        "none",
        1.0,
    );

    // A file with the whole configuration keeps both what was asked for and what was not.
    let path = folder.path().join("config.toml");
    for (flags, expect) in [
        (&["--precision", "f16"][..], "loss_scale = \"auto\""),
        (&["--loss-scale", "mmcv-static"], "loss_scale = \"512\""),
        (&["--loss-scale", "dynamic"], "loss_scale = \"torch\""),
    ] {
        let output = run(&[&["config"], flags].concat());
        let toml = String::from_utf8(output.stdout).unwrap();
        assert!(toml.contains(expect), "{toml}");
        fs::write(&path, &toml).unwrap();
        let again = run(&["config", "--config", text(&path), "--precision", "bf16"]);
        let again = String::from_utf8(again.stdout).unwrap();
        assert_eq!(again, toml.replace("\"f16\"", "\"bf16\""));
    }
}

#[test]
fn bad_usage_ends_with_2_and_names_what_is_meant() {
    for scale in ["0", "-1", "nan", "inf", "1e38", "1e-46", "tourch", ""] {
        let flag = format!("--loss-scale={scale}");
        let expect = ["2^-126 to 2^126", "torch (or dynamic), megatron", scale];
        check(&["train", "--out", "x", &flag], 2, &expect);
        let set = format!("precision.loss_scale={scale}");
        check(
            &["config", "--set", &set],
            2,
            &["`precision.loss_scale`", expect[0]],
        );
    }
    check(&["train", "--method", "fcn"], 2, &["--out"]);
    check(&["train", "--methd", "fcn", "--out", "x"], 2, &["--method"]);
    check(
        &["config", "--method", "unet"],
        2,
        &["unet", "deeplabv3plus"],
    );
    check(
        &["config", "--backbone", "resnet20"],
        2,
        &["resnet20", "resnet18"],
    );
    check(&["config", "--precision", "f8"], 2, &["f32, f16 or bf16"]);
    check(&["config", "--crop", "512"], 2, &["HEIGHTxWIDTH"]);
    check(&["config", "--lr", "0"], 2, &["`optimizer.lr`"]);
    for classes in ["0", "256"] {
        check(&["config", "--classes", classes], 2, &[classes, "1..=255"]);
    }
    let nearest = "nearest valid key is `optimizer.momentum`";
    check(
        &["config", "--set", "optimizer.momentun=1"],
        2,
        &["`optimizer.momentun`", nearest],
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("typo.toml");
    for (typo, key, nearest) in [
        (
            "[data]\nphotometrics = false\n",
            "data.photometrics",
            "data.photometric",
        ),
        ("[optimzer]\nlr = 1.0\n", "optimzer.lr", "optimizer.lr"),
    ] {
        fs::write(&file, typo).unwrap();
        let (key, nearest) = (
            format!("`{key}`"),
            format!("nearest valid key is `{nearest}`"),
        );
        check(
            &["config", "--config", text(&file)],
            2,
            &["typo.toml", &key, &nearest],
        );
    }
    check(
        &["config", "--method", "pspnet", "--batch", "1"],
        2,
        &["`train.batch`", "at least 2"],
    );
}

#[cfg(not(feature = "cuda"))]
#[test]
fn two_devices_and_recomputed_blocks_train_as_one_device_does() {
    let folder = TempDir::new().unwrap();
    let losses = |name: &str, flags: &[&str]| -> Vec<f64> {
        let out = folder.path().join(name);
        let begin = ["train", "--method", "pspnet", "--out", text(&out)];
        check(
            &[&begin[..], &TINY, &["--precision", "f32"], flags].concat(),
            0,
            &[],
        );
        let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        let lines = lines.filter(|line: &Value| line["event"] == "train");
        lines.map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let alone = losses("alone", &["--device", "flex"]);
    let shared = losses("shared", &["--devices", "flex,flex"]);
    assert_eq!(alone.len(), 2);
    for (alone, shared) in alone.iter().zip(shared) {
        assert!((alone - shared).abs() < 1e-5 * alone, "{alone}, {shared}");
    }
    assert_eq!(alone, losses("recomputed", &["--gradient-checkpointing"]));

    let out = folder.path().join("three");
    let begin = ["train", "--method", "fcn", "--out", text(&out)];
    let three = ["--devices", "flex,flex,flex"];
    let expect = "a multiple of 3, the number of devices, found 2";
    check(&[&begin[..], &TINY, &three].concat(), 2, &[expect]);
}

#[test]
fn a_gpu_that_this_program_cannot_use_is_explained() {
    let args = [
        "train", "--method", "fcn", "--device", "cuda", "--out", "nowhere",
    ];
    check(&args, 1, &["cuda:0", "--features cuda"]);
}

#[test]
fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("nowhere");
    check_training_fails(
        &folder,
        &root,
        &["nowhere", "folder not found", "leftImg8bit/<split>"],
    );
}

#[test]
fn an_empty_split_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("empty");
    fs::create_dir_all(root.join("leftImg8bit/train/town")).unwrap();
    check_training_fails(
        &folder,
        &root,
        &["leftImg8bit/train", "no image", "_leftImg8bit.png"],
    );
}

#[test]
fn an_image_without_label_and_a_label_without_image_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    let (image, label) = (image_file(&root, 1), label_file(&root, 1));
    let bytes = fs::read(&label).unwrap();
    fs::remove_file(&label).unwrap();
    let expect = [
        "town_000001_000000_leftImg8bit.png",
        "label not found",
        text(&label),
    ];
    check_training_fails(&folder, &root, &expect);
    fs::write(&label, bytes).unwrap();
    fs::remove_file(&image).unwrap();
    let expect = [
        "town_000001_000000_gtFine_labelIds.png",
        "image not found",
        text(&image),
    ];
    check_training_fails(&folder, &root, &expect);
}

#[test]
fn a_split_without_any_labels_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    fs::remove_dir_all(root.join("gtFine/train")).unwrap();
    check_training_fails(
        &folder,
        &root,
        &["`train` has no label maps", "gtFine/train"],
    );
}

#[test]
fn sizes_that_differ_are_both_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    for index in 0..2 {
        let label = label_file(&root, index);
        write_png(&label, (32, 32), png::ColorType::Grayscale, &[7; 32 * 32]);
    }
    check_training_fails(&folder, &root, &["labelIds.png", "(64, 32)", "(32, 32)"]);
}

#[test]
fn a_truncated_png_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    for index in 0..2 {
        let image = image_file(&root, index);
        let bytes = fs::read(&image).unwrap();
        fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    }
    check_training_fails(
        &folder,
        &root,
        &["_leftImg8bit.png", "cannot be decoded as PNG"],
    );
}

#[test]
fn an_unreadable_image_costs_nothing_that_was_learned_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    // Read at the first evaluation; one checkpoint is due at the end only.
    let image = root.join("leftImg8bit/val/town/town_000000_000000_leftImg8bit.png");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    let out = folder.path().join("run");
    let begun = ["train", "--data", text(&root), "--out", text(&out)];
    let flags = ["--eval-every", "1", "--checkpoint-every", "0"];
    let said = check(
        &[&begun[..], &flags, &TINY].concat(),
        1,
        &["town_000000_000000_leftImg8bit.png", "iter_1.safetensors"],
    );
    assert!(!said.contains("iter_2"), "{said}");
    fs::write(&image, bytes).unwrap();
    check(
        &["train", "--resume", "--out", text(&out)],
        0,
        &["iter_2.safetensors", "mIoU"],
    );
}

#[test]
fn an_id_that_the_table_lacks_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    for index in 0..2 {
        let mut data = vec![7; 64 * 32];
        data[..5].fill(77);
        write_png(
            &label_file(&root, index),
            (64, 32),
            png::ColorType::Grayscale,
            &data,
        );
    }
    let expect = [
        "_gtFine_labelIds.png",
        "5 pixels of value 77",
        "labelIds 0 to 33",
    ];
    check_training_fails(&folder, &root, &expect);
}

#[test]
fn an_rgb_mask_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    for index in 0..2 {
        let data = [7; 64 * 32 * 3];
        write_png(
            &label_file(&root, index),
            (64, 32),
            png::ColorType::Rgb,
            &data,
        );
    }
    check_training_fails(
        &folder,
        &root,
        &["labelIds.png", "one 8-bit channel", "Rgb"],
    );
}

#[test]
fn a_checkpoint_of_another_architecture_names_the_first_keys() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn").join("best.safetensors");
    let args = [
        "eval",
        "--data",
        "synthetic",
        "--method",
        "pspnet",
        "--checkpoint",
    ];
    let expect = [
        "best.safetensors",
        "another architecture",
        "pspnet",
        "fcn",
        "decode_head.",
    ];
    check(&[&args[..], &[text(&checkpoint)]].concat(), 1, &expect);
    let args = [
        "predict",
        "--backbone",
        "resnet50",
        "--out",
        "x",
        "--checkpoint",
    ];
    let picture = folder.path().join("fcn/pictures/street_000000.png");
    let all = [&args[..], &[text(&checkpoint), text(&picture)]].concat();
    check(&all, 1, &["another architecture", "resnet50", "backbone."]);
}

#[test]
fn files_that_are_no_checkpoints_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.safetensors");
    fs::write(&file, "these are notes").unwrap();
    let args = ["eval", "--data", "synthetic", "--checkpoint"];
    check(
        &[&args[..], &[text(&file)]].concat(),
        1,
        &["notes.safetensors"],
    );
    let missing = folder.path().join("missing.pth");
    check(
        &[&args[..], &[text(&missing)]].concat(),
        1,
        &["missing.pth"],
    );
    // One file of each of PyTorch's two formats, cut short.
    let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../segmentor/tests/recordings");
    for method in ["fcn", "deeplabv3"] {
        let bytes = fs::read(recordings.join(method).join("model.pth")).unwrap();
        let file = folder.path().join("cut.pth");
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        check(
            &[&args[..], &[text(&file)]].concat(),
            1,
            &["cut.pth", "truncated"],
        );
    }
    // A pickle that asks for a command to be run.
    let trace = folder.path().join("trace");
    let pickle = format!(
        "(dVstate_dict\ncposix\nsystem\n(Vtouch {}\ntRs.",
        trace.display()
    );
    let file = folder.path().join("command.pth");
    fs::write(&file, pickle).unwrap();
    check(
        &[&args[..], &[text(&file)]].concat(),
        1,
        &["command.pth", "not a checkpoint"],
    );
    assert!(!trace.exists(), "the pickle's command was run");
    check(
        &[&args[..], &[text(folder.path())]].concat(),
        1,
        &["no checkpoint"],
    );
}

#[test]
fn images_that_cannot_be_predicted_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let out = folder.path().join("pictures");
    let base = [
        "predict",
        "--checkpoint",
        text(&checkpoint),
        "--out",
        text(&out),
    ];
    let case = |input: &Path, code, expect: &[&str]| {
        check(&[&base[..], &[text(input)]].concat(), code, expect);
    };
    case(
        &folder.path().join("missing.png"),
        1,
        &["missing.png", "found nothing"],
    );
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    case(&empty, 1, &["empty", "found none"]);
    let broken = folder.path().join("broken.png");
    fs::write(&broken, "no picture").unwrap();
    case(&broken, 1, &["broken.png", "PNG"]);
    check(
        &[&base[..], &["--opacity", "2", text(&broken)]].concat(),
        2,
        &["--opacity"],
    );
    check(
        &[&base[..], &["--logits", "--ms-flip", text(&broken)]].concat(),
        2,
        &["--ms-flip"],
    );
    let scores = folder.path().join("missing/scores.json");
    let eval = [
        "eval",
        "--checkpoint",
        text(&checkpoint),
        "--json",
        text(&scores),
    ];
    check(&eval, 1, &["scores.json", "expected a folder"]);
    let gaps = ["--mode", "slide", "--crop", "16x16", "--stride", "8x20"];
    check(
        &[&base[..], &gaps, &[text(&broken)]].concat(),
        2,
        &[
            "`eval.slide_stride`",
            "at most eval.slide_crop, 16x16",
            "8x20",
        ],
    );
}

#[test]
fn a_crop_that_memory_cannot_hold_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = [
        "train",
        "--method",
        "fcn",
        "--crop",
        "400000x400000",
        "--out",
        text(&out),
    ];
    check(&args, 1, &["400000x400000", "needs about", "are available"]);
    assert!(!out.exists());
    let scale = [
        "--crop",
        "32x32",
        "--batch",
        "2",
        "--scale",
        "1000000x1000000",
    ];
    let args = [
        &args[..3],
        &["--backbone", "resnet18", "--out", text(&out)],
        &scale,
    ]
    .concat();
    check(&args, 2, &["`data.scale`", "1000000x1000000, which takes"]);
    assert!(!out.exists());
}

/// A limit on the size of files stands for a full disk: writes beyond it fail.
#[cfg(target_os = "linux")]
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let out = trained(&folder, "fcn");
    let args = [
        "train",
        "--resume",
        "--out",
        text(&out),
        "--iterations",
        "4",
    ];
    let limited = Command::new("bash")
        .args(["-c", "ulimit -f 64; trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_halfseg"))
        .args(args)
        .output()
        .unwrap();
    let said = stderr(&limited);
    assert_eq!(limited.status.code(), Some(1), "{said}");
    assert!(
        said.contains("iter_4") && said.contains("File too large"),
        "{said}"
    );
    assert_eq!(
        fs::read_to_string(out.join("last_checkpoint")).unwrap(),
        "iter_2.safetensors"
    );
    check(&args, 0, &["mIoU"]);
    assert_eq!(
        fs::read_to_string(out.join("last_checkpoint")).unwrap(),
        "iter_4.safetensors"
    );
}

#[test]
fn a_folder_with_a_run_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let out = trained(&folder, "fcn");
    let args = [
        "train",
        "--method",
        "fcn",
        "--data",
        "synthetic",
        "--out",
        text(&out),
    ];
    check(
        &[&args[..], &TINY].concat(),
        1,
        &["already holds a run", "--resume"],
    );
    let nowhere = folder.path().join("nowhere");
    check(
        &["train", "--resume", "--out", text(&nowhere)],
        1,
        &["no checkpoint to resume"],
    );
}

#[test]
fn a_run_outlives_the_reader_of_its_messages() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = [
        "train",
        "--method",
        "fcn",
        "--data",
        "synthetic",
        "--out",
        text(&out),
    ];
    let mut child = halfseg(&[&args[..], &TINY].concat())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(out.join("scores.json").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_ends_with_130_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = [
        "train",
        "--method",
        "fcn",
        "--data",
        "synthetic",
        "--out",
        text(&out),
    ];
    let mut child = halfseg(&[&args[..], &TINY, &["--set", "schedule.iterations=100000"]].concat())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = out.join("log.jsonl");
    let begun = Instant::now();
    while fs::read_to_string(&log).unwrap_or_default().lines().count() < 4 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no progress");
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("--resume"));

    let last = fs::read_to_string(out.join("last_checkpoint")).unwrap();
    let done: u64 = last
        .trim_start_matches("iter_")
        .split('.')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let iterations = (done + 1).to_string();
    check(
        &[
            "train",
            "--resume",
            "--out",
            text(&out),
            "--iterations",
            &iterations,
        ],
        0,
        &["mIoU"],
    );
}
