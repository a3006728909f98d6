//! `halfseg predict`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// What MMSegmentation recorded for its own checkpoint, from the file and the picture alone.
#[test]
fn a_checkpoint_from_elsewhere_gives_its_recorded_logits() {
    let folder = tempfile::tempdir().unwrap();
    let recordings = recorded("recordings");
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

#[test]
fn images_that_cannot_be_predicted_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let out = folder.path().join("pictures");
    let base = predict_flags(&checkpoint, &out);
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
        "--data",
        "synthetic",
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
        &["`eval.slide_stride`", "at most slide_crop, 16x16", "8x20"],
    );
}

/// Pictures that can be segmented, in a folder of their own, under these names.
fn pictures(folder: &TempDir, names: &[&str]) -> PathBuf {
    let root = folder.path().join("in");
    for (index, name) in names.iter().enumerate() {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let colour = [40 * index as u8, 90, 200];
        write_png(
            &path,
            (32, 32),
            png::ColorType::Rgb,
            &colour.repeat(32 * 32),
        );
    }
    root
}

/// The files below `folder`, by their paths in it.
fn below(folder: &Path) -> Vec<String> {
    let files = halfseg_files::walk(folder, |path, e| format!("{}: {e}", path.display())).unwrap();
    let name = |path: &PathBuf| text(path.strip_prefix(folder).unwrap()).to_owned();
    files.iter().map(name).collect()
}

/// What `predict` writes of these.
fn all_of(stems: &[&str]) -> Vec<String> {
    let suffixes = ["_color.png", "_overlay.png", "_trainIds.png"];
    let name = |stem: &&str| suffixes.map(|suffix| format!("{stem}{suffix}"));
    let mut names: Vec<_> = stems.iter().flat_map(name).collect();
    names.sort();
    names
}

#[test]
fn no_picture_of_a_tree_is_lost_and_its_own_are_never_taken() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let input = pictures(&folder, &["a/x.png", "b/x.png", "b/y_color.png", "z.png"]);
    let predict = |out: &Path, inputs: &[&str], expect: &str| {
        let args = predict_flags(&checkpoint, out);
        check(&[&args[..], inputs].concat(), 0, &[expect])
    };
    let out = folder.path().join("flat");
    predict(&out, &[text(&input)], "4 images");
    let flat = ["a_x", "b_x", "y_color", "z"];
    assert_eq!(below(&out), all_of(&flat));
    let out = folder.path().join("mirrored");
    predict(&out, &[text(&input), "--mirror"], "4 images");
    assert_eq!(below(&out), all_of(&["a/x", "b/x", "b/y_color", "z"]));

    // Into a folder of the tree, and among the pictures themselves: twice each.
    let inside = input.join("b/out");
    for expect in ["4 images", "left out 12 pictures"] {
        predict(&inside, &[text(&input)], expect);
        assert_eq!(below(&inside), all_of(&flat));
    }
    fs::remove_dir_all(&inside).unwrap();
    for expect in ["4 images", "left out 12 pictures"] {
        predict(&input, &[text(&input)], expect);
        assert_eq!(below(&input).len(), 4 + 12);
    }
    // An interrupted run leaves two of three.
    for name in ["z_trainIds.png", "a_x_color.png"] {
        fs::remove_file(input.join(name)).unwrap();
    }
    predict(&input, &[text(&input)], "left out 10 pictures");
    assert_eq!(below(&input).len(), 4 + 12);

    // One picture is named as what is made of another.
    let folder_of_both = pictures(&folder, &["x.png", "x_color.png"]);
    let both = ["x.png", "x_color.png"].map(|name| folder_of_both.join(name));
    let kept = fs::read(&both[1]).unwrap();
    let args = predict_flags(&checkpoint, &folder_of_both);
    let args = [&args[..], &both.each_ref().map(|path| text(path))].concat();
    check(&args, 1, &["x_color.png", "would replace it"]);
    assert_eq!(fs::read(&both[1]).unwrap(), kept);

    // Files that share a name are told apart by their folders.
    let files = ["a/x.png", "b/x.png"].map(|name| input.join(name));
    let out = folder.path().join("files");
    predict(&out, &files.each_ref().map(|path| text(path)), "2 images");
    assert_eq!(below(&out), all_of(&["a_x", "b_x"]));
}

