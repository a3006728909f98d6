//! The official scores against recordings of cityscapesscripts and of MMSegmentation's metric.
//!
//! Each folder below `tests/data`, and below `$HALFSEG_SCORER_CASES` where that is set, holds
//! `pred`, `gt/<city>` and `expected.json`.

use std::path::{Path, PathBuf};

use halfseg_data::{LabelMap, RgbImage};
use halfseg_eval::{CityscapesScore, CityscapesScorer};
use serde_json::Value;

const TOLERANCE: f64 = 1e-6;

fn cases() -> Vec<PathBuf> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let more = std::env::var_os("HALFSEG_SCORER_CASES").map(PathBuf::from);
    let mut cases: Vec<PathBuf> = std::iter::once(committed)
        .chain(more)
        .flat_map(|root| std::fs::read_dir(root).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.json").exists())
        .collect();
    cases.sort();
    cases
}

fn close(what: &str, found: Option<f64>, expected: &Value) {
    let same = match (found, expected.as_f64()) {
        (Some(found), Some(expected)) => (found - expected).abs() <= TOLERANCE,
        (None, None) => true,
        _ => false,
    };
    assert!(same, "{what}: expected {expected}, found {found:?}");
}

#[test]
fn scores_agree_with_the_official_ones() {
    let cases = cases();
    assert!(!cases.is_empty());
    for case in &cases {
        let text = std::fs::read_to_string(case.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let scores = CityscapesScorer::score_folders(&case.join("pred"), &case.join("gt")).unwrap();
        assert_eq!(Some(scores.images as u64), expected["images"].as_u64());
        let with_instances = expected["instances"] == true;
        let check = |list: &[CityscapesScore], iou: &str, instance: &str| {
            for score in list {
                let what = format!("{}, {iou} of {}", case.display(), score.name);
                close(&what, score.iou, &expected[iou][&score.name]);
                let recorded = &expected[instance][&score.name];
                let recorded = if with_instances {
                    recorded
                } else {
                    &Value::Null
                };
                close(&format!("{what}, instances"), score.instance_iou, recorded);
            }
        };
        check(&scores.classes, "classes", "class_i");
        check(&scores.categories, "categories", "category_i");
        for score in &scores.classes {
            let what = format!("{}, mmseg's {}", case.display(), score.name);
            close(&what, score.iou, &expected["mmseg"][&score.name]);
        }
        close("mIoU", scores.mean_iou, &expected["mIoU"]);
        close("mmseg's mIoU", scores.mean_iou, &expected["mmseg_mIoU"]);
        close(
            "category mIoU",
            scores.mean_category_iou,
            &expected["mIoUc"],
        );
        if with_instances {
            close("iIoU", scores.mean_instance_iou, &expected["iIoU"]);
            let found = scores.mean_category_instance_iou;
            close("category iIoU", found, &expected["iIoUc"]);
        }
    }
    println!("{} cases within {TOLERANCE}", cases.len());
}

#[test]
fn unfit_folders_and_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (pred, gt) = (folder.path().join("pred"), folder.path().join("gt"));
    std::fs::create_dir_all(gt.join("ulm")).unwrap();
    std::fs::create_dir_all(&pred).unwrap();
    let gray = |path: &Path, ids: &[u8], width: usize| {
        let map = LabelMap {
            width,
            height: ids.len() / width,
            data: ids.to_vec(),
        };
        halfseg_data::write_label(path, &map).unwrap();
    };
    let fails = |text: &str| {
        let error = CityscapesScorer::score_folders(&pred, &gt)
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{error}");
    };
    fails("found none");
    let truth = gt.join("ulm/ulm_000000_000019_gtFine_labelIds.png");
    gray(&truth, &[7; 6], 3);
    fails("one prediction ulm_000000_000019*.png");
    let first = pred.join("ulm_000000_000019_pred.png");
    gray(&first, &[7; 6], 2);
    fails("expected 3x2 pixels");
    halfseg_data::write_rgb(&first, &RgbImage::filled(3, 2, [7; 3])).unwrap();
    fails("a label map of one 8-bit channel");
    gray(&first, &[7, 7, 7, 7, 7, 99], 3);
    fails("1 pixels of 99");
    std::fs::write(&first, b"\x89PNG\r\n\x1a\n").unwrap();
    fails("cannot be decoded as PNG");
    gray(&first, &[7; 6], 3);
    assert!(CityscapesScorer::score_folders(&pred, &gt).is_ok());
    std::fs::copy(&first, pred.join("ulm_000000_000019_color.png")).unwrap();
    fails("ulm_000000_000019_color.png and");
}

