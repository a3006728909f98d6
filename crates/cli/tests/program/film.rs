//! `halfseg predict --video`, with ffmpeg where it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// Whether the programs are there; says so where they are not.
fn has_ffmpeg() -> bool {
    let runs = |name: &str| {
        let run = Command::new(name)
            .arg("-version")
            .stdout(Stdio::null())
            .status();
        run.is_ok_and(|status| status.success())
    };
    let both = runs("ffmpeg") && runs("ffprobe");
    if !both {
        eprintln!("skipped: ffmpeg and ffprobe are not installed");
    }
    both
}

fn ffmpeg(args: &[&str]) {
    let run = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-y"])
        .args(args)
        .status();
    assert!(run.unwrap().success(), "{args:?}");
}

/// What ffprobe says of a film's streams, with frames counted.
fn streams(path: &Path) -> Vec<Value> {
    let entries =
        "stream=codec_type,codec_name,width,height,avg_frame_rate,nb_read_frames,duration";
    let output = Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_frames",
            "-of",
            "json",
            "-show_entries",
            entries,
        ])
        .arg(path)
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    found["streams"].as_array().unwrap().clone()
}

/// A film of a second, 70x47 at 12 frames a second, with a tone.
fn film(folder: &TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    let (pictures, sound) = ("testsrc=size=70x47:rate=12:duration=1", "sine=duration=1");
    let inputs = ["-f", "lavfi", "-i", pictures, "-f", "lavfi", "-i", sound];
    ffmpeg(
        &[
            &inputs[..],
            &["-pix_fmt", "yuv444p", "-c:a", "aac", text(&path)],
        ]
        .concat(),
    );
    path
}

fn flags<'a>(checkpoint: &'a Path, video: &'a str, out: &'a Path) -> Vec<&'a str> {
    [&predict_flags(checkpoint, out)[..], &["--video", video]].concat()
}

#[test]
fn a_film_keeps_its_frames_its_rate_and_its_sound() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let source = film(&folder, "-a film: of its own.mp4");
    let out = folder.path().join("out.mkv");
    let args = flags(&checkpoint, text(&source), &out);
    check(&args, 0, &["12 frames segmented", "out.mkv"]);
    let found = streams(&out);
    let of = |kind: &str| {
        found
            .iter()
            .find(|stream| stream["codec_type"] == kind)
            .unwrap()
    };
    let video = of("video");
    assert_eq!(video["nb_read_frames"], "12");
    assert_eq!(video["avg_frame_rate"], "12/1");
    // Even sides, which players ask for.
    assert_eq!(
        (&video["width"], &video["height"]),
        (&70.into(), &48.into())
    );
    assert_eq!(of("audio")["codec_name"], "aac");
    // Nothing is left beside it.
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["-a film: of its own.mp4", "fcn", "out.mkv"]);

    // The pictures are those that `predict` makes of the frames.
    let frame = folder.path().join("frame.png");
    ffmpeg(&["-i", text(&out), "-frames:v", "1", text(&frame)]);
    let first = folder.path().join("first.png");
    ffmpeg(&[
        "-i",
        &format!("file:{}", text(&source)),
        "-frames:v",
        "1",
        text(&first),
    ]);
    let pictures = folder.path().join("pictures");
    check(
        &[&predict_flags(&checkpoint, &pictures)[..], &[text(&first)]].concat(),
        0,
        &[],
    );
    let expected = halfseg_data::read_image(&pictures.join("first_overlay.png")).unwrap();
    let found = halfseg_data::read_image(&frame).unwrap();
    let mut far = 0u64;
    for y in 0..47 {
        let rows = expected.row(y).iter().zip(found.row(y));
        far += rows.map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    }
    // Of lossy codes and colours at half the size.
    let mean = far as f64 / (3 * 47 * 70) as f64;
    assert!(mean < 12.0, "{mean} of 255 off");

    check(&args, 1, &["out.mkv is there", "--overwrite"]);
    let cut = [
        "--overwrite",
        "--frames",
        "5",
        "--smooth",
        "0.6",
        "--opacity",
        "1",
    ];
    check(&[&args[..], &cut].concat(), 0, &["5 frames segmented"]);
    assert_eq!(streams(&out)[0]["nb_read_frames"], "5");
}

