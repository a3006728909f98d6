//! What small data sets ask for: weights of other networks, averages, frozen stages, one output for two classes, scores
//! of outlines and pictures.

use std::fs;

use halfseg_data::{LabelMap, read_label, write_label};
use serde_json::Value;

use crate::support::*;

/// A head of another method begins anew, which is told, as are other batches than the recipe's, once.
#[test]
fn weights_of_another_method_are_taken_as_far_as_they_fit() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    let source = recorded("recordings/fcn/model.pth");
    let out = folder.path().join("run");
    let short = [
        "--scale",
        "64x32",
        "--crop",
        "32x32",
        "--iterations",
        "1",
        "--set",
        "train.pictures=0",
        "--batch",
        "2",
        "--classes",
        "19",
    ];
    let args = train_flags("pspnet", text(&root), &out);
    let args = [&args[..], &["--checkpoint", text(&source)], &short].concat();
    let said = check(
        &args,
        0,
        &[
            "115 tensors loaded, 34 missing, 24 unexpected",
            "missing, left as drawn: auxiliary_head.conv_seg.bias",
            "the file's decode_head is another",
            // Narrower than the published one.
            "the file's auxiliary_head is another",
            "the published recipe has 8 images an iteration, here there are 2",
        ],
    );
    assert_eq!(said.matches("images an iteration").count(), 1, "{said}");
    assert!(!said.contains("random weights"), "{said}");
    // Its own recipe is what a run's checkpoint is held against.
    let next = folder.path().join("next");
    let args = [
        "train",
        "--data",
        text(&root),
        "--out",
        text(&next),
        "--checkpoint",
        text(&out),
        "--iterations",
        "1",
        "--batch",
        "4",
        "--scale",
        "64x32",
        "--crop",
        "32x32",
    ];
    let said = check(
        &args,
        0,
        &["the checkpoint was trained with 2 images an iteration, here there are 4"],
    );
    assert!(said.contains("0 missing"), "{said}");
    let again = folder.path().join("again");
    let args = changed(&args, &[("--batch", "2"), ("--out", text(&again))]);
    let said = check(&args, 0, &[]);
    assert!(!said.contains("images an iteration"), "{said}");
    // Nothing to start from.
    let out = folder.path().join("random");
    let args = [&train_flags("fcn", text(&root), &out)[..], &TINY].concat();
    let frozen = ["--set", "train.frozen_stages=1"];
    let expect = [
        "starts from random weights",
        "train.frozen_stages leaves random weights",
    ];
    check(&[&args[..], &frozen].concat(), 0, &expect);
}

#[test]
fn averages_are_scored_and_predict() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = train_flags("fcn", "synthetic", &out);
    let args = [&args[..], &TINY, &["--ema", "0.9"]].concat();
    check(&args, 0, &["of the weights themselves, not averaged"]);
    assert!(logged(&out, "eval")[0]["plain"]["miou"].is_number());
    let averages = out.join("iter_2.ema.safetensors");
    check(&eval_flags(&averages, "synthetic"), 0, &[]);
    let refused = folder.path().join("refused");
    let args = changed(&args, &[("--ema", "1"), ("--out", text(&refused))]);
    check(&args, 2, &["train.ema"]);
}