#[cfg(unix)]
#[test]
fn links_to_themselves_and_pipes_end() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let input = pictures(&folder, &["a/x.png", "y.png"]);
    symlink(&input, input.join("one")).unwrap();
    symlink(&input, input.join("a/two")).unwrap();
    let out = folder.path().join("out");
    let args = predict_flags(&checkpoint, &out);
    let args = [&args[..], &[text(&input)]].concat();
    check(&args, 0, &["2 images"]);
    assert_eq!(below(&out), all_of(&["x", "y"]));

    // One that takes the place of a result would be waited for, too.
    let args_out = predict_flags(&checkpoint, &input);
    let result = input.join("y_color.png");
    let made = Command::new("mkfifo").arg(&result).status();
    assert!(made.unwrap().success());
    let y = input.join("y.png");
    for how in [&[text(&y)][..], &[text(&y), "--overwrite"]] {
        let expect = ["y_color.png", "expected a regular file, found a pipe"];
        check(&[&args_out[..], how].concat(), 1, &expect);
    }
    fs::remove_file(result).unwrap();

    let pipe = input.join("pipe.png");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    check(&args, 1, &["pipe.png", "no regular file"]);
    let skip = [&args[..], &["--skip-bad"]].concat();
    check(&skip, 1, &["2 images segmented", "1 of 3", "pipe.png"]);
    let args = predict_flags(&pipe, &out);
    let picture = input.join("y.png");
    check(
        &[&args[..], &[text(&picture)]].concat(),
        1,
        &["pipe.png", "no regular file"],
    );
}

#[cfg(unix)]
#[test]
fn names_that_are_no_characters_or_very_long_are_not_lost() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let (long, longer) = ("l".repeat(241) + ".png", "m".repeat(251) + ".png");
    let input = pictures(&folder, &["a.png", &long, &longer]);
    let out = folder.path().join("out");
    let args = predict_flags(&checkpoint, &out);
    let args = [&args[..], &["--logits", text(&input)]].concat();
    check(&args, 0, &["3 images"]);
    assert_eq!(below(&out).len(), 3 * 4);

    let name = std::ffi::OsStr::from_bytes(b"b\xff.png");
    fs::copy(input.join("a.png"), input.join(name)).unwrap();
    check(&args, 1, &["b\u{fffd}.png", "Unicode"]);
    let skip = [&args[..], &["--skip-bad"]].concat();
    check(&skip, 1, &["3 images segmented", "1 of 4", "b\u{fffd}.png"]);
}

#[test]
fn a_batch_goes_on_without_bad_pictures_and_leaves_done_ones_alone() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let input = pictures(&folder, &["a.png", "c.png"]);
    fs::write(input.join("b.png"), "no picture").unwrap();
    let out = folder.path().join("out");
    let args = predict_flags(&checkpoint, &out);
    let args = [&args[..], &[text(&input)]].concat();
    check(&args, 1, &["b.png", "PNG"]);
    let said = check(
        &[&args[..], &["--skip-bad"]].concat(),
        1,
        &["1 of 3 pictures", "b.png"],
    );
    assert!(said.contains("2 images segmented"), "{said}");
    assert_eq!(below(&out), all_of(&["a", "c"]));

    fs::remove_file(input.join("b.png")).unwrap();
    fs::write(out.join("a_color.png"), "kept").unwrap();
    fs::remove_file(out.join("c_overlay.png")).unwrap();
    let skip = [&args[..], &["--skip-existing"]].concat();
    check(
        &skip,
        0,
        &["1 images were segmented before", "1 images segmented"],
    );
    assert_eq!(fs::read(out.join("a_color.png")).unwrap(), b"kept");
    assert_eq!(below(&out), all_of(&["a", "c"]));
}

#[test]
fn what_others_wrote_is_replaced_when_asked_only() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let input = pictures(&folder, &["x.png"]);
    let picture = input.join("x.png");
    let out = folder.path().join("out");
    let args = predict_flags(&checkpoint, &out);
    let args = [&args[..], &["--logits", text(&picture)]].concat();
    // Twice: its own files are replaced.
    check(&args, 0, &["1 images"]);
    check(&args, 0, &["1 images"]);
    for name in ["x_color.png", "x_trainIds.png", "x_logits.safetensors"] {
        let path = out.join(name);
        fs::copy(&picture, &path).unwrap();
        let own = fs::read(out.join("x_overlay.png")).unwrap();
        check(&args, 1, &[name, "not this program's", "--overwrite"]);
        assert_eq!(fs::read(&path).unwrap(), fs::read(&picture).unwrap());
        assert_eq!(fs::read(out.join("x_overlay.png")).unwrap(), own);
        check(&[&args[..], &["--overwrite"]].concat(), 0, &["1 images"]);
        assert_ne!(fs::read(&path).unwrap(), fs::read(&picture).unwrap());
    }

    // Among the pictures themselves one is a picture, not what an earlier run made of another.
    let both = pictures(&folder, &["x.png", "x_color.png"]);
    let kept = fs::read(both.join("x_color.png")).unwrap();
    let args = predict_flags(&checkpoint, &both);
    for how in [&[text(&both)][..], &[text(&both), "--overwrite"]] {
        let expect = ["x_color.png", "would replace it"];
        check(&[&args[..], how].concat(), 1, &expect);
    }
    assert_eq!(fs::read(both.join("x_color.png")).unwrap(), kept);
    assert_eq!(below(&both), ["x.png", "x_color.png"]);
}

