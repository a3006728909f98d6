//! `halfseg config`, and flags that cannot be.

use std::fs;

use crate::support::*;

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
    for classes in ["0", "1", "256"] {
        check(&["config", "--classes", classes], 2, &[classes, "2..=255"]);
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

#[test]
fn what_a_checkpoint_says_is_not_said_again() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let config = checkpoint.join("config.toml");
    let info = ["info", "--checkpoint", text(&checkpoint)];
    for flags in [
        ["--set", "model.head_channels=16"],
        ["--config", text(&config)],
    ] {
        let expect = ["--checkpoint", flags[0], "leave one out"];
        check(&[&info[..], &flags].concat(), 2, &expect);
    }
    // Nor is it replaced by what is said of it.
    let info = ["info", "--config", text(&config), "--json", text(&config)];
    check(&info, 1, &["config.toml", "expected a file of its own"]);
}

/// A pipe can be read once: what it says must not be lost to a first look at it.
#[cfg(unix)]
#[test]
fn a_configuration_may_come_through_a_pipe() {
    use std::io::Write;
    use std::process::Stdio;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let through = |args: &[&str], text: &str| {
        let mut command = halfseg(&[args, &["--config", "/dev/stdin"]].concat());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let printed = through(&["config"], "seed = 77");
    assert!(String::from_utf8_lossy(&printed.stdout).contains("seed = 77"));
    let info = through(&["info"], "model.method = 'pspnet'");
    let table = String::from_utf8_lossy(&info.stdout);
    assert!(table.starts_with("pspnet"), "{table}{}", stderr(&info));
    let trained = through(&["train", "--out", text(&out)], "data.source = 'nowhere'");
    assert_eq!(trained.status.code(), Some(1), "{}", stderr(&trained));
    assert!(
        stderr(&trained).contains("nowhere/leftImg8bit"),
        "{}",
        stderr(&trained)
    );
    check(
        &["config", "--config", "/dev/zero"],
        1,
        &["/dev/zero", "at most 16 MiB"],
    );
    check(
        &["config", "--policy", "/dev/zero"],
        1,
        &["/dev/zero", "at most 16 MiB"],
    );
    let long = format!("{}=1", "a".repeat(100_000));
    check(
        &["config", "--set", &long],
        2,
        &["unknown key", "and so on"],
    );
}
