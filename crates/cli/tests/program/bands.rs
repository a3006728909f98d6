//! Pictures of other channels than RGB, from doctor to predictions, and what a checkpoint knows of its data.

use std::fs;
use std::path::Path;

use halfseg_data::{Dataset, LabelMap, SyntheticStreets, write_label};
use serde_json::Value;

use crate::own::check_whole_way;
use crate::support::{TINY, check, text, train_flags};

const WIDTH: usize = 64;
const HEIGHT: usize = 32;

/// An uncompressed TIFF of more than two channels of 16 bits, those of a pixel together (TIFF 6.0, sections 2 and 8).
fn write_tiff(path: &Path, channels: usize, data: &[u16]) {
    let values: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let bits: Vec<u8> = [16u16; 16][..channels]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let at_bits = 8 + values.len();
    let at_directory = at_bits + bits.len();
    let short = |v: usize| v as u32;
    let entries = [
        (256u16, 3u16, 1u32, WIDTH as u32),
        (257, 3, 1, HEIGHT as u32),
        (258, 3, short(channels), at_bits as u32),
        (259, 3, 1, 1),
        // Black is zero.
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, short(channels)),
        (278, 3, 1, HEIGHT as u32),
        (279, 4, 1, values.len() as u32),
        (284, 3, 1, 1),
    ];
    let mut file = b"II\x2a\0".to_vec();
    file.extend((at_directory as u32).to_le_bytes());
    file.extend(values);
    file.extend(bits);
    file.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, file).unwrap();
}

