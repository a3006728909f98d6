//! Data and checkpoints that cannot be used are named, with what was expected of them.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::support::*;

/// Training on `root` must fail and say all of `expect`.
fn check_training_fails(folder: &TempDir, root: &Path, expect: &[&str]) {
    let out = folder.path().join("out");
    let args = train_flags("fcn", text(root), &out);
    check(&[&args[..], &TINY].concat(), 1, expect);
    let _ = fs::remove_dir_all(out);
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
    let recordings = recorded("recordings");
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
