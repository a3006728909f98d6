//! Data sets of one's own, from an unknown folder to predictions with the right names and colours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use halfseg_data::{
    Dataset, IGNORE, LabelMap, SyntheticStreets, read_image, write_label, write_rgb,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{TINY, check, predict_flags, stderr, text, train_flags};

const SIZE: (usize, usize) = (64, 32);

/// Generated scenes as pictures, with what `mask` writes beside them.
fn write(
    folder: &Path,
    names: impl IntoIterator<Item = (PathBuf, PathBuf)>,
    mask: impl Fn(&Path, &LabelMap),
) {
    let names: Vec<_> = names.into_iter().collect();
    let streets = SyntheticStreets::new(SIZE.0, SIZE.1, names.len(), 7);
    for (index, (picture, mask_file)) in names.into_iter().enumerate() {
        let sample = streets.get(index).unwrap();
        let (picture, mask_file) = (folder.join(picture), folder.join(mask_file));
        for file in [&picture, &mask_file] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        write_rgb(&picture, sample.image.rgb().unwrap()).unwrap();
        mask(&mask_file, &sample.label.unwrap());
    }
}

fn named(range: std::ops::Range<usize>, picture: &str, mask: &str) -> Vec<(PathBuf, PathBuf)> {
    let of = |pattern: &str, i: usize| PathBuf::from(pattern.replace("{}", &format!("{i:03}")));
    range.map(|i| (of(picture, i), of(mask, i))).collect()
}

fn mapped(label: &LabelMap, class: impl Fn(u8) -> u8) -> LabelMap {
    LabelMap {
        data: label.data.iter().map(|id| class(*id)).collect(),
        ..*label
    }
}

/// Road or anything else.
fn binary(one: u8) -> impl Fn(&Path, &LabelMap) {
    move |path, label| {
        write_label(path, &mapped(label, |id| if id == 0 { one } else { 0 })).unwrap()
    }
}

fn palette_mask(path: &Path, label: &LabelMap, palette: &[[u8; 3]], class: impl Fn(u8) -> u8) {
    let mut encoder = png::Encoder::new(
        fs::File::create(path).unwrap(),
        SIZE.0 as u32,
        SIZE.1 as u32,
    );
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(palette.concat());
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&mapped(label, class).data)
        .unwrap();
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn kinds(report: &Value) -> BTreeSet<String> {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|f| f["kind"].as_str().unwrap().to_owned())
        .collect()
}