/// Scenes whose channels are mixed from red, green and blue, with masks of road and anything else.
fn write_scenes(root: &Path, count: usize, write: impl Fn(usize, &[[u8; 3]])) {
    let streets = SyntheticStreets::new(WIDTH, HEIGHT, count, 11);
    for index in 0..count {
        let sample = streets.get(index).unwrap();
        write(index, sample.image.rgb().unwrap().data.as_chunks::<3>().0);
        let label = sample.label.unwrap();
        let mask = LabelMap {
            data: label.data.iter().map(|id| u8::from(*id == 0)).collect(),
            ..label
        };
        let path = root.join(format!("masks/{index:03}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_label(&path, &mask).unwrap();
    }
}

fn define(path: &Path, pictures: &str, images: &str) {
    let definition = format!(
        "root = \"own\"\nclasses = [\"rest\", {{ name = \"road\", color = [9, 8, 7] }}]\n[pictures]\n{pictures}\n\
         [[sets]]\nsplit = {{ train = 0.6, val = 0.4 }}\nimages = \"images/*.{images}\"\nmasks = \"masks/{{stem}}.png\"\n"
    );
    fs::write(path, definition).unwrap();
}

fn metadata(checkpoint: &Path) -> Value {
    let found = halfseg_segmentor::read_metadata(checkpoint).unwrap();
    serde_json::to_value(found).unwrap()
}

const COLORS: [[u8; 3]; 2] = [[0, 0, 0], [9, 8, 7]];

#[test]
fn five_channels_of_sixteen_bits() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("own");
    write_scenes(&root, 30, |index, pixels| {
        let mixed = pixels.iter().flat_map(|[r, g, b]| {
            let [r, g, b] = [r, g, b].map(|v| u16::from(*v));
            // Of another range each, beyond 8 bits.
            [
                200 * r,
                3 * g + 40_000,
                17 * b,
                (r + g + b) * 50,
                65_535 - 100 * g,
            ]
        });
        let data: Vec<u16> = mixed.collect();
        write_tiff(&root.join(format!("images/{index:03}.tif")), 5, &data);
    });
    let definition = folder.path().join("own.toml");
    define(&definition, "channels = 5\nbits = 16", "tif");
    let picture = root.join("images/004.tif");
    let report = check_whole_way(&folder, &definition, &["rest", "road"], &COLORS, &picture);
    let [mean, std] = ["mean", "std"].map(|key| report[key].as_array().unwrap().clone());
    assert_eq!((mean.len(), std.len()), (5, 5));
    assert!(mean[1].as_f64().unwrap() > 40_000.0, "{mean:?}");

    // The checkpoint normalises by what it was trained with, and knows its data.
    let run = folder.path().join("run");
    let metadata = metadata(&run.join("best.safetensors"));
    let settings: Value =
        serde_json::from_str(metadata["halfseg.predict"].as_str().unwrap()).unwrap();
    let own = &settings["pictures"];
    assert_eq!((&own["channels"], &own["bits"]), (&5.into(), &16.into()));
    for (ours, theirs) in [("mean", &mean), ("std", &std)] {
        for (ours, theirs) in own[ours].as_array().unwrap().iter().zip(theirs) {
            let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
            assert!((ours / theirs - 1.0).abs() < 1e-6, "{ours} {theirs}");
        }
    }
    assert_eq!(
        metadata["halfseg.data"],
        fs::read_to_string(&definition).unwrap()
    );

    // What is given counts.
    let given = folder.path().join("given.toml");
    let numbers = "channels = 5\nbits = 16\nmean = [1, 2, 3, 4, 5]\nstd = [10, 20, 30, 40, 50]";
    define(&given, numbers, "tif");
    let out = folder.path().join("given");
    let said = check(
        &[&train_flags("fcn", text(&given), &out)[..], &TINY].concat(),
        0,
        &[],
    );
    assert!(!said.contains("pictures.mean"), "{said}");
    assert!(
        said.contains("data.photometric = true has no effect"),
        "{said}"
    );
    let settings = self::metadata(&out.join("best.safetensors"));
    assert!(
        settings["halfseg.predict"]
            .as_str()
            .unwrap()
            .contains("\"std\":[10.0,20.0,30.0,40.0,50.0]")
    );

    // Other pictures are refused: of an evaluation, of a prediction, of a network that is asked for.
    let tree = crate::support::cityscapes(&folder);
    let jpeg = crate::support::image_file(&tree, 0);
    let predicted = folder.path().join("wrong");
    let args = [
        "predict",
        "--checkpoint",
        text(&run),
        "--out",
        text(&predicted),
        text(&jpeg),
    ];
    check(
        &args,
        1,
        &[
            "expected 5 channels of 16 bits",
            "found 3 channels of 8 bits",
        ],
    );
    let flags = train_flags("fcn", text(&definition), &run);
    let args = [
        &flags[..],
        &TINY,
        &["--overwrite", "--set", "model.in_channels=4"],
    ]
    .concat();
    check(&args, 2, &["model.in_channels", "expected 5"]);
    let other = folder.path().join("other.toml");
    define(&other, "channels = 4\nbits = 16", "tif");
    let args = ["eval", "--checkpoint", text(&run), "--data", text(&other)];
    check(
        &args,
        1,
        &["expected 4 channels of 16 bits", "picture-channels"],
    );
}

#[test]
fn grey_pictures_and_what_a_checkpoint_knows() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("own");
    write_scenes(&root, 30, |index, pixels| {
        let data: Vec<u8> = pixels.iter().map(|[r, ..]| *r).collect();
        let path = root.join(format!("images/{index:03}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let size = (WIDTH as u32, HEIGHT as u32);
        crate::support::write_png(&path, size, png::ColorType::Grayscale, &data);
    });
    let definition = folder.path().join("own.toml");
    define(&definition, "channels = 1", "png");
    let picture = root.join("images/004.png");
    check_whole_way(&folder, &definition, &["rest", "road"], &COLORS, &picture);

    // Predictions that were kept are scored without a network, to the same numbers.
    let (run, kept) = (folder.path().join("run"), folder.path().join("kept"));
    let scores = folder.path().join("scores.json");
    let args = [
        "score",
        "--predictions",
        text(&kept),
        "--data",
        text(&definition),
        "--json",
        text(&scores),
    ];
    check(&args, 0, &[]);
    let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let (ours, theirs) = (read(&scores), read(&folder.path().join("eval.json")));
    for key in ["miou", "classes", "images", "split"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    assert!(ours["classes"]["road"]["iou"].is_number(), "{ours}");
    let one = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(one).unwrap();
    check(&args, 1, &["expected a prediction", "found none"]);
    let args = ["score", "--predictions", text(&kept), "--data", text(&root)];
    check(&args, 2, &["expected a definition"]);
    check(&["score", "--predictions", text(&kept)], 2, &["--truth"]);

    // The definition comes back from the checkpoint, for data that have moved.
    let moved = folder.path().join("moved");
    #[allow(
        clippy::disallowed_methods,
        reason = "a folder of this test is moved, nothing is replaced"
    )]
    fs::rename(&root, &moved).unwrap();
    let back = folder.path().join("back.toml");
    let args = [
        "data",
        "extract",
        text(&run),
        "--out",
        text(&back),
        "--root",
        text(&moved),
    ];
    check(&args, 0, &["doctor"]);
    let args = [
        "eval",
        "--checkpoint",
        text(&run),
        "--data",
        text(&back),
        "--json",
        text(&scores),
    ];
    check(&args, 0, &[]);
    assert_eq!(read(&scores)["miou"], theirs["miou"]);
}

#[test]
fn descriptions_of_other_programs_convert() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("own");
    write_scenes(&root, 2, |index, pixels| {
        let data: Vec<u8> = pixels.concat();
        let path = root.join(format!("images/{index:03}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let size = (WIDTH as u32, HEIGHT as u32);
        crate::support::write_png(&path, size, png::ColorType::Rgb, &data);
    });
    let yaml = root.join("data.yaml");
    fs::write(
        &yaml,
        "train: images\nnames: [rest, road]\nmasks_dir: masks\n",
    )
    .unwrap();
    let out = folder.path().join("own.toml");
    let args = ["data", "convert", text(&yaml), "--out", text(&out)];
    check(&args, 0, &["halfseg doctor --data"]);
    let written = fs::read_to_string(&out).unwrap();
    assert!(
        written.contains("root = \"own\"") && written.contains("\"road\""),
        "{written}"
    );
    check(&args, 1, &["expected no file, found one"]);
    let elsewhere = folder.path().join("elsewhere.toml");
    let args = [
        "data",
        "convert",
        text(&yaml),
        "--out",
        text(&elsewhere),
        "--root",
        "no-such-folder",
    ];
    check(&args, 1, &["--root says where it is"]);
}