/// A map of one id.
fn write(path: &Path, id: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    halfseg_data::write_label(path, &LabelMap::filled(2, 2, [id])).unwrap();
}

#[test]
fn equal_names_of_two_cities_are_told_apart_by_city() {
    let folder = tempfile::tempdir().unwrap();
    let (pred, gt) = (folder.path().join("pred"), folder.path().join("gt"));
    for (city, id) in [("ulm", 7), ("bonn", 26)] {
        write(&gt.join(city).join("frame_1_gtFine_labelIds.png"), id);
    }
    write(&gt.join("bonn/frame_2_gtFine_labelIds.png"), 23);
    let score = || CityscapesScorer::score_folders(&pred, &gt);
    for prediction in [
        ["ulm_frame_1_x", "bonn_frame_1"],
        ["some/ulm/frame_1_x", "bonn/frame_1"],
    ] {
        let _ = std::fs::remove_dir_all(&pred);
        write(&pred.join(format!("{}.png", prediction[0])), 7);
        write(&pred.join(format!("{}.png", prediction[1])), 26);
        let error = score().unwrap_err().to_string();
        assert!(
            error.contains("one prediction frame_2*.png, found none"),
            "{error}"
        );
        write(&pred.join("frame_2_pred.png"), 23);
        assert_eq!(score().unwrap().mean_iou, Some(1.0));
    }
    std::fs::copy(pred.join("bonn/frame_1.png"), pred.join("frame_1.png")).unwrap();
    std::fs::remove_file(pred.join("bonn/frame_1.png")).unwrap();
    let error = score().unwrap_err().to_string();
    assert!(error.contains("bonn_frame_1*.png, found none"), "{error}");
}

#[test]
fn a_name_that_begins_another_one_is_not_mistaken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (pred, gt) = (folder.path().join("pred"), folder.path().join("gt"));
    for (name, id) in [("f_1", 7), ("f_10", 11), ("f_1_b", 26)] {
        write(
            &gt.join("ulm").join(format!("{name}_gtFine_labelIds.png")),
            id,
        );
        write(&pred.join(format!("{name}_pred.png")), id);
    }
    let score = || CityscapesScorer::score_folders(&pred, &gt);
    assert_eq!(score().unwrap().mean_iou, Some(1.0));
    std::fs::remove_file(pred.join("f_1_pred.png")).unwrap();
    let error = score().unwrap_err().to_string();
    assert!(
        error.contains("one prediction f_1*.png, found none"),
        "{error}"
    );
}

#[test]
fn maps_that_promise_more_than_they_hold_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (
        folder.path().join("good.png"),
        folder.path().join("bad.png"),
    );
    write(&good, 7);
    let mut bytes = std::fs::read(&good).unwrap();
    // 262,144 pixels a side.
    bytes[16..24].copy_from_slice(&[0, 4, 0, 0, 0, 4, 0, 0]);
    let crc = !bytes[12..29].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ byte as u32, |c, _| {
            (c >> 1) ^ if c & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    });
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    std::fs::write(&bad, bytes).unwrap();
    let mut scorer = CityscapesScorer::new();
    for (prediction, truth, instances) in [
        (&bad, &good, None),
        (&good, &bad, None),
        (&good, &good, Some(&*bad)),
    ] {
        let error = scorer
            .update_files(prediction, truth, instances)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("bad.png") && error.contains("found 262144x262144"),
            "{error}"
        );
    }
}