/// From a definition to predictions: trained, scored under the names of `classes`, predicted in `colors`.
pub fn check_whole_way(
    folder: &TempDir,
    definition: &Path,
    classes: &[&str],
    colors: &[[u8; 3]],
    picture: &Path,
) -> Value {
    let report = folder.path().join("doctor.json");
    let data = text(definition);
    let html = folder.path().join("doctor.html");
    let doctor = [
        "doctor",
        "--data",
        data,
        "--json",
        text(&report),
        "--html",
        text(&html),
    ];
    check(&[&doctor[..], &TINY].concat(), 0, &[]);
    let report = json(&report);
    let names: Vec<_> = report["classes"]["names"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect();
    assert_eq!(names, classes);
    assert!(fs::read_to_string(html).unwrap().contains(classes[0]));

    let sheets = folder.path().join("browse");
    let browse = [
        "browse",
        "--data",
        data,
        "--out",
        text(&sheets),
        "--batches",
        "2",
    ];
    check(&[&browse[..], &TINY].concat(), 0, &[]);
    let page = fs::read_to_string(sheets.join("index.html")).unwrap();
    assert!(
        page.contains("iteration_1.png") && classes.iter().all(|name| page.contains(name)),
        "{page}"
    );
    let sheet = read_image(&sheets.join("iteration_0.png")).unwrap();
    assert_eq!(sheet.height, 2 * 32);

    let out = folder.path().join("run");
    let said = check(
        &[&train_flags("fcn", data, &out)[..], &TINY].concat(),
        0,
        &["mIoU"],
    );
    assert!(
        said.contains(classes[0]) && !said.contains("sidewalk"),
        "{said}"
    );
    let scores = json(&out.join("scores.json"));
    for class in classes {
        assert!(
            scores["classes"].get(class).is_some(),
            "{class} in {scores}"
        );
    }
    let evaluated = folder.path().join("eval.json");
    let kept = folder.path().join("kept");
    let args = [
        "eval",
        "--checkpoint",
        text(&out),
        "--data",
        data,
        "--json",
        text(&evaluated),
        "--save-predictions",
        text(&kept),
    ];
    check(&args, 0, &[]);
    assert_eq!(
        json(&evaluated)["classes"].as_object().unwrap().len(),
        classes.len()
    );
    assert!(fs::read_dir(&kept).unwrap().count() > 0);

    let predicted = folder.path().join("predicted");
    let args = [&predict_flags(&out, &predicted)[..], &[text(picture)]].concat();
    check(&args, 0, &[]);
    let stem = picture.file_stem().unwrap().to_str().unwrap();
    let shown = read_image(&predicted.join(format!("{stem}_color.png"))).unwrap();
    for pixel in shown.data.as_chunks::<3>().0 {
        assert!(
            colors.contains(pixel),
            "{pixel:?} is no colour of {colors:?}"
        );
    }
    report
}

/// The tutorial's data set.
#[test]
fn forty_pictures_with_masks_of_0_and_255() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("cracks");
    write(
        &root,
        named(0..40, "images/{}.png", "masks/{}.png"),
        binary(255),
    );
    let definition = folder.path().join("cracks.toml");
    let init = ["data", "init", text(&root), "--out", text(&definition)];
    let said = check(&init, 0, &["halfseg doctor --data"]);
    assert!(!said.contains("warning"), "{said}");
    check(&init, 1, &["expected no file, found one"]);
    let written = fs::read_to_string(&definition).unwrap();
    assert!(written.contains("root = \"cracks\""), "{written}");
    let written = written
        .replace("\"background\"", "\"wall\"")
        .replace("\"object\"", "\"crack\"");
    fs::write(&definition, written).unwrap();

    let colors = [[0, 0, 0], [255, 64, 64]];
    let picture = root.join("images/003.png");
    let report = check_whole_way(&folder, &definition, &["wall", "crack"], &colors, &picture);
    assert_eq!(kinds(&report), BTreeSet::from(["split-small".to_owned()]));
    assert_eq!(report["splits"][0]["pictures"], 32);
    assert_eq!(report["splits"][1]["pictures"], 8);

    // Another data set does not fit.
    let other = folder.path().join("other.toml");
    let written = fs::read_to_string(&definition).unwrap();
    fs::write(&other, written.replace("\"crack\"", "\"hole\"")).unwrap();
    let run = folder.path().join("run");
    let args = ["eval", "--checkpoint", text(&run), "--data", text(&other)];
    check(&args, 1, &["2 (wall, crack)", "2 (wall, hole)"]);
    let args = ["eval", "--checkpoint", text(&run), "--data", "synthetic"];
    check(&args, 1, &["2 (wall, crack)", "19 (road, sidewalk"]);
    let flags = train_flags("fcn", text(&definition), &run);
    let args = [&flags[..], &TINY, &["--overwrite", "--classes", "5"]].concat();
    check(
        &args,
        1,
        &[
            "expected the classes of the network",
            "5 (class_0",
            "2 (wall, crack)",
        ],
    );
}

