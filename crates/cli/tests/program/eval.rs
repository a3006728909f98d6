//! `halfseg eval` and `halfseg score`.

use std::fs;
use std::path::Path;

use halfseg_data::{read_image, read_label, write_label};
use halfseg_eval::{CityscapesScorer, CityscapesScores};
use serde_json::Value;

use crate::support::*;

#[test]
fn a_run_is_evaluated_and_predicts_without_being_told_its_method() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    let out = folder.path().join("run");
    let args = [
        "train",
        "--method",
        "deeplabv3plus",
        "--data",
        text(&root),
        "--out",
        text(&out),
        "--precision",
        "bf16",
        "--loss-scale",
        "dynamic",
        "--lr",
        "0.01",
        "--seed",
        "3",
        "--eval-every",
        "1",
        "--device",
        "flex",
    ];
    check(&[&args[..], &TINY].concat(), 0, &["best so far", "mIoU"]);

    let predictions = folder.path().join("predictions");
    let zip = folder.path().join("predictions.zip");
    let output = run(&[
        "eval",
        "--checkpoint",
        text(&out),
        "--data",
        text(&root),
        "--split",
        "val",
        "--mode",
        "slide",
        "--crop",
        "24x32",
        "--json",
        "-",
        "--save-predictions",
        text(&predictions),
        "--zip",
        text(&zip),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let scores: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON alone");
    assert_eq!(scores["images"], 2);
    assert!(scores["miou"].as_f64().is_some() && scores["classes"]["road"]["iou"].is_number());
    let names = [0, 1].map(|index| format!("town_{index:06}_000000_pred_labelIds.png"));
    let archive = archived(&zip);
    assert_eq!(archive.keys().collect::<Vec<_>>(), names.each_ref());
    for (name, bytes) in &archive {
        assert_eq!(*bytes, fs::read(predictions.join(name)).unwrap(), "{name}");
    }
    let kept = read_label(&predictions.join(&names[0])).unwrap();
    assert_eq!((kept.width, kept.height), (64, 32));
    assert!(
        kept.data.iter().all(|&id| (7..=33).contains(&id)),
        "labelIds, not trainIds"
    );

    let pictures = folder.path().join("pictures");
    let image = image_file(&root, 0);
    check(
        &[
            "predict",
            "--checkpoint",
            text(&out.join("best.safetensors")),
            "--out",
            text(&pictures),
            "--logits",
            text(&image),
        ],
        0,
        &["1 images"],
    );
    let stem = image.file_stem().unwrap().to_str().unwrap();
    let map = read_label(&pictures.join(format!("{stem}_trainIds.png"))).unwrap();
    for name in ["color", "overlay"] {
        let picture = read_image(&pictures.join(format!("{stem}_{name}.png"))).unwrap();
        assert_eq!((picture.width, picture.height), (64, 32));
    }
    let bytes = fs::read(pictures.join(format!("{stem}_logits.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = file.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [1, 19, 32, 64]);
    let values: Vec<f32> = logits
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    for (pixel, &class) in map.data.iter().enumerate() {
        let of = |class: usize| values[class * map.data.len() + pixel];
        assert!(
            (0..19).all(|other| of(other) <= of(usize::from(class))),
            "pixel {pixel}"
        );
    }

    // Whole folders, another size, several views. Both splits of the tree have the same names.
    let images = root.join("leftImg8bit");
    let views = folder.path().join("views");
    let base = predict_flags(&out, &views);
    check(
        &[&base[..], &["--ms-flip", "--scale", "48x48", text(&images)]].concat(),
        0,
        &["4 images"],
    );
    assert_eq!(fs::read_dir(&views).unwrap().count(), 3 * 4);
}

/// One unreadable picture is no reason to lose the scores of the others.
#[test]
fn an_evaluation_goes_on_without_a_picture_and_with_what_it_kept() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    let (kept, scores) = (
        folder.path().join("kept"),
        folder.path().join("scores.json"),
    );
    let args = eval_flags(&checkpoint, text(&root));
    let args = [&args[..], &["--json", text(&scores)]].concat();
    let read = || serde_json::from_slice::<Value>(&fs::read(&scores).unwrap()).unwrap();
    let keep = [&args[..], &["--save-predictions", text(&kept)]].concat();
    check(&keep, 0, &[]);
    let whole = read();

    // What was kept is scored, not predicted again.
    let name = "town_000000_000000";
    let file = kept.join(format!("{name}_pred_labelIds.png"));
    let mut map = read_label(&file).unwrap();
    map.data.fill(7);
    write_label(&file, &map).unwrap();
    let again = [&keep[..], &["--skip-existing"]].concat();
    check(&again, 0, &[]);
    assert_ne!(read()["miou"], whole["miou"]);
    assert!(read_label(&file).unwrap().data.iter().all(|&id| id == 7));
    // So is what another program wrote, which stays as it is.
    let foreign = vec![11; map.data.len()];
    let size = (map.width as u32, map.height as u32);
    write_png(&file, size, png::ColorType::Grayscale, &foreign);
    let before = fs::read(&file).unwrap();
    check(&again, 0, &[]);
    let name_of_file = format!("{name}_pred_labelIds.png");
    check(&keep, 1, &[&name_of_file, "not this program's"]);
    assert_eq!(fs::read(&file).unwrap(), before);
    check(&[&keep[..], &["--overwrite"]].concat(), 0, &[]);
    assert_eq!(read()["miou"], whole["miou"]);
    assert_ne!(fs::read(&file).unwrap(), before);
    check(
        &[&args[..], &["--skip-existing"]].concat(),
        2,
        &["--save-predictions DIR"],
    );

    let image = root.join(format!("leftImg8bit/val/town/{name}_leftImg8bit.png"));
    fs::write(&image, "no picture").unwrap();
    fs::remove_file(&scores).unwrap();
    check(&args, 1, &[name]);
    assert!(!scores.exists());
    let skip = [&args[..], &["--skip-bad"]].concat();
    check(&skip, 1, &["1 of 2 pictures were left out", name]);
    assert_eq!(read()["images"], 1);
}

/// The scorer of files, which the tests of `halfseg-eval` compare with the official one, and the
/// program's own count must agree.
#[test]
fn a_folder_gets_the_scores_of_categories_and_instances() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    let truth = root.join("gtFine/val");
    for index in 0..2 {
        // Half a line of car: two instances of unequal size, the second of which lies in the road.
        let path = truth.join(format!("town/town_{index:06}_000000_gtFine_labelIds.png"));
        let mut label = read_label(&path).unwrap();
        label.data[..40].fill(26);
        write_label(&path, &label).unwrap();
        let instances = label.data.iter().enumerate().map(|(pixel, &id)| match id {
            26 if pixel < 10 => 26_001,
            24.. => u16::from(id) * 1000 + 2,
            _ => u16::from(id),
        });
        let bytes: Vec<u8> = instances.flat_map(u16::to_be_bytes).collect();
        let path = truth.join(format!(
            "town/town_{index:06}_000000_gtFine_instanceIds.png"
        ));
        let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), 64, 32);
        encoder.set_depth(png::BitDepth::Sixteen);
        encoder
            .write_header()
            .unwrap()
            .write_image_data(&bytes)
            .unwrap();
    }
    let predictions = folder.path().join("predictions");
    let output = run(&[
        "eval",
        "--checkpoint",
        text(&checkpoint),
        "--data",
        text(&root),
        "--split",
        "val",
        "--save-predictions",
        text(&predictions),
        "--json",
        "-",
    ]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("category") && said.contains("iIoU"), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = CityscapesScorer::score_folders(&predictions, &truth).unwrap();
    assert!(expected.mean_instance_iou.is_some() && expected.mean_category_iou.is_some());
    assert_eq!(
        serde_json::from_value::<CityscapesScores>(found["cityscapes"].clone()).unwrap(),
        expected
    );
    // Predictions alone get the same scores.
    let args = ["score", "--predictions", text(&predictions), "--truth"];
    let output = run(&[&args[..], &[text(&truth), "--json", "-"]].concat());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("2 images: mIoU"), "{said}");
    assert_eq!(
        serde_json::from_slice::<CityscapesScores>(&output.stdout).unwrap(),
        expected
    );
    fs::remove_dir_all(&predictions).unwrap();
    fs::create_dir(&predictions).unwrap();
    let expect = ["one prediction town_000000_000000*.png", "found none"];
    check(&[&args[..], &[text(&truth)]].concat(), 1, &expect);
}

