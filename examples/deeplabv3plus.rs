//! DeepLabV3+ (Chen 2018) on generated street scenes: config, data, model, training, evaluation and prediction
//! in f16 on the CPU, with the crates composed in the open.
//!
//! `cargo run --release --example deeplabv3plus`; pictures go to `runs/example-deeplabv3plus`.

use std::path::Path;
use std::sync::Arc;

use halfseg_data::{
    CLASS_NAMES, Crop, Dataset, Loader, LoaderConfig, PALETTE, Scale, SyntheticStreets,
};
use halfseg_devices::DeviceChoice;
use halfseg_predict::{Predictor, draw_prediction};
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{Learner, Recipe, RunPrecision, pipeline};

fn main() -> anyhow::Result<()> {
    // CI sets HALFSEG_SMOKE to see every line run within seconds.
    let smoke = std::env::var_os("HALFSEG_SMOKE").is_some();

    // Config: the published recipe, with a narrow network and small images for a short run.
    let mut recipe = Recipe::published(Method::DeepLabV3Plus, Depth::R18);
    recipe.model = recipe
        .model
        .with_stem_channels(32)
        .with_base_channels(16)
        .with_head_channels(64)
        .with_aux_channels(32)
        .with_c1_channels(16)
        .with_dilations(vec![1, 2, 4, 6]);
    recipe.data.scale = Scale {
        width: 192,
        height: 96,
    };
    recipe.data.crop = Crop {
        height: 96,
        width: 96,
    };
    (recipe.data.ratio_min, recipe.data.ratio_max) = (0.75, 1.5);
    recipe.data.photometric = false;
    recipe.train.batch = 4;
    recipe.optimizer.lr = 0.1;
    recipe.schedule.iterations = if smoke { 2 } else { 150 };
    recipe.precision.dtype = RunPrecision::F16;

    // Data: one seed for training, another for evaluation.
    let Scale { width, height } = recipe.data.scale;
    let streets = Arc::new(SyntheticStreets::new(width, height, 200, 1));
    let held_out = SyntheticStreets::new(width, height, if smoke { 1 } else { 10 }, 2);
    let batch = recipe.train.batch;
    let order = LoaderConfig {
        batch,
        seed: 1,
        workers: 1,
        queue: 2,
        start_at: 0,
    };
    let loader = Loader::new(streets, pipeline(&recipe), order);

    // Model: f32 master weights on a device that tracks gradients.
    let device = DeviceChoice::Flex.open()?;
    let training = device.clone().autodiff();
    training.seed(1);
    let policy = recipe.precision.policy();
    let mut learner = Learner::new(recipe.model.init(&training), policy, &recipe);

    // Training: autocast forward, f32 loss, scaled backward, SGD on the poly schedule.
    for batch in loader.take(recipe.schedule.iterations as usize) {
        let (images, labels) = batch?.to_tensors(&training);
        let step = learner.step(images, labels);
        if step.iteration % 15 == 1 {
            println!(
                "iteration {:>3}  loss {:.3}  {}",
                step.iteration, step.loss, step.outcome
            );
        }
    }

    // Evaluation on scenes that training has not seen.
    let policy = learner.policy().clone();
    let predictor = Predictor::new(learner.model(), policy, recipe.eval.clone());
    let matrix = predictor.evaluate(&held_out, |_| Ok(true))?;
    print!("{}", matrix.scores().table(&CLASS_NAMES));

    // Prediction: picture, prediction and truth side by side, and the maps one by one.
    let folder = Path::new("runs/example-deeplabv3plus");
    for index in 0..held_out.len().min(3) {
        let sample = held_out.get(index)?;
        let prediction = predictor.predict(&sample.image)?;
        draw_prediction(folder, &sample, &prediction.map, &PALETTE)?;
    }
    println!("pictures in {}", folder.display());
    Ok(())
}
