//! `halfseg train`: what it begins with, what it survives, how it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    let train = train_flags("fcn", "synthetic", &out);
    // No f16 gradient survives this scale.
    let flags = ["--loss-scale", "1e30", "--set", "train.max_skipped=9"];
    let overflow = "skipped, backward overflow at scale";
    let said = check(&[&train[..], &TINY, &flags].concat(), 0, &[overflow]);
    let skips = logged(&out, "skip");
    assert_eq!(skips.len(), 2, "{skips:?}");
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
        let begun = logged(&out, "start").swap_remove(0);
        let scale = logged(&out, "train")[0]["scale"].as_f64();
        (said, begun["loss_scaling"].clone(), scale)
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
        let begin = train_flags("pspnet", "synthetic", &out);
        check(
            &[&begin[..], &TINY, &["--precision", "f32"], flags].concat(),
            0,
            &[],
        );
        let lines = logged(&out, "train");
        lines
            .iter()
            .map(|line| line["loss"].as_f64().unwrap())
            .collect()
    };
    let alone = losses("alone", &["--device", "flex"]);
    let shared = losses("shared", &["--devices", "flex,flex"]);
    assert_eq!(alone.len(), 2);
    for (alone, shared) in alone.iter().zip(shared) {
        assert!((alone - shared).abs() < 1e-5 * alone, "{alone}, {shared}");
    }
    assert_eq!(alone, losses("recomputed", &["--gradient-checkpointing"]));

    let out = folder.path().join("three");
    let begin = train_flags("fcn", "synthetic", &out);
    let three = ["--devices", "flex,flex,flex"];
    let expect = "a multiple of 3, the number of devices, found 2";
    check(&[&begin[..], &TINY, &three].concat(), 2, &[expect]);
}

/// The recipe that a run has written.
fn config_of(run: &Path) -> toml::Table {
    fs::read_to_string(run.join("config.toml"))
        .unwrap()
        .parse()
        .unwrap()
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_resumed_run_stays_on_its_devices_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let begin = train_flags("fcn", "synthetic", &out);
    let devices = ["--devices", "cpu,cpu"];
    check(
        &[&begin[..], &TINY, &devices].concat(),
        0,
        &["shared with flex"],
    );
    let resume = ["train", "--resume", "--out", text(&out), "--iterations"];
    check(&[&resume[..], &["3"]].concat(), 0, &["shared with flex"]);
    assert_eq!(
        config_of(&out)["further_devices"].as_array().map(Vec::len),
        Some(1)
    );
    let said = check(&[&resume[..], &["4", "--device", "cpu"]].concat(), 0, &[]);
    assert!(!said.contains("shared with"), "{said}");
    check(
        &[&resume[..], &["5", "--device", "cuda"]].concat(),
        1,
        &["--features cuda"],
    );
}

#[test]
fn how_often_is_evaluated_says_nothing_of_checkpoints() {
    let printed = |flags: &[&str]| -> toml::Table {
        let output = run(&[&["config"], flags].concat());
        String::from_utf8(output.stdout).unwrap().parse().unwrap()
    };
    let every = |config: &toml::Table, key: &str| config["train"][key].as_integer();
    let published = printed(&[]);
    for evaluation in ["0", "5"] {
        let config = printed(&["--eval-every", evaluation]);
        assert_eq!(every(&config, "eval_every"), evaluation.parse().ok());
        assert_eq!(
            every(&config, "checkpoint_every"),
            every(&published, "checkpoint_every")
        );
    }
}

