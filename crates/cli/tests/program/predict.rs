//! `halfseg predict`.

use std::fs;
use std::path::Path;

use serde_json::Value;

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
    let base = [
        "predict",
        "--checkpoint",
        text(&checkpoint),
        "--out",
        text(&out),
    ];
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
        &[
            "`eval.slide_stride`",
            "at most eval.slide_crop, 16x16",
            "8x20",
        ],
    );
}