#[test]
fn a_camera_is_recorded_until_its_frames_are_enough() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let out = folder.path().join("out.mp4");
    // A source without end.
    let args = flags(&checkpoint, "testsrc=size=64x32:rate=5", &out);
    let camera = ["--input-format", "lavfi", "--frames", "7"];
    check(&[&args[..], &camera].concat(), 0, &["7 frames segmented"]);
    let found = streams(&out);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["nb_read_frames"], "7");
    assert_eq!(found[0]["avg_frame_rate"], "5/1");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_a_camera_saw_and_no_part_of_a_film() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let long = folder.path().join("long.mp4");
    ffmpeg(&[
        "-f",
        "lavfi",
        "-i",
        "testsrc=size=64x32:rate=30:duration=600",
        text(&long),
    ]);
    let source = "testsrc=size=64x32:rate=5";
    let camera = ["--input-format", "lavfi"];
    for (video, more, code, said) in [
        (source, &camera[..], 0, "frames segmented"),
        (text(&long), &[], 130, "no film"),
    ] {
        let out = folder.path().join("out.mp4");
        let args = [&flags(&checkpoint, video, &out)[..], more].concat();
        let mut child = halfseg(&args).stderr(Stdio::piped()).spawn().unwrap();
        // Frames are written once the encoder's file is there and has its head.
        let began = std::time::Instant::now();
        let is_written = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(".halfseg-") && entry.metadata().is_ok_and(|found| found.len() > 0)
        };
        while !fs::read_dir(folder.path())
            .unwrap()
            .any(|entry| is_written(entry.unwrap()))
        {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            assert!(began.elapsed().as_secs() < 120, "nothing is written");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        signal(&child, "-INT");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        assert_eq!(out.exists(), code == 0);
        if code == 0 {
            assert!(!streams(&out).is_empty());
            fs::remove_file(&out).unwrap();
        }
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "the run and the long film");
    }
}

#[test]
fn what_is_no_film_and_what_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let out = folder.path().join("out.mp4");
    let said = |video: &str, more: &[&str], code, expect: &[&str]| {
        check(
            &[&flags(&checkpoint, video, &out)[..], more].concat(),
            code,
            expect,
        )
    };
    said(
        "x.mp4",
        &["--smooth", "1"],
        2,
        &["--smooth", "0 to below 1"],
    );
    said("x.mp4", &["--frames", "0"], 2, &["--frames"]);
    said("x.mp4", &["--mirror"], 2, &["--mirror", "--video"]);
    said("x.mp4", &["picture.png"], 2, &["--video"]);
    check(
        &[
            &predict_flags(&checkpoint, &out)[..],
            &["--smooth", "0.5", "x.png"],
        ]
        .concat(),
        2,
        &["--video"],
    );
    said(
        text(folder.path()),
        &[],
        1,
        &["no regular file", "--input-format"],
    );
    let without = folder.path().join("film");
    check(
        &flags(&checkpoint, "x.mp4", &without),
        1,
        &["expected the name of a film"],
    );
    // On a PATH with nothing in it.
    let mut alone = halfseg(&flags(&checkpoint, "x.mp4", &out));
    let output = alone.env("PATH", folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("expected the program ffprobe on the PATH"),
        "{}",
        stderr(&output)
    );
    if !has_ffmpeg() {
        return;
    }
    said(
        "missing.mp4",
        &[],
        1,
        &["missing.mp4", "ffprobe does not read it"],
    );
    let words = folder.path().join("words.mp4");
    fs::write(&words, "no film").unwrap();
    said(
        text(&words),
        &[],
        1,
        &["words.mp4", "ffprobe does not read it"],
    );
    let tone = folder.path().join("tone.wav");
    ffmpeg(&["-f", "lavfi", "-i", "sine=duration=0.1", text(&tone)]);
    said(text(&tone), &[], 1, &["tone.wav", "no pictures that move"]);
    // Half of a film whose other half is gone.
    let source = film(&folder, "film.mkv");
    let bytes = fs::read(&source).unwrap();
    let half = folder.path().join("half.mkv");
    fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let output = run(&flags(&checkpoint, text(&half), &out));
    match output.status.code() {
        Some(0) => assert!(
            stderr(&output).contains("frames segmented"),
            "{}",
            stderr(&output)
        ),
        code => assert_eq!(code, Some(1), "{}", stderr(&output)),
    }
    let _ = fs::remove_file(&out);
    // A format that ffmpeg does not know.
    let odd = folder.path().join("out.nothing");
    check(
        &flags(&checkpoint, text(&source), &odd),
        1,
        &["out.nothing", "ffmpeg ended with"],
    );
    assert!(!odd.exists());
}