#[test]
fn paths_in_any_script_are_kept_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    // Decomposed accents, Devanagari, joined emoji, quotes, a backslash.
    for name in [
        "u\u{308}ber",
        "\u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940}",
        "\u{1f468}\u{200d}\u{1f469}",
        "a \"b\" 'c' \\n",
    ] {
        let data = folder.path().join(name);
        let output = run(&["config", "--data", text(&data)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let config: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
        assert_eq!(config["data"]["source"].as_str(), Some(text(&data)));
    }
}

#[test]
fn a_file_that_could_not_be_written_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing/x.json");
    let json = ["--json", text(&missing)];
    let out = folder.path().join("out");
    let train = train_flags("fcn", "synthetic", &out);
    for args in [
        &[&train[..], &TINY].concat()[..],
        &["eval", "--checkpoint", "nowhere.pth", "--data", "synthetic"],
        &["score", "--predictions", "nowhere", "--truth", "nowhere"],
        &["audit", "--data", "synthetic", "--crop", "400000x400000"],
        &["bench", "--size", "100000x100000"],
        &["info"],
    ] {
        let said = check(&[args, &json].concat(), 1, &["x.json", "expected a folder"]);
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(!out.exists());
    // One of another, and what is read.
    let checkpoint = trained(&folder, "fcn").join("best.safetensors");
    let before = fs::read(&checkpoint).unwrap();
    let (one, same) = (folder.path().join("x"), folder.path().join("./x"));
    let eval = [
        "eval",
        "--data",
        "synthetic",
        "--checkpoint",
        text(&checkpoint),
    ];
    for files in [
        [("--json", &one), ("--zip", &same)],
        [("--json", &checkpoint), ("--zip", &one)],
    ] {
        let files = files.map(|(flag, path)| [flag, text(path)]).concat();
        let said = check(
            &[&eval[..], &files].concat(),
            1,
            &["expected a file of its own"],
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(fs::read(&checkpoint).unwrap() == before);
    let here = ["info", "--json", text(folder.path())];
    check(&here, 1, &["expected a file, found a folder"]);
}

/// Only those who can stop at a good moment promise to.
#[cfg(unix)]
#[test]
fn an_interrupted_audit_ends_at_once_and_promises_nothing() {
    let flags = [
        "audit",
        "--data",
        "synthetic",
        "--backbone",
        "resnet18",
        "-v",
    ];
    let mut child = halfseg(&flags).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    // Its version is the first that it says, when it is ready for signals.
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    signal(&child, "-INT");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{line}{rest}");
    assert_eq!(rest.trim(), "interrupted");
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
        .args(["-c", "ulimit -f 64; exec \"$0\" \"$@\""])
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
    let args = train_flags("fcn", "synthetic", &out);
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
    let args = train_flags("fcn", "synthetic", &out);
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
    let args = train_flags("fcn", "synthetic", &out);
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
    signal(&child, "-INT");
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

/// A first run that left its best weights and no checkpoint, and a second one with another network.
#[test]
fn what_a_folder_means_belongs_to_the_run_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = trained(&folder, "fcn");
    fs::remove_file(out.join("last_checkpoint")).unwrap();
    let begin = train_flags("pspnet", "synthetic", &out);
    let begin = [&begin[..], &TINY].concat();
    let best = fs::read(out.join("best.safetensors")).unwrap();
    check(&begin, 1, &["best.safetensors", "--overwrite"]);
    assert!(fs::read(out.join("best.safetensors")).unwrap() == best);
    check(&[&begin[..], &["--overwrite"]].concat(), 0, &["mIoU"]);
    check(
        &["eval", "--checkpoint", text(&out), "--data", "synthetic"],
        0,
        &["pspnet on"],
    );

    let resume = ["train", "--resume", "--out", text(&out)];
    let weights = ["--checkpoint", text(&out)];
    check(
        &[&resume[..], &weights].concat(),
        2,
        &["--resume with --checkpoint"],
    );
    check(
        &[&resume[..], &["--overwrite"]].concat(),
        2,
        &["--overwrite"],
    );
    check(
        &[&resume[..], &["--batch", "4"]].concat(),
        2,
        &["`train.batch`", "expected 2"],
    );
}

#[test]
fn a_configuration_that_was_edited_is_not_lost_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let out = trained(&folder, "fcn");
    let config = out.join("config.toml");
    let before = fs::read_to_string(&config).unwrap();
    let resume = ["train", "--resume", "--out", text(&out)];
    let said = check(&resume, 0, &[]);
    assert!(!said.contains("config.toml says"), "{said}");
    fs::write(&config, before.replace("lr = 0.01", "lr = 0.5")).unwrap();
    check(&resume, 0, &["config.toml says something else", "--set"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), before);
}