/// From masks of 0 and 255 to maps of two classes by one output.
#[test]
fn one_output_tells_two_classes_apart() {
    let folder = tempfile::tempdir().unwrap();
    let root = cityscapes(&folder);
    let images = folder.path().join("images");
    let masks = folder.path().join("masks");
    for made in [&images, &masks] {
        fs::create_dir_all(made).unwrap();
    }
    for index in 0..2 {
        let name = format!("{index}.png");
        fs::copy(image_file(&root, index), images.join(&name)).unwrap();
        let label = read_label(&label_file(&root, index)).unwrap();
        let mask = label.data.iter().map(|id| if *id == 7 { 255 } else { 0 });
        let mask = LabelMap {
            data: mask.collect(),
            ..label
        };
        write_label(&masks.join(&name), &mask).unwrap();
    }
    let file = folder.path().join("roads.toml");
    let definition = "classes = [{ name = \"rest\", values = [0] }, { name = \"road\", values = [255] }]\n\
        [masks]\nencoding = \"ids\"\nignore = []\n\
        [[sets]]\nsplit = { train = 0.5, val = 0.5 }\nimages = \"images/*.png\"\nmasks = \"masks/{stem}.png\"\n";
    fs::write(&file, definition).unwrap();
    let out = folder.path().join("run");
    let binary = [
        "--set",
        "model.binary=true",
        "--set",
        "loss.dice=1",
        "--lr",
        "0.05",
    ];
    let args = train_flags("deeplabv3plus", text(&file), &out);
    let said = check(&[&args[..], &TINY, &binary].concat(), 0, &["road", "rest"]);
    assert!(!said.contains("sidewalk"), "{said}");

    let maps = folder.path().join("maps");
    let picture = images.join("0.png");
    let classes = |threshold: &str, how: &[&str]| -> f64 {
        let _ = fs::remove_dir_all(&maps);
        let set = format!("model.threshold={threshold}");
        let args = [
            &predict_flags(&out, &maps)[..],
            how,
            &["--set", &set, text(&picture)],
        ];
        check(&args.concat(), 0, &[]);
        let map = fs::read_dir(&maps).unwrap().find_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let is_map = !name.contains("color") && !name.contains("overlay");
            (is_map && name.ends_with(".png")).then_some(path)
        });
        let map = read_label(&map.unwrap()).unwrap();
        assert!(map.data.iter().all(|class| *class < 2));
        map.data.iter().map(|class| f64::from(*class)).sum::<f64>() / map.data.len() as f64
    };
    // The lower the threshold, the more is of the second class.
    for how in [
        &[][..],
        &["--ms-flip"],
        &["--mode", "slide", "--crop", "24x32"],
    ] {
        let shares = ["0.0001", "0.5", "0.9999"].map(|threshold| classes(threshold, how));
        assert!(
            shares[0] >= shares[1] && shares[1] >= shares[2],
            "{how:?}: {shares:?}"
        );
        assert_eq!((shares[0], shares[2]), (1.0, 0.0), "{how:?}");
    }
    let json = folder.path().join("scores.json");
    let args = [&eval_flags(&out, text(&file))[..], &["--json", text(&json)]].concat();
    check(&args, 0, &[]);
    let scores: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert!(scores["classes"]["road"]["iou"].is_number() && scores["mdice"].is_number());
    check(
        &["audit", "--checkpoint", text(&out), "--data", text(&file)],
        0,
        &[],
    );
    let refused = ["--set", "model.binary=true"];
    let other = folder.path().join("other");
    let args = [
        &train_flags("fcn", "synthetic", &other)[..],
        &TINY,
        &refused,
    ]
    .concat();
    check(&args, 2, &["model.binary", "two classes"]);
}

#[test]
fn outlines_and_pictures_have_scores() {
    let folder = tempfile::tempdir().unwrap();
    let out = trained(&folder, "fcn");
    let json = folder.path().join("scores.json");
    let more = [
        "--set",
        "data.synthetic_val=5",
        "--boundary",
        "--json",
        text(&json),
    ];
    let output = run(&[&eval_flags(&out, "synthetic")[..], &more].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "BIoU",
        "mBIoU",
        "Prec",
        "Dice",
        "mDice",
        "lowest mIoU of a picture: ",
    ] {
        assert!(table.contains(expected), "{table}");
    }
    let scores: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let pictures = scores["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 5);
    let of = |picture: &Value| picture["miou"].as_f64().unwrap();
    let least = pictures.iter().map(of).fold(1.0, f64::min);
    assert_eq!(of(&scores["worst"][0]), least);
    assert_eq!(scores["worst"].as_array().unwrap().len(), 5);
    assert!(
        pictures
            .iter()
            .all(|picture| picture["mboundary_iou"].is_number())
    );
    let near = scores["mboundary_iou"].as_f64().unwrap();
    let of_class = scores["classes"].as_object().unwrap().values();
    let of_class: Vec<f64> = of_class
        .filter_map(|class| class["boundary_iou"].as_f64())
        .collect();
    let mean = of_class.iter().sum::<f64>() / of_class.len() as f64;
    assert!((mean - near).abs() < 1e-12, "{near} and {mean}");
}
