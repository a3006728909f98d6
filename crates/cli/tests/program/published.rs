//! `halfseg zoo`, `zoo:NAME` and `--preset`. No test opens a connection to another machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// The program with a cache of its own, and without the environment's.
fn with_cache(folder: &TempDir, args: &[&str]) -> Command {
    let mut command = halfseg(args);
    for name in [
        "HALFSEG_MIRROR",
        "HALFSEG_ZOO",
        "HALFSEG_OFFLINE",
        "ALL_PROXY",
        "HTTP_PROXY",
    ] {
        command.env_remove(name);
    }
    command.env("HALFSEG_CACHE", folder.path().join("cache"));
    command
}

fn said(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the program starts");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    String::from_utf8(output.stdout).unwrap() + &said
}

/// Serves `content` under every name to one connection after the other.
fn serve(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .for_each(drop);
            let length = content.len();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&content);
        }
    });
    address
}

/// A table whose one entry, `tiny`, is a file at `address`, with these digits in its name.
fn table(folder: &TempDir, address: &str, digits: &str) -> std::path::PathBuf {
    let path = folder.path().join("own.tsv");
    let line = format!(
        "tiny\t-\tfcn\tR-18-D8\tnothing\t-\t-\tf32\t-\t-\t-\t{address}/tiny-{digits}.pth\t-\n"
    );
    fs::write(&path, line).unwrap();
    path
}

/// The first digits of a file's SHA-256, by the system's own program; `None` where there is none.
fn digits(path: &Path) -> Option<String> {
    let output = Command::new("sha256sum").arg(path).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.get(..8).map(str::to_owned)
}

#[test]
fn the_list_has_the_four_models_and_their_backbones() {
    let folder = tempfile::tempdir().unwrap();
    let list = said(&mut with_cache(&folder, &["zoo"]), 0);
    for text in [
        "fcn_r101-d8_512x1024_80k_fp16_cityscapes",
        "76.80",
        "79.46",
        "80.48",
        "80.46",
        "resnet101_v1c",
    ] {
        assert!(list.contains(text), "{text}: {list}");
    }
    let json = said(
        &mut with_cache(
            &folder,
            &["zoo", "deeplabv3plus", "mg124", "--json", "-", "-q"],
        ),
        0,
    );
    let json: Value = serde_json::from_str(&json).unwrap();
    let entries = json.as_array().unwrap();
    assert!(!entries.is_empty());
    for entry in entries {
        assert_eq!(entry["method"], "deeplabv3plus");
        assert!(entry["url"].as_str().unwrap().starts_with("https://"));
        assert_eq!(entry["here"], false);
    }
    said(&mut with_cache(&folder, &["zoo", "no such model"]), 1);
    said(&mut with_cache(&folder, &["zoo", "--fetch"]), 2);
}

#[test]
fn without_a_network_the_file_and_its_place_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let name = "fcn_r101-d8_512x1024_80k_fp16_cityscapes";
    let weights = format!("zoo:{name}");
    let file = folder
        .path()
        .join("cache")
        .join(format!("{name}-50245227.pth"));
    let picture = folder.path().join("picture.png");
    write_png(&picture, (8, 8), png::ColorType::Rgb, &[0; 192]);
    let out = folder.path().join("out");
    for args in [
        vec![
            "predict",
            "--checkpoint",
            &weights,
            "--out",
            text(&out),
            text(&picture),
        ],
        vec!["eval", "--checkpoint", &weights, "--data", "synthetic"],
        vec![
            "train",
            "--backbone-weights",
            &weights,
            "--data",
            "synthetic",
            "--out",
            text(&out),
        ],
        vec!["info", "--checkpoint", &weights],
        vec!["zoo", "--fetch", name],
    ] {
        let args = [&args[..], &["--offline"]].concat();
        let said = said(&mut with_cache(&folder, &args), 1);
        for expected in [text(&file), "https://download.openmmlab.com/", "offline"] {
            assert!(said.contains(expected), "{args:?}: {said}");
        }
    }
    let said = said(
        &mut with_cache(&folder, &["info", "--checkpoint", "zoo:fcn_r101_80k_fp16"]),
        1,
    );
    assert!(said.contains("the nearest are fcn_r101"), "{said}");
}

