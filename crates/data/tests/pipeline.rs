//! The training pipeline against recordings of MMSegmentation's own transforms.
//!
//! A recording is a folder with `pipeline.json` (parameters) and `pipeline.safetensors` (what
//! mmcv 2.1.0, mmseg 1.2.2 and OpenCV 4.11 made of them; pictures are BGR). Every recording below
//! `HALFSEG_REFERENCE` is replayed; without the variable, a small committed one is.

use std::path::{Path, PathBuf};

use halfseg_data::{
    Augmented, Choices, Crop, CropBox, LabelMap, Photometric, Pipeline, RgbImage, Scale,
    bgr_from_hsv, flip, hsv_from_rgb, normalize, pad, resize_bilinear, resize_nearest, scaled_size,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// How far two lists of values are from each other.
struct Distance {
    largest: f64,
    /// Values that are not identical.
    different: usize,
    count: usize,
}

fn distance(ours: impl ExactSizeIterator<Item = f64>, theirs: &[f64], what: &str) -> Distance {
    assert_eq!(ours.len(), theirs.len(), "{what}: number of values");
    let mut out = Distance {
        largest: 0.0,
        different: 0,
        count: theirs.len(),
    };
    for (a, b) in ours.zip(theirs) {
        out.largest = out.largest.max((a - b).abs());
        out.different += usize::from(a != *b);
    }
    out
}

/// What a comparison has to reach.
#[derive(Clone, Copy)]
enum Bound {
    Identical,
    /// Largest error in grey levels, and the share of values that must be identical.
    Levels(f64, f64),
    Absolute(f64),
}

/// The comparisons of one recording: prints a line each, collects what misses its bound.
struct Report {
    name: String,
    lines: usize,
    missed: Vec<String>,
}

impl Report {
    fn compare(
        &mut self,
        what: &str,
        ours: impl ExactSizeIterator<Item = f64>,
        theirs: &[f64],
        bound: Bound,
    ) {
        let found = distance(ours, theirs, what);
        let identical = 1.0 - found.different as f64 / found.count.max(1) as f64;
        let (held, bound) = match bound {
            Bound::Identical => (found.different == 0, "identical".to_owned()),
            Bound::Levels(levels, share) => (
                found.largest <= levels && identical >= share,
                format!("<= {levels}, identical >= {:.0}%", 100.0 * share),
            ),
            Bound::Absolute(limit) => (found.largest <= limit, format!("<= {limit:e}")),
        };
        let line = format!(
            "{} {what}: max error {:.3e}, identical {:.4}% of {} ({bound}){}",
            self.name,
            found.largest,
            100.0 * identical,
            found.count,
            if held { "" } else { " MISSED" }
        );
        println!("{line}");
        self.lines += 1;
        if !held {
            self.missed.push(line);
        }
    }

    fn compare_u8(&mut self, what: &str, ours: &[u8], theirs: &[f64], bound: Bound) {
        self.compare(what, ours.iter().map(|&v| v as f64), theirs, bound);
    }
}

/// The tensors and parameters of one recording.
struct Recording<'a> {
    tensors: SafeTensors<'a>,
    json: Value,
}

impl Recording<'_> {
    fn has(&self, key: &str) -> bool {
        self.tensors.tensor(key).is_ok()
    }

    fn shape(&self, key: &str) -> Vec<usize> {
        self.tensors.tensor(key).expect(key).shape().to_vec()
    }

    fn values(&self, key: &str) -> Vec<f64> {
        let view = self.tensors.tensor(key).expect(key);
        let data = view.data();
        match view.dtype() {
            Dtype::U8 => data.iter().map(|&v| v as f64).collect(),
            Dtype::F32 => data
                .as_chunks()
                .0
                .iter()
                .map(|&v| f32::from_le_bytes(v) as f64)
                .collect(),
            Dtype::I64 => data
                .as_chunks()
                .0
                .iter()
                .map(|&v| i64::from_le_bytes(v) as f64)
                .collect(),
            other => panic!("{key}: expected u8, f32 or i64, found {other:?}"),
        }
    }

    /// A recorded BGR picture as RGB.
    fn picture(&self, key: &str) -> RgbImage {
        let shape = self.shape(key);
        let mut data: Vec<u8> = self.values(key).iter().map(|&v| v as u8).collect();
        data.as_chunks_mut::<3>()
            .0
            .iter_mut()
            .for_each(|p| p.reverse());
        RgbImage {
            width: shape[1],
            height: shape[0],
            data,
        }
    }

    /// The values of a recorded BGR picture in RGB order.
    fn picture_values(&self, key: &str) -> Vec<f64> {
        self.picture(key).data.iter().map(|&v| v as f64).collect()
    }

    fn label(&self, key: &str) -> LabelMap {
        let shape = self.shape(key);
        LabelMap {
            width: shape[1],
            height: shape[0],
            data: self.values(key).iter().map(|&v| v as u8).collect(),
        }
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("expected a number, found {value}"))
}

