//! Long jobs take no more memory, files or threads at their end than in their middle.
//!
//! `HALFSEG_SOAK` is the number of iterations (400 unless given) and of pictures that are evaluated; a
//! quarter as many are segmented. Linux only.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "shared with the tests of the program's commands")]
#[path = "program/support.rs"]
mod support;

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use halfseg_data::{RgbImage, write_rgb};
use support::*;

fn iterations() -> u64 {
    std::env::var("HALFSEG_SOAK").map_or(400, |text| text.parse().expect("a number"))
}

/// What a process has at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    kib: u64,
    files: usize,
    threads: usize,
}

impl Use {
    /// Nothing once the process is over.
    fn of(child: &Child) -> Option<Self> {
        let process = format!("/proc/{}", child.id());
        let status = fs::read_to_string(format!("{process}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(Self {
            kib: line.trim().strip_suffix("kB")?.trim().parse().ok()?,
            files: fs::read_dir(format!("{process}/fd")).ok()?.count(),
            threads: fs::read_dir(format!("{process}/task")).ok()?.count(),
        })
    }

    fn max(self, other: Self) -> Self {
        Self {
            kib: self.kib.max(other.kib),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
        }
    }
}

/// Runs the program, which must not grow between a third of its time and its end.
fn check_flat(args: &[&str]) {
    let mut command = halfseg(args);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let mut uses = Vec::new();
    while child.try_wait().unwrap().is_none() {
        uses.extend(Use::of(&child));
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{args:?}: {}",
        stderr(&output)
    );
    assert!(uses.len() > 30, "{} samples of {args:?}", uses.len());
    // The last samples may be those of a process that is ending.
    let (early, late) = uses[..uses.len() - 3].split_at(uses.len() / 3);
    let most = |uses: &[Use]| uses.iter().copied().reduce(Use::max).unwrap();
    let (early, late) = (most(early), most(late));
    println!(
        "{} samples of {}: at most {early:?} in the first third, {late:?} after it",
        uses.len(),
        args[0]
    );
    // Ten times what differs between runs, and far less than a byte a pixel.
    assert!(
        late.kib <= early.kib + early.kib / 20 + 4096,
        "{early:?}, then {late:?}"
    );
    assert!(late.files <= early.files + 2, "{early:?}, then {late:?}");
    assert!(
        late.threads <= early.threads + 1,
        "{early:?}, then {late:?}"
    );
}

#[test]
fn long_jobs_do_not_grow() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (iterations, pictures) = (iterations(), iterations() / 4);

    let out = place("run");
    let number = iterations.to_string();
    let every = [iterations / 20, iterations / 16].map(|every| every.max(1).to_string());
    let tiny = changed(&TINY, &[("--iterations", &number)]);
    let args = train_flags("fcn", "synthetic", &out);
    let often = ["--eval-every", &every[0], "--checkpoint-every", &every[1]];
    check_flat(&[&args[..], &tiny, &often].concat());
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    assert!(
        log.lines()
            .last()
            .unwrap()
            .contains(&format!("\"iteration\":{number}"))
    );

    // A few sizes again and again, in whole and in windows.
    let many = place("many");
    fs::create_dir(&many).unwrap();
    for i in 0..pictures {
        let path = many.join(format!("{i}.png"));
        let first = many.join(format!("{}.png", i % 7));
        match i < 7 {
            true => {
                let size = 24 + 17 * i as usize;
                write_rgb(&path, &RgbImage::filled(size, 150 - size, [90, 120, 10])).unwrap();
            }
            false => fs::hard_link(first, path).unwrap(),
        }
    }
    for how in [
        &["--mode", "whole"][..],
        &["--mode", "slide", "--crop", "32x48"],
    ] {
        let pictures = place(how[1]);
        let args = predict_flags(&out, &pictures);
        check_flat(&[&args[..], &[text(&many)], how].concat());
    }
    let (zip, number) = (place("all.zip"), format!("data.synthetic_val={iterations}"));
    let args = eval_flags(&out, "synthetic");
    check_flat(&[&args[..], &["--zip", text(&zip), "--set", &number]].concat());
}