#[test]
fn a_published_checkpoint_is_fetched_once_and_used_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let weights = recorded("recordings/fcn/model.pth");
    let Some(digits) = digits(&weights) else {
        eprintln!("skipped: there is no sha256sum");
        return;
    };
    let address = serve(fs::read(&weights).unwrap());
    let table = table(&folder, &address, &digits);
    let picture = folder.path().join("picture.png");
    write_png(&picture, (32, 16), png::ColorType::Rgb, &[90; 32 * 16 * 3]);
    let out = folder.path().join("out");
    let args = predict_flags(Path::new("zoo:tiny"), &out);
    let args = [&args[..], &[text(&picture)]].concat();
    let first = said(with_cache(&folder, &args).env("HALFSEG_ZOO", &table), 0);
    assert!(
        first.contains(&format!("fetching {address}/tiny")),
        "{first}"
    );
    assert!(out.join("picture_color.png").is_file());
    // It is here now.
    let again = [&args[..], &["--offline"]].concat();
    let said_again = said(with_cache(&folder, &again).env("HALFSEG_ZOO", &table), 0);
    assert!(!said_again.contains("fetching"), "{said_again}");
    // A file that changed is not used.
    let file = folder
        .path()
        .join("cache")
        .join(format!("tiny-{digits}.pth"));
    fs::write(&file, "other").unwrap();
    let changed = said(with_cache(&folder, &args).env("HALFSEG_ZOO", &table), 1);
    assert!(changed.contains("SHA-256"), "{changed}");
}

#[test]
fn training_starts_from_a_backbone_alone_and_says_what_it_left() {
    let folder = tempfile::tempdir().unwrap();
    let weights = recorded("recordings/fcn/model.pth");
    let out = folder.path().join("run");
    let args = [
        &train_flags("pspnet", "synthetic", &out)[..],
        &["--backbone-weights", text(&weights)],
        &TINY,
        &[
            "--set",
            "model.stem_channels=4",
            "--set",
            "model.base_channels=2",
        ],
    ]
    .concat();
    let said = check(&args, 0, &["unexpected, ignored: auxiliary_head."]);
    assert!(said.contains("missing, left as drawn"), "{said}");
    let both = [&args[..], &["--checkpoint", text(&weights)]].concat();
    check(&both, 2, &["cannot be used with"]);
}

#[test]
fn a_preset_is_the_published_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let name = "deeplabv3_r101-d8_512x1024_80k_fp16_cityscapes";
    // What the recipe starts from must be on this machine.
    let args = ["config", "--preset", name, "--offline"];
    let missing = said(&mut with_cache(&folder, &args), 1);
    assert!(missing.contains("resnet101_v1c-e67eebb6.pth"), "{missing}");
    // With weights of one's own nothing is fetched.
    let own = recorded("recordings/fcn/model.pth");
    let args = [&args[..], &["--backbone-weights", text(&own)]].concat();
    let toml = said(&mut with_cache(&folder, &args), 0);
    assert!(!cache.exists());
    let recipe: toml::Table = toml
        .lines()
        .take_while(|line| !line.starts_with("warning"))
        .collect::<Vec<_>>()
        .join("\n")
        .parse()
        .unwrap();
    let at = |table: &str, key: &str| recipe[table][key].clone();
    assert_eq!(at("train", "batch"), 8.into());
    assert_eq!(at("schedule", "iterations"), 80_000.into());
    assert_eq!(at("precision", "dtype"), "f16".into());
    assert_eq!(at("model", "method"), "deeplabv3".into());
    assert_eq!(recipe["backbone_weights"].as_str(), Some(text(&own)));
    assert!(!toml.contains("warning"), "{toml}");
    // Another effective batch is told.
    let args = [&args[..], &["--batch", "2"]].concat();
    let warned = said(&mut with_cache(&folder, &args), 0);
    assert!(warned.contains("8 images an iteration"), "{warned}");
    // Others are refused by name.
    for (name, expected) in [
        ("fcn_r50-d8_769x769_80k_cityscapes", "crops of 769x769"),
        ("resnet101_v1c", "ImageNet"),
    ] {
        let refused = said(&mut with_cache(&folder, &["config", "--preset", name]), 2);
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn a_batch_in_parts_is_told_and_must_have_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = [
        &train_flags("fcn", "synthetic", &out)[..],
        &TINY,
        &["--set", "train.batch=4", "--accumulate", "2"],
    ]
    .concat();
    check(&args, 0, &["mIoU"]);
    let args = changed(&args, &[("--accumulate", "3")]);
    let args = [&args[..], &["--overwrite"]].concat();
    check(&args, 2, &["train.accumulate", "4 images"]);
}
