//! `halfseg train`: what it begins with, what it survives, how it ends.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// Weights from elsewhere say what they are: a whole network, or a backbone alone.
#[test]
fn training_takes_over_the_network_of_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
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
    let whole = recorded("recordings/pspnet/model.pth");
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
    let backbone = recorded("backbones/resnet18_v1c_old.pth");
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

#[cfg(not(feature = "cuda"))]
#[test]
fn two_devices_and_recomputed_blocks_train_as_one_device_does() {
    let folder = TempDir::new().unwrap();
    let losses = |name: &str, flags: &[&str]| -> Vec<f64> {
        let out = folder.path().join(name);
        let begin = ["train", "--method", "pspnet", "--data", "synthetic"];
        let begin = [&begin[..], &["--out", text(&out)]].concat();
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
    let begin = ["train", "--method", "fcn", "--data", "synthetic"];
    let begin = [&begin[..], &["--out", text(&out)]].concat();
    let three = ["--devices", "flex,flex,flex"];
    let expect = "a multiple of 3, the number of devices, found 2";
    check(&[&begin[..], &TINY, &three].concat(), 2, &[expect]);
}

#[test]
fn a_gpu_that_this_program_cannot_use_is_explained() {
    let args = [
        "train",
        "--data",
        "synthetic",
        "--device",
        "cuda",
        "--out",
        "nowhere",
    ];
    check(&args, 1, &["cuda:0", "--features cuda"]);
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
fn a_crop_that_memory_cannot_hold_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = [
        "train",
        "--method",
        "fcn",
        "--data",
        "synthetic",
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
        &args[..5],
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
    let out = folder.path().join("my run");
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
    let hint = format!("`halfseg train --resume --out '{}'`", out.display());
    assert!(stderr(&output).contains(&hint), "{}", stderr(&output));

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
