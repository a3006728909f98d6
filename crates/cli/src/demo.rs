//! The whole job on generated street scenes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use halfseg_amp::{GradScaler, Policy, StepOutcome, autocast};
use halfseg_data::{
    CLASSES, Dataset, IGNORE, LABELS, Loader, LoaderConfig, PALETTE, Pipeline, SyntheticStreets,
    normalize,
};
use halfseg_eval::{
    ConfusionMatrix, Series, argmax, colorize, confusion_svg, curves_svg, overlay, panel,
    write_rgb_png,
};
use halfseg_segmentor::{Depth, Method, Segmentor, SegmentorConfig};
use halfseg_train::{PolySchedule, Sgd};
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;

/// Width and height of a scene.
const SCENE: (usize, usize) = (128, 64);

/// Trains FCN on ResNet-18-D8 for `iterations`, scores it on held-out scenes and writes pictures,
/// curves and scores below `out`.
pub fn run(out: &Path, iterations: u64, precision: &str) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let policy = match precision {
        "f16" => Policy::f16(),
        "bf16" => Policy::bf16(),
        _ => Policy::disabled(),
    };
    let device = Device::flex();
    device.seed(1);
    let model = SegmentorConfig::new(Method::Fcn, Depth::R18).init(&device.clone().autodiff());
    let (model, losses) = train(model, &policy, &device.clone().autodiff(), iterations)?;
    let series = [Series {
        name: format!("{precision} training loss"),
        points: losses,
    }];
    curves_svg(
        &out.join("loss.svg"),
        "Training loss",
        ("iteration", "loss"),
        &series,
    )?;
    evaluate(&model.valid(), &policy, &device, out)
}

fn train(
    mut model: Segmentor,
    policy: &Policy,
    device: &Device,
    iterations: u64,
) -> Result<(Segmentor, Vec<(f64, f64)>)> {
    let streets = Arc::new(SyntheticStreets::new(SCENE.0, SCENE.1, 400, 1));
    let pipeline = Pipeline {
        scale: SCENE,
        crop: (64, 64),
        ..Pipeline::default()
    };
    let config = LoaderConfig {
        batch: 4,
        seed: 1,
        workers: 1,
        queue: 4,
        start_at: 0,
    };
    let mut scaler = match *policy == Policy::disabled() {
        true => GradScaler::disabled(),
        false => GradScaler::fixed(512.0),
    };
    let mut sgd = Sgd::new(0.9, 5e-4);
    let schedule = PolySchedule {
        lr: 0.01,
        min_lr: 1e-4,
        power: 0.9,
        iterations,
    };
    let mut dropout = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let template = "{bar:30} {pos}/{len}  {msg}  {eta} left";
    let bar = ProgressBar::new(iterations).with_style(ProgressStyle::with_template(template)?);
    let mut curve = Vec::new();
    let mut skipped = 0;
    let mut waited = std::time::Duration::ZERO;
    for batch in Loader::new(streets, pipeline, config).take(iterations as usize) {
        let batch = batch?;
        waited += batch.waited;
        let (images, labels) = batch.to_tensors(device);
        scaler.begin(&model);
        let losses = autocast(policy, || model.loss(images, labels, &mut dropout));
        let loss = losses.total.clone().into_scalar::<f32>();
        let scaled = scaler.scale(losses.total).backward(&model);
        let grads = scaler.unscale(scaled);
        let lr = schedule.at(batch.iteration);
        let update = |model, grads| sgd.step(lr, model, grads);
        let (updated, outcome) = scaler.step_with(model, grads, update);
        model = updated;
        skipped += u64::from(matches!(outcome, StepOutcome::Skipped { .. }));
        curve.push((batch.iteration as f64, f64::from(loss)));
        let rate = 4.0 * (batch.iteration + 1) as f64 / bar.elapsed().as_secs_f64().max(1e-9);
        let wait = waited.as_secs_f64();
        bar.set_message(format!(
            "loss {loss:.3}  skipped {skipped}  {rate:.1} images/s  data wait {wait:.1} s"
        ));
        bar.inc(1);
        if batch.iteration % 25 == 0 && bar.is_hidden() {
            eprintln!(
                "iteration {:>4}  loss {loss:.3}  {rate:.1} images/s",
                batch.iteration
            );
        }
    }
    bar.finish();
    Ok((model, curve))
}

fn evaluate(model: &Segmentor, policy: &Policy, device: &Device, out: &Path) -> Result<()> {
    let (width, height) = SCENE;
    let held_out = SyntheticStreets::new(width, height, 40, 2);
    let mut matrix = ConfusionMatrix::new(CLASSES);
    for index in 0..held_out.len() {
        let sample = held_out.get(index)?;
        let input = TensorData::new(normalize(&sample.image), [1, 3, height, width]);
        let input = Tensor::<4>::from_data(input, device);
        let map = argmax(autocast(policy, || model.forward(input))).swap_remove(0);
        let Some(truth) = &sample.label else { continue };
        matrix.update(&map, &truth.data, IGNORE)?;
        if index < 8 {
            let blend = overlay(&sample.image.data, &map, &PALETTE, 0.5);
            let (colors, truth) = (colorize(&map, &PALETTE), colorize(&truth.data, &PALETTE));
            let parts = [&sample.image.data, &truth, &colors, &blend].map(|rgb| (&rgb[..], width));
            let (picture, total) = panel(&parts, height, 4);
            write_rgb_png(
                &out.join(format!("{}.png", sample.name)),
                &picture,
                (total, height),
            )?;
        }
    }
    let mut names = [""; CLASSES];
    for label in LABELS.iter().filter(|label| label.train_id != IGNORE) {
        names[label.train_id as usize] = label.name;
    }
    confusion_svg(&out.join("confusion.svg"), &matrix, &names)?;
    let scores = matrix.scores();
    let path = out.join("scores.json");
    let temporary = out.join("scores.json.tmp");
    std::fs::write(&temporary, serde_json::to_string_pretty(&scores)?)?;
    std::fs::rename(&temporary, &path)?;
    eprint!("{}", scores.table(&names));
    eprintln!(
        "pictures (image, truth, prediction, overlay), loss.svg and confusion.svg in {}",
        out.display()
    );
    Ok(())
}
