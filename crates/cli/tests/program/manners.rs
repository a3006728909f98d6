//! What goes where, what is listed, and what must be said.

use std::fs;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::support::*;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn done(args: &[&str]) -> Output {
    let output = run(args);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{args:?}: {}",
        stderr(&output)
    );
    output
}

#[test]
fn tables_go_to_stdout_and_leave_it_to_json() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    let (predictions, truth) = (folder.path().join("p"), root.join("gtFine/val"));
    let eval = eval_flags(&checkpoint, text(&root));
    let eval = [&eval[..], &["--save-predictions", text(&predictions)]].concat();
    let score = [
        "score",
        "--predictions",
        text(&predictions),
        "--truth",
        text(&truth),
    ];
    let network = ["--method", "fcn", "--backbone", "resnet18"];
    let info = [&["info"], &network[..]].concat();
    let bench = [
        "--size",
        "32x64",
        "--iterations",
        "1",
        "--peak-gflops",
        "50",
    ];
    let bench = [&["bench"], &network[..], &bench].concat();
    let audit = [
        &["audit", "--method", "fcn", "--data", "synthetic"],
        &TINY[..],
    ]
    .concat();
    for (args, row) in [
        (&eval[..], "aAcc"),
        (&score[..], "2 images: mIoU"),
        (&info[..], "maps in f16"),
        (&bench[..], "images/s"),
        (&audit[..], "weight casts reused"),
    ] {
        let plain = done(args);
        assert!(stdout(&plain).contains(row), "{args:?}: {}", stdout(&plain));
        assert!(
            !stderr(&plain).contains(row),
            "{args:?}: {}",
            stderr(&plain)
        );
        let json = done(&[args, &["--json", "-"]].concat());
        assert!(
            serde_json::from_slice::<Value>(&json.stdout).is_ok(),
            "{}",
            stdout(&json)
        );
        assert!(stderr(&json).contains(row), "{args:?}: {}", stderr(&json));
        // Nothing but the result, with JSON or without.
        let quiet = done(&[args, &["-q"]].concat());
        assert!(stdout(&quiet).contains(row), "{args:?}: {}", stdout(&quiet));
        let quiet_json = done(&[args, &["--json", "-", "--quiet"]].concat());
        assert_eq!(stderr(&quiet) + &stderr(&quiet_json), "", "{args:?}");
    }
    let said = stderr(&done(&[&eval[..], &["-v"]].concat()));
    assert!(
        said.contains("[eval]") && said.contains("town_000001_000000"),
        "{said}"
    );
    check(
        &[&info[..], &["-q", "-v"]].concat(),
        2,
        &["--quiet", "--verbose"],
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for args in [
        &["info"][..],
        &["config"],
        &["completions", "bash"],
        &["man"],
    ] {
        let mut child = halfseg(args).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert!(child.wait().unwrap().success(), "{args:?}");
    }
}

#[test]
fn what_the_data_are_must_be_said() {
    let folder = tempfile::tempdir().unwrap();
    let expect = ["--data PATH", "--data synthetic"];
    let out = folder.path().join("out");
    let train = ["train", "--method", "fcn", "--out", text(&out)];
    let (file, silent) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
    fs::write(&file, "data.source = 'synthetic'").unwrap();
    fs::write(&silent, "[data]\nflip = 0.0").unwrap();
    check(&train, 2, &expect);
    check(
        &[&train[..], &["--config", text(&silent)]].concat(),
        2,
        &expect,
    );
    check(&["eval", "--checkpoint", "x.pth"], 2, &expect);
    assert!(!out.exists());
    // Each of these says it: the next thing that is wrong is the crop.
    for says in [
        ["--data", "synthetic"],
        ["--set", "data.source=synthetic"],
        ["--config", text(&file)],
    ] {
        let crop = ["--crop", "400000x400000"];
        check(&[&train[..], &says, &crop].concat(), 1, &["400000x400000"]);
    }
}

#[test]
fn values_are_listed_by_help_completions_and_the_manual() {
    let help = stdout(&done(&["train", "--help"]));
    for values in [
        "[possible values: fcn, pspnet, deeplabv3, deeplabv3plus]",
        "[possible values: resnet18, resnet34, resnet50, resnet101, resnet152]",
        "[possible values: f32, f16, bf16]",
        "[possible values: cpu, flex, cuda, wgpu]",
    ] {
        assert!(help.contains(values), "expected `{values}` in:\n{help}");
    }
    let help = stdout(&done(&["predict", "--help"]));
    assert!(help.contains("whole") && help.contains("slide"), "{help}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&done(&["completions", shell]));
        assert!(script.contains("save-predictions"), "{shell}");
        // The others complete commands and flags alone.
        if ["bash", "zsh", "fish"].contains(&shell) {
            for word in ["deeplabv3plus", "resnet152", "mmcv-static"] {
                assert!(script.contains(word), "{shell} lacks {word}");
            }
        }
    }
    check(&["completions", "tcsh"], 2, &["bash", "zsh"]);

    assert!(stdout(&done(&["man"])).contains(".TH halfseg 1"));
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    done(&["man", "--out", text(&pages)]);
    for page in ["halfseg.1", "halfseg-train.1", "halfseg-completions.1"] {
        assert!(
            fs::read_to_string(pages.join(page))
                .unwrap()
                .contains(".SH OPTIONS"),
            "{page}"
        );
    }
    let train = fs::read_to_string(pages.join("halfseg-train.1")).unwrap();
    assert!(train.contains("deeplabv3plus"), "{train}");
}