/// A benchmark keeps the labels of its test split to itself.
#[test]
fn a_split_without_labels_is_packed_for_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    fs::remove_dir_all(root.join("gtFine/val")).unwrap();
    let (kept, zip) = (
        folder.path().join("kept"),
        folder.path().join("sub/all.zip"),
    );
    let base = [
        "eval",
        "--checkpoint",
        text(&checkpoint),
        "--data",
        text(&root),
        "--split",
        "val",
        "--zip",
        text(&zip),
    ];
    // The folder of the archive is not there: known before an hour of predictions, not after.
    check(&base, 1, &["all.zip", "sub"]);
    fs::create_dir(zip.parent().unwrap()).unwrap();
    // A prediction of an earlier run is no part of this archive.
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("old_000000_000000_pred_labelIds.png"), "old").unwrap();
    let json = folder.path().join("scores.json");
    let flags = ["--save-predictions", text(&kept), "--json", text(&json)];
    check(&[&base[..], &flags].concat(), 0, &["nothing to score"]);
    let written: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(written["images"], 2);
    assert!(written["miou"].is_null() && written["classes"]["road"]["iou"].is_null());
    let names = [0, 1].map(|index| format!("town_{index:06}_000000_pred_labelIds.png"));
    assert_eq!(archived(&zip).keys().collect::<Vec<_>>(), names.each_ref());
    assert_eq!(
        fs::read_dir(zip.parent().unwrap()).unwrap().count(),
        1,
        "something was left beside the archive"
    );
    // Without a folder to keep, nothing but the archive stays, and it is the same one.
    let first = fs::read(&zip).unwrap();
    check(&base, 0, &["nothing to score"]);
    assert_eq!(fs::read(&zip).unwrap(), first);
    assert_eq!(fs::read_dir(zip.parent().unwrap()).unwrap().count(), 1);
}