#[test]
fn names_come_from_stdin_too() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let input = pictures(&folder, &["a.png", "with space.png"]);
    let names = ["a.png", "with space.png"].map(|name| text(&input.join(name)).to_owned());
    for (end, list) in [("\n", names.join("\n")), ("\0", names.join("\0") + "\0")] {
        let out = folder.path().join(format!("out{}", end.len() + list.len()));
        let args = [
            "predict",
            "--checkpoint",
            text(&checkpoint),
            "--out",
            text(&out),
            "-",
        ];
        let mut child = halfseg(&args).stdin(Stdio::piped()).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(list.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(below(&out), all_of(&["a", "with space"]));
    }
    let mut none = halfseg(&[
        "predict",
        "--checkpoint",
        text(&checkpoint),
        "--out",
        "x",
        "-",
    ]);
    let output = none.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("names of pictures on stdin"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_picture_comes_from_stdin_and_is_told_from_names() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let input = pictures(&folder, &["stdin.png"]);
    let picture = input.join("stdin.png");
    let out = folder.path().join("out");
    let args = predict_flags(&checkpoint, &out);
    let pipe = |args: &[&str], bytes: &[u8]| {
        let mut child = halfseg(args)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), stderr(&output))
    };
    let bytes = fs::read(&picture).unwrap();
    let (code, said) = pipe(&[&args[..], &["-", "--logits"]].concat(), &bytes);
    assert_eq!(code, Some(0), "{said}");
    let mut expected = all_of(&["stdin"]);
    expected.push("stdin_logits.safetensors".into());
    expected.sort();
    assert_eq!(below(&out), expected);
    let map = fs::read(out.join("stdin_trainIds.png")).unwrap();
    check(&[&args[..], &[text(&picture)]].concat(), 0, &["1 images"]);
    assert!(fs::read(out.join("stdin_trainIds.png")).unwrap() == map);

    // Beside a file of the same name, and one that is called as the argument is.
    let dash = input.join("-");
    fs::copy(&picture, &dash).unwrap();
    let both = folder.path().join("both");
    let args = predict_flags(&checkpoint, &both);
    let (code, said) = pipe(
        &[&args[..], &["-", text(&picture), text(&dash)]].concat(),
        &bytes,
    );
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("3 images"), "{said}");
    assert_eq!(below(&both).len(), 9);

    let (code, said) = pipe(&[&args[..], &["-"]].concat(), &bytes[..60]);
    assert_eq!(code, Some(1));
    assert!(said.contains("stdin: cannot be decoded as PNG"), "{said}");
    let (code, said) = pipe(
        &[&args[..], &["-", "--skip-bad"]].concat(),
        b"\xff\xd8 no JPEG",
    );
    assert_eq!(code, Some(1));
    assert!(
        said.contains("1 of 1 pictures were left out") && said.contains("stdin"),
        "{said}"
    );
}

/// A network whose classifier has a bias that is no number.
fn broken(checkpoint: &Path, folder: &TempDir) -> PathBuf {
    let mut bytes = fs::read(checkpoint.join("best.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensor = &header["decode_head.conv_seg.bias"];
    assert_eq!(tensor["dtype"], "F32");
    let at = 8 + length + tensor["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = folder.path().join("broken.safetensors");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn scores_that_are_not_finite_fail_or_are_ignored_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let weights = broken(&trained(&folder, "fcn"), &folder);
    let input = pictures(&folder, &["a.png"]);
    let out = folder.path().join("out");
    let predict = predict_flags(&weights, &out);
    let predict = [&predict[..], &[text(&input)]].concat();
    let eval = eval_flags(&weights, "synthetic");
    check(&predict, 1, &["a.png", "expected finite scores"]);
    check(&eval, 1, &["street_000000", "expected finite scores"]);
    let allow = ["--allow-nonfinite"];
    check(
        &[&predict[..], &allow].concat(),
        0,
        &["a.png", "1024 of 1024", "ignored"],
    );
    let map = halfseg_data::read_label(&out.join("a_trainIds.png")).unwrap();
    assert!(map.data.iter().all(|&class| class == halfseg_data::IGNORE));
    check(
        &[&eval[..], &allow].concat(),
        0,
        &["street_000000", "ignored"],
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_picture_beyond_memory_is_refused_with_what_would_fit() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let (scene, side) = (folder.path().join("scene.png"), 12_000);
    let size = (side as u32, side as u32);
    write_png(
        &scene,
        size,
        png::ColorType::Grayscale,
        &vec![64; side * side],
    );
    let out = folder.path().join("pictures");
    // Normalised it would be 1.7 GB.
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 2500000 && exec \"$@\"", "sh"])
        .args([
            env!("CARGO_BIN_EXE_halfseg"),
            "predict",
            "--out",
            text(&out),
        ])
        .args(["--checkpoint", text(&checkpoint), text(&scene)])
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in [
        "scene.png: a picture of 12000x12000 pixels",
        "`--mode slide` takes it",
    ] {
        assert!(said.contains(expected), "expected `{expected}` in:\n{said}");
    }
}