#[test]
fn the_version_tells_commit_and_backends() {
    let version = stdout(&done(&["--version"]));
    let start = format!("halfseg {} (commit ", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&start), "{version}");
    assert!(version.contains("; backends flex"), "{version}");
    let gpus = (cfg!(feature = "cuda"), cfg!(feature = "wgpu"));
    assert_eq!(
        (version.contains("cuda"), version.contains("wgpu")),
        gpus,
        "{version}"
    );
}

#[test]
fn the_cpu_goes_by_its_own_name_and_by_its_backends() {
    for name in ["cpu", "flex"] {
        for flags in [["--device", name], ["--set", &format!("device={name}")]] {
            let printed = stdout(&done(&[&["config"], &flags[..]].concat()));
            assert!(printed.contains("device = \"flex\""), "{printed}");
        }
    }
    check(
        &["config", "--device", "gpu"],
        2,
        &["--device", "cpu", "cuda:N"],
    );
}

#[test]
fn no_color_is_heeded() {
    let help = |no_color: &str| {
        let mut command = halfseg(&["--help"]);
        let command = command.env("CLICOLOR_FORCE", "1").env("NO_COLOR", no_color);
        command.output().unwrap().stdout.contains(&0x1b)
    };
    assert!(help("") && !help("1"));
}

/// Only regular files are replaced.
#[cfg(unix)]
#[test]
fn results_go_through_links_and_into_pipes() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::process::Command;
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (
        folder.path().join("target.json"),
        folder.path().join("link"),
    );
    fs::write(&target, "old").unwrap();
    symlink("target.json", &link).unwrap();
    done(&["info", "--json", text(&link)]);
    assert!(link.is_symlink());
    let written = fs::read(&target).unwrap();
    assert!(serde_json::from_slice::<Value>(&written).is_ok());

    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let reader = Command::new("cat")
        .arg(&pipe)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    done(&["info", "--json", text(&pipe)]);
    assert_eq!(reader.wait_with_output().unwrap().stdout, written);
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
}

#[test]
fn what_is_read_and_what_a_run_has_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(&folder, "fcn");
    let at = |name: &str| text(&run.join(name)).to_owned();
    let (best, log, new) = (at("best.safetensors"), at("log.jsonl"), at("scores.json"));
    let picture = at("pictures/street_000000_color.png");
    let next = folder.path().join("next");
    let later = text(&next.join("best.safetensors")).to_owned();
    fs::create_dir(&next).unwrap();
    let eval = eval_flags(&run, "synthetic");
    let train = [&train_flags("fcn", "synthetic", &next)[..], &TINY].concat();
    let plot = ["plot", text(&run), "--out"];
    for args in [
        [&eval[..], &["--json", &best]].concat(),
        [&eval[..], &["--zip", &log]].concat(),
        [&eval[..], &["--confusion", &new]].concat(),
        [&eval[..], &["--json", &picture]].concat(),
        [&train[..], &["--json", &later]].concat(),
        [&plot[..], &[&log]].concat(),
        [&plot[..], &["x.svg", "--csv", &best]].concat(),
        vec!["export", "--checkpoint", text(&run), "--out", &best],
        vec!["audit", "--checkpoint", text(&run), "--policy", &log],
        vec!["info", "--checkpoint", &best, "--json", &best],
    ] {
        let all = || [&best, &log, &new, &picture].map(|path| fs::read(path).unwrap());
        let before = all();
        check(&args, 1, &["cannot write", text(folder.path())]);
        assert!(all() == before, "{args:?}");
    }
    // A run without a manifest, as of an earlier version.
    fs::remove_file(at("run.json")).unwrap();
    check(
        &[&eval[..], &["--json", &best]].concat(),
        1,
        &["cannot write"],
    );
    check(&[&eval[..], &["--json", &at("eval.json")]].concat(), 0, &[]);
}

#[test]
fn settings_without_effect_are_said_and_impossible_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(&folder, "fcn");
    let eval = eval_flags(&run, "synthetic");
    let crop = ["--crop", "16x16", "--set", "train.batch=4"];
    let expect = [
        "warning: --crop has no effect without --mode slide",
        "warning: --set train.batch has no effect here",
    ];
    check(&[&eval[..], &crop].concat(), 0, &expect);
    let said = check(
        &[&eval[..], &crop[..2], &["--mode", "slide"]].concat(),
        0,
        &[],
    );
    assert!(!said.contains("no effect"), "{said}");

    for how in [&[][..], &["--train"]] {
        let bench = ["bench", "--size", "900000x900000"];
        check(
            &[&bench[..], how].concat(),
            1,
            &["needs", "GiB are available"],
        );
    }
    let output = halfseg(&["zoo"]).env("HALFSEG_ZOO", "/dev/zero").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("at most 16 MiB"));
}

#[cfg(not(feature = "mpi"))]
#[test]
fn processes_of_a_launcher_are_refused_by_a_build_that_cannot_join_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut train = halfseg(&["train", "--data", "nowhere", "--out", text(&out)]);
    train.env("OMPI_COMM_WORLD_SIZE", "2");
    for (rank, alone, expected) in [
        ("0", false, "built without MPI"),
        ("1", false, ""),
        ("1", true, "nowhere"),
    ] {
        train.env("OMPI_COMM_WORLD_RANK", rank);
        train.env("HALFSEG_RANKS", if alone { "alone" } else { "" });
        let output = train.output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(
            said.is_empty(),
            expected.is_empty(),
            "one speaks for all: {said}"
        );
    }
    assert!(!out.exists());
}
