//! What file managers and editors leave in folders is taken for no picture and no mask.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{
    TINY, check, cityscapes, eval_flags, image_file, label_file, predict_flags, run, stderr, text,
    train_flags, trained,
};

/// Beside each file of each folder below `folder`: macOS's `._` files, which are no pictures, and what Finder,
/// Explorer and Jupyter leave, the last a copy of a picture.
fn litter(folder: &Path) {
    let mut entries = halfseg_files::entries(folder).unwrap();
    entries.retain(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
    for path in &entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            litter(path);
            continue;
        }
        fs::write(folder.join(format!("._{name}")), b"\0\x05\x16\x07 Mac OS X").unwrap();
        let copies = folder.join(".ipynb_checkpoints");
        fs::create_dir_all(&copies).unwrap();
        let (stem, ending) = name.rsplit_once('.').unwrap();
        fs::copy(path, copies.join(format!("{stem}-checkpoint.{ending}"))).unwrap();
    }
    for name in [".DS_Store", "Thumbs.db", "desktop.ini"] {
        fs::write(folder.join(name), b"\xd0\xcf\x11\xe0").unwrap();
    }
}

#[test]
fn a_folder_with_hidden_files_is_what_it_is_without_them() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&folder, "fcn");
    let root = cityscapes(&folder);
    litter(&root);
    let out = folder.path().join("pictures");
    let args = predict_flags(&checkpoint, &out);
    let pictures = root.join("leftImg8bit");
    check(&[&args[..], &[text(&pictures)]].concat(), 0, &["4 images"]);

    check(&eval_flags(&checkpoint, text(&root)), 0, &[]);
    let doctor = ["doctor", "--data", text(&root)];
    check(&[&doctor[..], &TINY].concat(), 0, &[]);
    let again = folder.path().join("run");
    let args = train_flags("fcn", text(&root), &again);
    check(&[&args[..], &TINY].concat(), 0, &["mIoU"]);
    let predictions = folder.path().join("kept");
    let kept = ["--save-predictions", text(&predictions)];
    check(
        &[&eval_flags(&checkpoint, text(&root))[..], &kept].concat(),
        0,
        &[],
    );
    litter(&predictions);
    let truth = root.join("gtFine/val");
    let score = ["score", "--predictions", text(&predictions), "--truth"];
    check(&[&score[..], &[text(&truth)]].concat(), 0, &[]);
}

#[test]
fn hidden_files_are_none_of_ones_own_data() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, root) = (cityscapes(&folder), folder.path().join("own"));
    for name in ["images", "masks"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    // So many that both splits get some.
    for index in 0..6 {
        let copy = |from: &Path, to: &str| {
            fs::copy(from, root.join(format!("{to}/{index}.png"))).unwrap();
        };
        copy(&image_file(&tree, index % 2), "images");
        copy(&label_file(&tree, index % 2), "masks");
    }
    let proposed = |name: &str| {
        let out = folder.path().join(name);
        check(&["data", "init", text(&root), "--out", text(&out)], 0, &[]);
        fs::read_to_string(out).unwrap()
    };
    let before = proposed("before.toml");
    litter(&root);
    assert_eq!(proposed("after.toml"), before);

    // Patterns that hidden names fit, too.
    let definition = folder.path().join("wide.toml");
    let wide = before
        .replace("images/*", "images/**/*")
        .replace("masks/{", "masks/{dir}/{");
    assert_ne!(wide, before);
    fs::write(&definition, wide).unwrap();
    let report = folder.path().join("doctor.json");
    let doctor = [
        "doctor",
        "--data",
        text(&definition),
        "--json",
        text(&report),
    ];
    let output = run(&[&doctor[..], &TINY].concat());
    let report: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap())
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    let splits = report["splits"].as_array().unwrap();
    let pictures: u64 = splits
        .iter()
        .map(|split| split["pictures"].as_u64().unwrap())
        .sum();
    assert_eq!(pictures, 6, "{report}");
    let findings = report["findings"].to_string();
    assert!(
        !findings.contains("/._") && !findings.contains("checkpoint"),
        "{findings}"
    );
}