#[test]
fn masks_of_palettes_and_colors() {
    let colors = [[10, 20, 30], [200, 0, 0], [0, 200, 0]];
    let class = |id: u8| match id {
        0 => 1,
        10 => 2,
        _ => 0,
    };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("palette");
    let in_split = |split: &str, range| {
        named(
            range,
            &format!("{split}/images/{{}}.png"),
            &format!("{split}/labels/{{}}_mask.png"),
        )
    };
    let all = [in_split("train", 0..6), in_split("val", 6..10)].concat();
    write(&root, all, |path, label| {
        palette_mask(path, label, &colors, class)
    });
    let definition = root.join("own.toml");
    check(
        &["data", "init", text(&root), "--out", text(&definition)],
        0,
        &[],
    );
    let picture = root.join("val/images/007.png");
    let names = ["class_0", "class_1", "class_2"];
    check_whole_way(&folder, &definition, &names, &colors, &picture);

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("colors");
    write(
        &root,
        named(0..12, "a/{}.png", "b/{}.png"),
        |path, label| {
            let data = label
                .data
                .iter()
                .flat_map(|id| colors[usize::from(class(*id))])
                .collect();
            let image = halfseg_data::RgbImage {
                width: SIZE.0,
                height: SIZE.1,
                data,
            };
            write_rgb(path, &image).unwrap();
        },
    );
    fs::write(
        root.join("labelmap.txt"),
        "# label:color_rgb:parts:actions\nrest:10,20,30::\nroad:200,0,0::\nsky:0,200,0::\n",
    )
    .unwrap();
    let definition = folder.path().join("own.toml");
    check(
        &["data", "init", text(&root), "--out", text(&definition)],
        0,
        &[],
    );
    check_whole_way(
        &folder,
        &definition,
        &["rest", "road", "sky"],
        &colors,
        &root.join("a/000.png"),
    );
}

/// Trees as published data sets have them, with few of the classes.
#[test]
fn published_layouts() {
    // Borders are left out.
    let voc = |path: &Path, label: &LabelMap| {
        let class = |id: u8| match id {
            0 => 15,
            10 => IGNORE,
            _ => 0,
        };
        palette_mask(path, label, &[[0; 3]; 256], class);
    };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("VOC2012");
    write(
        &root,
        named(
            0..14,
            "JPEGImages/2007_{}.jpg",
            "SegmentationClass/2007_{}.png",
        ),
        voc,
    );
    let lists = root.join("ImageSets/Segmentation");
    fs::create_dir_all(&lists).unwrap();
    let list =
        |range: std::ops::Range<usize>| range.map(|i| format!("2007_{i:03}\n")).collect::<String>();
    fs::write(lists.join("train.txt"), list(0..8)).unwrap();
    fs::write(lists.join("val.txt"), list(8..14)).unwrap();
    published(
        &folder,
        &root,
        "voc",
        21,
        &[("background", [0, 0, 0]), ("person", [192, 128, 128])],
        "JPEGImages/2007_001.jpg",
    );

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("ADEChallengeData2016");
    let ade = |path: &Path, label: &LabelMap| {
        write_label(
            path,
            &mapped(label, |id| if id == IGNORE { 0 } else { id + 1 }),
        )
        .unwrap()
    };
    let of = |part: &str, range| {
        named(
            range,
            &format!("images/{part}/ADE_{{}}.jpg"),
            &format!("annotations/{part}/ADE_{{}}.png"),
        )
    };
    write(
        &root,
        [of("training", 0..16), of("validation", 16..20)].concat(),
        ade,
    );
    published(
        &folder,
        &root,
        "ade20k",
        150,
        &[("wall", [120, 120, 120]), ("windowpane", [230, 230, 230])],
        "images/training/ADE_001.jpg",
    );

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("kitti");
    let kitti = |path: &Path, label: &LabelMap| {
        write_label(path, &mapped(label, halfseg_data::label_id)).unwrap()
    };
    write(
        &root,
        named(
            0..30,
            "training/image_2/{}_10.png",
            "training/semantic/{}_10.png",
        ),
        kitti,
    );
    published(
        &folder,
        &root,
        "kitti",
        19,
        &[("road", [128, 64, 128]), ("sidewalk", [244, 35, 232])],
        "training/image_2/001_10.png",
    );
}