fn pair(value: &Value) -> (usize, usize) {
    (number(&value[0]) as usize, number(&value[1]) as usize)
}

fn photometric(value: &Value) -> Photometric {
    let float = |key: &str| value.get(key).and_then(Value::as_f64).map(|v| v as f32);
    Photometric {
        brightness: float("brightness"),
        contrast: float("contrast"),
        contrast_first: value
            .get("contrast_first")
            .and_then(Value::as_bool)
            .unwrap_or(true),
        saturation: float("saturation"),
        hue: value.get("hue").and_then(Value::as_i64).map(|v| v as i32),
    }
}

fn whole(size: (usize, usize)) -> CropBox {
    CropBox {
        left: 0,
        top: 0,
        width: size.0,
        height: size.1,
    }
}

const RESIZE: Bound = Bound::Levels(1.0, 0.99);
const COLOR: Bound = Bound::Levels(1.0, 0.0);
const NORMALISE: Bound = Bound::Absolute(1e-6);

fn resizes(recording: &Recording<'_>, image: &RgbImage, label: &LabelMap, report: &mut Report) {
    let mut check = |image: &RgbImage, label: &LabelMap, bound, key: &str| {
        let size = scaled_size((image.width, image.height), bound);
        let shape = recording.shape(&format!("{key}.image"));
        assert_eq!((size.1, size.0), (shape[0], shape[1]), "{key}: size");
        let made = resize_bilinear(image, size, whole(size));
        let theirs = recording.picture_values(&format!("{key}.image"));
        report.compare_u8(&format!("{key}.image"), &made.data, &theirs, RESIZE);
        let made = resize_nearest(label, size, whole(size));
        let theirs = recording.values(&format!("{key}.label"));
        report.compare_u8(
            &format!("{key}.label"),
            &made.data,
            &theirs,
            Bound::Identical,
        );
    };
    for entry in recording.json["resize"].as_array().expect("resize") {
        let key = entry["key"].as_str().expect("key");
        check(image, label, pair(&entry["scale"]), key);
    }
    if recording.has("resize.odd.image") {
        // The recorder keeps the first 201 columns and asks for (190, 100).
        let region = CropBox {
            left: 0,
            top: 0,
            width: image.width.min(201),
            height: image.height,
        };
        let (image, label) = (
            halfseg_data::crop(image, region),
            halfseg_data::crop(label, region),
        );
        check(&image, &label, (190, 100), "resize.odd");
    }
}

fn colors(recording: &Recording<'_>, image: &RgbImage, report: &mut Report) {
    let cube = recording.picture("hsv.cube");
    let hsv: Vec<u8> = cube
        .data
        .as_chunks()
        .0
        .iter()
        .flat_map(|&p| hsv_from_rgb(p))
        .collect();
    report.compare_u8("hsv.forward", &hsv, &recording.values("hsv.forward"), COLOR);

    let input = recording.values("hsv.back_input");
    let width = recording.shape("hsv.back_input")[1];
    let pixels = input.as_chunks::<3>().0.iter().enumerate();
    let bgr: Vec<u8> = pixels
        .flat_map(|(i, p)| bgr_from_hsv(p.map(|v| v as u8), i % width >= width - width % 32))
        .collect();
    report.compare_u8("hsv.back", &bgr, &recording.values("hsv.back"), COLOR);

    let mut check = |key: String, distortion: Photometric| {
        let mut made = image.clone();
        distortion.apply(&mut made);
        report.compare_u8(&key, &made.data, &recording.picture_values(&key), COLOR);
    };
    for name in ["brightness", "contrast", "saturation", "hue"] {
        for (i, value) in recording.json[name]
            .as_array()
            .expect(name)
            .iter()
            .enumerate()
        {
            let parameters = serde_json::json!({ name: value });
            check(format!("{name}.{i}"), photometric(&parameters));
        }
    }
    let all = recording.json["photometric"]
        .as_array()
        .expect("photometric");
    for (i, parameters) in all.iter().enumerate() {
        check(format!("photometric.{i}"), photometric(parameters));
    }
}

fn floats(values: &[f32]) -> impl ExactSizeIterator<Item = f64> {
    values.iter().map(|&v| v as f64)
}

