//! DeepLabV3 (Chen 2017) on generated street scenes: config, data, model, training, evaluation and
//! prediction in f16 on the CPU, with the crates composed in the open.
//!
//! `cargo run --release --example deeplabv3`; pictures go to `runs/example-deeplabv3`.

use std::path::PathBuf;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use halfseg_amp::{GradScaler, Policy, autocast};
use halfseg_data::{
    CLASSES, Dataset, IGNORE, LABELS, Loader, LoaderConfig, PALETTE, Pipeline, SyntheticStreets,
    normalize,
};
use halfseg_eval::{ConfusionMatrix, argmax, colorize, overlay, panel, write_rgb_png};
use halfseg_segmentor::{Depth, Method, SegmentorConfig};
use halfseg_train::{PolySchedule, Sgd};
use rand::SeedableRng;

fn main() -> anyhow::Result<()> {
    // CI sets HALFSEG_SMOKE to see every line run within seconds.
    let iterations = if std::env::var_os("HALFSEG_SMOKE").is_some() {
        2
    } else {
        60
    };
    let (width, height) = (128, 64);

    // Data: one seed for training, another for evaluation.
    let streets = Arc::new(SyntheticStreets::new(width, height, 200, 1));
    let held_out = SyntheticStreets::new(width, height, 8, 2);
    let pipeline = Pipeline {
        scale: (width, height),
        crop: (64, 64),
        ..Pipeline::default()
    };
    let config = LoaderConfig {
        batch: 4,
        seed: 1,
        workers: 1,
        queue: 2,
        start_at: 0,
    };
    let loader = Loader::new(streets, pipeline, config);

    // Model: f32 master weights; convolutions compute in f16.
    let device = Device::flex();
    let training = device.clone().autodiff();
    training.seed(1);
    let mut model = SegmentorConfig::new(Method::DeepLabV3, Depth::R18).init(&training);
    let policy = Policy::f16();

    // Training, as the published recipe does it.
    let mut scaler = GradScaler::fixed(512.0);
    let mut sgd = Sgd::new(0.9, 5e-4);
    let schedule = PolySchedule {
        lr: 0.01,
        min_lr: 1e-4,
        power: 0.9,
        iterations,
    };
    let mut dropout = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for batch in loader.take(iterations as usize) {
        let batch = batch?;
        let (images, labels) = batch.to_tensors(&training);
        scaler.begin(&model);
        let losses = autocast(&policy, || model.loss(images, labels, &mut dropout));
        let loss = losses.total.clone().into_scalar::<f32>();
        let scaled = scaler.scale(losses.total).backward(&model);
        let grads = scaler.unscale(scaled);
        let lr = schedule.at(batch.iteration);
        let update = |model, grads| sgd.step(lr, model, grads);
        let (updated, outcome) = scaler.step_with(model, grads, update);
        model = updated;
        if batch.iteration % 10 == 0 {
            println!(
                "iteration {:>3}  loss {loss:.3}  {outcome:?}",
                batch.iteration
            );
        }
    }

    // Evaluation and prediction on scenes that training has not seen.
    let model = model.valid();
    let folder = PathBuf::from("runs/example-deeplabv3");
    std::fs::create_dir_all(&folder)?;
    let mut matrix = ConfusionMatrix::new(CLASSES);
    for index in 0..held_out.len() {
        let sample = held_out.get(index)?;
        let input = TensorData::new(normalize(&sample.image), [1, 3, height, width]);
        let input = Tensor::<4>::from_data(input, &device);
        let maps = argmax(autocast(&policy, || model.forward(input)));
        if let Some(label) = &sample.label {
            matrix.update(&maps[0], &label.data, IGNORE)?;
        }
        let blend = overlay(&sample.image.data, &maps[0], &PALETTE, 0.5);
        let colors = colorize(&maps[0], &PALETTE);
        let parts = [
            (&sample.image.data[..], width),
            (&blend[..], width),
            (&colors[..], width),
        ];
        let (picture, total) = panel(&parts, height, 4);
        let path = folder.join(format!("{}.png", sample.name));
        write_rgb_png(&path, &picture, (total, height))?;
    }
    let mut names = [""; CLASSES];
    for label in LABELS.iter().filter(|label| label.train_id != IGNORE) {
        names[label.train_id as usize] = label.name;
    }
    println!(
        "{}pictures in {}",
        matrix.scores().table(&names),
        folder.display()
    );
    Ok(())
}