/// The longest names that pictures can have, and equal ones in two cities.
#[test]
fn predictions_of_pictures_with_long_names_are_kept_and_scored() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    let (images, truth) = (root.join("leftImg8bit/val"), root.join("gtFine/val"));
    let place = |folder: &Path, city: &str, name: &str, ending: &str| {
        fs::create_dir_all(folder.join(city)).unwrap();
        folder.join(city).join(format!("{name}{ending}"))
    };
    let endings = ["_leftImg8bit.png", "_gtFine_labelIds.png"];
    let (short, long) = ("town_000000_000000", "l".repeat(255 - endings[1].len()));
    let longer = "m".repeat(255 - endings[0].len());
    for (city, name) in [("town", &long), ("city", &long)] {
        for (tree, ending) in [(&images, endings[0]), (&truth, endings[1])] {
            let from = place(tree, "town", short, ending);
            fs::copy(from, place(tree, city, name, ending)).unwrap();
        }
    }
    let (kept, zip) = (folder.path().join("kept"), folder.path().join("all.zip"));
    let eval = eval_flags(&checkpoint, text(&root));
    let keep = ["--save-predictions", text(&kept), "--zip", text(&zip)];
    check(&[&eval[..], &keep].concat(), 0, &[]);
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 4);
    assert_eq!(archived(&zip).len(), 4);
    let score = [
        "score",
        "--predictions",
        text(&kept),
        "--truth",
        text(&truth),
    ];
    let output = run(&score);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
    assert!(
        output.status.success() && said.contains("4 images"),
        "{said}"
    );

    // Without labels, names may be longer still.
    fs::remove_dir_all(&truth).unwrap();
    let from = place(&images, "town", short, endings[0]);
    fs::copy(from, place(&images, "town", &longer, endings[0])).unwrap();
    check(&[&eval[..], &keep].concat(), 0, &["nothing to score"]);
    assert_eq!(archived(&zip).len(), 5);
    assert!(kept.join(format!("{longer}.png")).is_file());
}

/// Zeros and ones are no classes among labelIds.
#[test]
fn a_split_of_masks_is_said_to_be_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    for index in 0..2 {
        let path = format!("gtFine/val/town/town_{index:06}_000000_gtFine_labelIds.png");
        let mut map = read_label(&root.join(&path)).unwrap();
        map.data.iter_mut().for_each(|id| *id %= 2);
        write_label(&root.join(path), &map).unwrap();
    }
    let expect = ["warning: ", "100.0 % of their pixels are ignored", "(0, 1)"];
    let eval = eval_flags(&checkpoint, text(&root));
    check(&[&eval[..], &["--quiet"]].concat(), 0, &expect);
    let out = folder.path().join("run");
    let train = train_flags("fcn", text(&root), &out);
    check(&[&train[..], &TINY, &["--quiet"]].concat(), 0, &expect);
}