fn normalisation(
    recording: &Recording<'_>,
    image: &RgbImage,
    label: &LabelMap,
    report: &mut Report,
) {
    let made = normalize(image);
    let theirs = recording.values("normalise.preprocessor");
    report.compare("normalise.preprocessor", floats(&made), &theirs, NORMALISE);
    let area = image.width * image.height;
    let interleaved: Vec<f32> = (0..area)
        .flat_map(|i| [made[i], made[area + i], made[2 * area + i]])
        .collect();
    let theirs = recording.values("normalise.imnormalize");
    report.compare(
        "normalise.imnormalize",
        floats(&interleaved),
        &theirs,
        NORMALISE,
    );

    let shape = recording.shape("pad.label");
    let (from, to) = ((image.width, image.height), (shape[1], shape[0]));
    let padded = pad(&made, 3, from, to, 0.0);
    report.compare(
        "pad.image",
        floats(&padded),
        &recording.values("pad.image"),
        NORMALISE,
    );
    let padded = pad(&label.data, 1, from, to, 255);
    report.compare_u8(
        "pad.label",
        &padded,
        &recording.values("pad.label"),
        Bound::Identical,
    );
}

fn chains(recording: &Recording<'_>, image: &RgbImage, label: &LabelMap, report: &mut Report) {
    let (height, width) = pair(&recording.json["crop"]);
    let crop = Crop { height, width };
    let pipeline = Pipeline {
        scale: Scale {
            width: image.width,
            height: image.height,
        },
        crop,
        ..Pipeline::default()
    };
    let all = recording.json["chains"].as_array().expect("chains");
    for (i, chain) in all.iter().enumerate() {
        let size = pipeline.resized((image.width, image.height), number(&chain["ratio"]));
        let (top, left) = pair(&chain["crop"]);
        let choices = Choices {
            size,
            region: CropBox {
                left,
                top,
                width: crop.width.min(size.0 - left),
                height: crop.height.min(size.1 - top),
            },
            flip: chain["flip"].as_bool().expect("flip"),
            photometric: photometric(&chain["photo"]),
            augmented: Augmented::default(),
        };
        let name = |part: &str| format!("chain.{i}.{part}");
        let (made, map) = choices.apply(image, label);
        let theirs = recording.picture_values(&name("image"));
        report.compare_u8(&name("image"), &made.data, &theirs, COLOR);
        let theirs = recording.values(&name("label"));
        report.compare_u8(&name("label"), &map.data, &theirs, Bound::Identical);

        let made = pipeline.replay(image, label, &choices);
        // One grey level is 1 / 57.12 at most after the division by the standard deviation.
        let bound = Bound::Absolute(1.0 / 57.12 + 1e-6);
        let theirs = recording.values(&name("float"));
        report.compare(&name("float"), floats(&made.image), &theirs, bound);
        let theirs = recording.values(&name("target"));
        report.compare_u8(&name("target"), &made.label, &theirs, Bound::Identical);

        // Crop and flip as functions of their own give the same map.
        let mut steps =
            halfseg_data::crop(&resize_nearest(label, size, whole(size)), choices.region);
        if choices.flip {
            flip(&mut steps);
        }
        assert_eq!(steps, map, "chain {i}: crop and flip one after the other");
    }
}

fn replay(folder: &Path) -> Report {
    let bytes = std::fs::read(folder.join("pipeline.safetensors")).expect("pipeline.safetensors");
    let json = std::fs::read(folder.join("pipeline.json")).expect("pipeline.json");
    let recording = Recording {
        tensors: SafeTensors::deserialize(&bytes).expect("safetensors"),
        json: serde_json::from_slice(&json).expect("json"),
    };
    let mut report = Report {
        name: folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        lines: 0,
        missed: Vec::new(),
    };
    let (image, label) = (recording.picture("image"), recording.label("label"));
    resizes(&recording, &image, &label, &mut report);
    colors(&recording, &image, &mut report);
    normalisation(&recording, &image, &label, &mut report);
    chains(&recording, &image, &label, &mut report);
    report
}

/// Folders below `root` that hold a recording of the pipeline.
fn recordings(root: &Path, found: &mut Vec<PathBuf>) {
    if root.join("pipeline.safetensors").is_file() {
        found.push(root.to_owned());
    }
    let Ok(entries) = std::fs::read_dir(root) else {
        return;
    };
    for path in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
    {
        recordings(&path, found);
    }
}

#[test]
fn every_step_equals_the_recorded_one() {
    let mut folders = Vec::new();
    match std::env::var_os("HALFSEG_REFERENCE") {
        Some(root) => {
            recordings(Path::new(&root), &mut folders);
            folders.sort();
            println!(
                "{} pipeline recordings below HALFSEG_REFERENCE",
                folders.len()
            );
        }
        None => {
            println!("HALFSEG_REFERENCE is not set: replaying the committed recording only");
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
            recordings(&root, &mut folders);
            assert_eq!(folders.len(), 1, "the committed recording");
        }
    }
    let mut missed = Vec::new();
    for folder in folders {
        let report = replay(&folder);
        assert!(
            report.lines >= 30,
            "{}: only {} comparisons",
            report.name,
            report.lines
        );
        missed.extend(report.missed);
    }
    assert!(missed.is_empty(), "out of bounds:\n{}", missed.join("\n"));
}
