//! A network as an ONNX file.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use halfseg_data::PictureFormat;
use halfseg_onnx::{OnnxInput, OnnxOptions, OnnxOutput, WeightFormat};
use halfseg_predict::{PredictorSettings, known_classes};
use halfseg_segmentor::Segmentor;
use halfseg_train::RunPrecision;
use serde_json::json;

use crate::args::ExportArgs;
use crate::failure::Usage;

/// Writes `model`, which was read from `weights`, once it ran in another runtime and gave the same.
pub fn write(args: &ExportArgs, weights: &Path, model: &Segmentor) -> Result<()> {
    let flags = &args.onnx;
    let mut options = OnnxOptions::default();
    options.batch = flags.batch;
    options.size = flags.size.map(|size| [size.height, size.width]);
    let pictures = PredictorSettings::read(weights)?
        .unwrap_or_default()
        .pictures;
    if flags.uint8_input {
        if pictures.bits() != 8 {
            let message = format!(
                "--uint8-input: expected a network for pictures of 8 bits, found one for {pictures}"
            );
            return Err(Usage(message).into());
        }
        options.input = OnnxInput::Bytes {
            mean: pictures.mean().to_vec(),
            std: pictures.std().to_vec(),
        };
    }
    if flags.argmax {
        options.output = OnnxOutput::Classes;
    }
    options.weights = match flags.weights {
        None | Some(RunPrecision::F32) => WeightFormat::F32,
        Some(RunPrecision::F16) => WeightFormat::F16,
        Some(RunPrecision::Bf16) => WeightFormat::Bf16,
    };
    for (key, value) in metadata(weights, model, &pictures)? {
        options = options.with_metadata(key, value);
    }
    let file = halfseg_onnx::export(model, &options)?;
    let agreement = halfseg_onnx::check(&file, model, &options)?;
    let [height, width] = agreement.size;
    let logits = agreement
        .relative
        .map(|far| format!("logits {far:.1e} off (2-norm, relative), "));
    message!(
        "run in tract on noise of {height}x{width}: {}classes other in {:.3} % of the pixels",
        logits.unwrap_or_default(),
        100.0 * agreement.other_class
    );
    halfseg_files::write_atomically(&args.out, |out| out.write_all(&file))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    message!(
        "wrote {} ({} MB)",
        args.out.display(),
        file.len().div_ceil(1_000_000)
    );
    Ok(())
}

/// What a reader of the file would want to know, under keys of its own.
fn metadata(
    weights: &Path,
    model: &Segmentor,
    pictures: &PictureFormat,
) -> Result<Vec<(&'static str, String)>> {
    let config = model.config();
    let mut entries = vec![
        ("task", "semantic segmentation".to_owned()),
        ("method", config.method.to_string()),
        ("backbone", config.backbone.to_string()),
        ("pictures", pictures.to_string()),
        ("mean", json!(pictures.mean()).to_string()),
        ("std", json!(pictures.std()).to_string()),
        ("license", "The program that wrote this file is MIT OR Apache-2.0. The weights have the terms of whoever trained \
                     them, and of the data that they were trained on.".to_owned()),
    ];
    if let Some(classes) = known_classes(weights)? {
        entries.push(("classes", json!(classes.names()).to_string()));
        entries.push(("palette", json!(classes.colors()).to_string()));
    }
    Ok(entries)
}
