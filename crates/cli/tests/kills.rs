//! Training that is killed, stopped and doubled from outside, against training that is left alone.
//!
//! `HALFSEG_KILLS` sets the number of kills (20 unless given), `HALFSEG_SEED` their moments.

#![cfg(unix)]

mod compared;
#[allow(dead_code, reason = "shared with the tests of the program's commands")]
#[path = "program/support.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use compared::{Moments, check_same, log, wait_for};
use support::{changed, halfseg, text};
use tempfile::TempDir;

/// A run of about a second, with checkpoints, evaluations and lines of the log out of step.
const RUN: [&str; 40] = [
    "--method",
    "fcn",
    "--data",
    "synthetic",
    "--backbone",
    "resnet18",
    "--set",
    "model.stem_channels=8",
    "--set",
    "model.base_channels=4",
    "--set",
    "model.head_channels=8",
    "--set",
    "model.aux_channels=8",
    "--set",
    "data.synthetic_train=5",
    "--set",
    "data.synthetic_val=6",
    "--set",
    "train.pictures=1",
    "--scale",
    "64x32",
    "--crop",
    "32x32",
    "--batch",
    "2",
    "--set",
    "train.log_every=4",
    "--loss-scale",
    "torch",
    "--ema",
    "0.9",
    "--eval-every",
    "6",
    "--checkpoint-every",
    "5",
    "--keep",
    "2",
    "--iterations",
    "27",
];
const LAST: u64 = 27;

fn train(out: &Path, how: &[&str]) -> Command {
    let mut command = halfseg(&["train", "--out", text(out)]);
    command.args(how).env("RAYON_NUM_THREADS", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Begins a run of `how`, or goes on with it where that can be done.
fn go_on(out: &Path, how: &[&str]) -> Child {
    let arguments = match out.join("last_checkpoint").exists() {
        true => vec!["--resume"],
        // What a run that was killed before its first checkpoint left is in the way.
        false => [how, &["--overwrite"]].concat(),
    };
    train(out, &arguments).spawn().expect("the program starts")
}

fn signal(child: &Child, name: &str) {
    let arguments = [format!("-{name}"), child.id().to_string()];
    // It may have ended by itself.
    let _ = Command::new("kill")
        .args(arguments)
        .stderr(Stdio::null())
        .status();
}

fn ended(child: Child) -> (ExitStatus, String) {
    let output = child.wait_with_output().expect("the program ends");
    (
        output.status,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn check_ended(child: Child, code: i32, expected: &str) -> String {
    let (status, said) = ended(child);
    assert_eq!(status.code(), Some(code), "{said}");
    assert!(said.contains(expected), "expected `{expected}` in:\n{said}");
    said
}

/// The run that is left alone, and how long it takes.
fn left_alone(folder: &TempDir, how: &[&str]) -> (PathBuf, Duration) {
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    let child = train(&whole, how).spawn().expect("the program starts");
    check_ended(child, 0, "mIoU");
    (whole, begun.elapsed())
}

#[test]
fn a_run_that_is_killed_again_and_again_is_the_run_that_was_left_alone() {
    let kills = std::env::var("HALFSEG_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (whole, time) = left_alone(&folder, &RUN);
    let mut moments = Moments::new();
    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        runs += 1;
        let out = folder.path().join(format!("run-{runs}"));
        // So many in one run, and it may end.
        let mut left = 2 + moments.next() % 6;
        loop {
            let mut child = go_on(&out, &RUN);
            if left == 0 || killed == kills {
                check_ended(child, 0, "mIoU");
                break;
            }
            std::thread::sleep(moments.within(time.mul_f64(0.8)));
            if child.try_wait().unwrap().is_some() {
                check_ended(child, 0, "mIoU");
                break;
            }
            let how = ["KILL", "KILL", "KILL", "TERM", "INT INT"][(moments.next() % 5) as usize];
            for name in how.split(' ') {
                signal(&child, name);
            }
            let (status, said) = ended(child);
            let expected = [None, Some(0), Some(130)];
            assert!(
                expected.contains(&status.code()),
                "{how}, {status}:\n{said}"
            );
            killed += 1;
            left -= 1;
        }
        check_same(
            &whole,
            &out,
            LAST,
            &format!("run {runs}, after {killed} kills"),
        );
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn an_evaluation_that_is_ended_is_made_up() {
    let folder = tempfile::tempdir().unwrap();
    let how = [&RUN[..], &["--set", "data.synthetic_val=60"]].concat();
    let (whole, _) = left_alone(&folder, &how);
    // The one of iteration 12, and the last.
    for at in [12, LAST] {
        for name in ["TERM", "KILL"] {
            let out = folder.path().join(format!("{name}-{at}"));
            let mut child = train(&out, &how).spawn().unwrap();
            let last = format!("iter_{at}.safetensors");
            wait_for(&mut child, "the checkpoint before the evaluation", || {
                fs::read_to_string(out.join("last_checkpoint")).is_ok_and(|name| name == last)
            });
            signal(&child, name);
            let (status, said) = ended(child);
            let expected = if name == "TERM" { Some(130) } else { None };
            assert_eq!(status.code(), expected, "{said}");
            let evaluations = |out: &Path| {
                let lines = log(out);
                lines
                    .iter()
                    .filter(|line| line.contains("\"eval\""))
                    .count()
            };
            assert!(
                evaluations(&out) < evaluations(&whole),
                "the evaluation was over: give it more pictures"
            );
            check_ended(go_on(&out, &how), 0, "mIoU");
            check_same(&whole, &out, LAST, &format!("{name} at {at}"));
        }
    }
}

#[test]
fn two_processes_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let long = changed(&RUN, &[("--iterations", "1000000"), ("--eval-every", "0")]);
    let mut first = train(&out, &long).spawn().unwrap();
    wait_for(&mut first, "a checkpoint", || {
        out.join("last_checkpoint").exists()
    });
    let id = first.id().to_string();
    for how in [&["--resume"][..], &[&long[..], &["--overwrite"]].concat()] {
        let said = check_ended(train(&out, how).spawn().unwrap(), 1, "is in use");
        assert!(said.contains(&id), "expected {id} in:\n{said}");
    }
    signal(&first, "KILL");
    ended(first);
    let mut again = train(&out, &["--resume"]).spawn().unwrap();
    let lines = || fs::read_to_string(out.join("log.jsonl")).map_or(0, |log| log.lines().count());
    let before = lines();
    wait_for(&mut again, "lines of the log", || lines() > before + 1);
    signal(&again, "TERM");
    check_ended(again, 130, "--resume");
}

#[test]
fn of_two_new_runs_at_once_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, _) = left_alone(&folder, &RUN);
    for round in 0..3 {
        let out = folder.path().join(format!("run-{round}"));
        let both = [(); 2].map(|()| train(&out, &RUN).spawn().unwrap());
        let mut both = both.map(ended);
        both.sort_by_key(|(status, _)| status.code());
        let codes = both.each_ref().map(|(status, _)| status.code());
        assert_eq!(codes, [Some(0), Some(1)], "{}\n{}", both[0].1, both[1].1);
        let said = &both[1].1;
        assert!(
            said.contains("is in use") || said.contains("already holds a run"),
            "{said}"
        );
        check_same(&whole, &out, LAST, "the one that won");
    }
}