fn published(
    folder: &TempDir,
    root: &Path,
    preset: &str,
    classes: usize,
    known: &[(&str, [u8; 3])],
    picture: &str,
) {
    let definition = folder.path().join("own.toml");
    check(
        &["data", "init", text(root), "--out", text(&definition)],
        0,
        &[],
    );
    let written = fs::read_to_string(&definition).unwrap();
    assert!(
        written.contains(&format!("preset = \"{preset}\"")),
        "{written}"
    );
    let out = folder.path().join("run");
    let data = text(&definition);
    let report = folder.path().join("doctor.json");
    let doctor = ["doctor", "--data", data, "--json", text(&report)];
    // Few of the classes occur, which is no fault.
    check(&[&doctor[..], &TINY].concat(), 0, &[]);
    let found = kinds(&json(&report));
    assert!(
        found.contains("class-absent") || preset == "kitti",
        "{found:?}"
    );
    check(
        &[&train_flags("fcn", data, &out)[..], &TINY].concat(),
        0,
        &["mIoU"],
    );
    let scores = json(&out.join("scores.json"));
    assert_eq!(scores["classes"].as_object().unwrap().len(), classes);
    let evaluated = folder.path().join("eval.json");
    let args = [
        "eval",
        "--checkpoint",
        text(&out),
        "--data",
        data,
        "--json",
        text(&evaluated),
    ];
    check(&args, 0, &[]);
    for scores in [scores, json(&evaluated)] {
        for (name, _) in known {
            assert!(scores["classes"].get(name).is_some(), "{name} in {scores}");
        }
    }
    // As the checkpoint carries them.
    let settings = halfseg_segmentor::read_metadata(out.join("best.safetensors")).unwrap();
    let settings: Value = serde_json::from_str(&settings["halfseg.predict"]).unwrap();
    let [names, colors] =
        ["names", "colors"].map(|key| settings["classes"][key].as_array().unwrap());
    for (name, color) in known {
        let class = names.iter().position(|found| found == name).unwrap();
        assert_eq!(colors[class], serde_json::json!(color), "{name}");
    }
    let predicted = folder.path().join("predicted");
    let picture = root.join(picture);
    check(
        &[&predict_flags(&out, &predicted)[..], &[text(&picture)]].concat(),
        0,
        &[],
    );
    let stem = picture.file_stem().unwrap().to_str().unwrap();
    let shown = read_image(&predicted.join(format!("{stem}_color.png"))).unwrap();
    let map = halfseg_data::read_label(&predicted.join(format!("{stem}_trainIds.png"))).unwrap();
    for (pixel, class) in shown.data.as_chunks::<3>().0.iter().zip(map.data) {
        assert_eq!(serde_json::json!(pixel), colors[usize::from(class)]);
    }
}

#[test]
fn doctor_fails_where_training_does_in_the_same_words() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("own");
    write(
        &root,
        named(0..24, "images/{}.png", "masks/{}.png"),
        binary(255),
    );
    let definition = folder.path().join("own.toml");
    let text_of = "root = \"own\"\nclasses = [\"wall\", \"crack\"]\n[[sets]]\nsplit = { train = 0.5, val = 0.5 }\n\
                   images = \"images/*.png\"\nmasks = \"masks/{stem}.png\"\n";
    fs::write(&definition, text_of).unwrap();
    let report = folder.path().join("doctor.json");
    let args = [
        "doctor",
        "--data",
        text(&definition),
        "--json",
        text(&report),
    ];
    let args = [&args[..], &TINY].concat();
    check(&args, 1, &["training would fail"]);
    let report = json(&report);
    assert_eq!(report["findings"][0]["kind"], "mask-0-255");
    assert_eq!(report["findings"][0]["severity"], "error");
    assert_eq!(report["findings"][0]["count"], 24);
    let words = report["findings"][0]["message"].as_str().unwrap();
    let out = folder.path().join("run");
    check(
        &[&train_flags("fcn", text(&definition), &out)[..], &TINY].concat(),
        1,
        &[words],
    );

    // A Cityscapes tree needs no definition.
    let tree = crate::support::cityscapes(&folder);
    let args = [&["doctor", "--data", text(&tree)][..], &TINY].concat();
    check(&args, 0, &[]);
    let output = crate::support::run(&["doctor", "--data", text(&root)]);
    assert!(
        stderr(&output).contains("halfseg data init"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn every_finding_is_documented() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/own-data.md");
    let Ok(page) = fs::read_to_string(page) else {
        eprintln!("skipped: this package is not part of its workspace");
        return;
    };
    for kind in halfseg_data::Kind::ALL {
        let row = format!("| `{kind}` | {} | ", kind.severity());
        assert!(page.contains(&row), "{row}");
    }
}
