//! `halfseg demo`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{Recipe, Trainer};

use super::train::drive;
use crate::args::{DemoArgs, ShownArgs};

/// What differs from the published recipe, so that two CPU cores finish within minutes: a quarter
/// of the width, small crops, small dilations for them, and a higher learning rate, which so short
/// a run from random weights can bear.
const RECIPE: [&str; 22] = [
    "model.stem_channels=32",
    "model.base_channels=16",
    "model.head_channels=64",
    "model.aux_channels=32",
    "model.c1_channels=16",
    "model.dilations=[1, 2, 4, 6]",
    "data.source=synthetic",
    "data.scale=256x128",
    "data.crop=96x96",
    "data.ratio_min=0.75",
    "data.ratio_max=1.5",
    "data.photometric=false",
    "data.synthetic_train=400",
    "data.synthetic_val=40",
    "data.workers=1",
    "train.batch=6",
    "train.eval_every=250",
    "train.checkpoint_every=250",
    "train.pictures=6",
    "optimizer.lr=0.2",
    "schedule.iterations=500",
    "eval.scale=own",
];

/// Trains on generated street scenes, evaluates on others and draws predictions.
pub fn run(args: &DemoArgs) -> Result<()> {
    let mut recipe = Recipe::published(Method::DeepLabV3Plus, Depth::R18);
    for value in RECIPE {
        recipe.set(value)?;
    }
    recipe.set(&format!("precision.dtype={}", args.precision))?;
    recipe.set(&format!("device={}", args.device))?;
    recipe.set(&format!("seed={}", args.seed))?;
    if let Some(iterations) = args.iterations {
        recipe.set(&format!("schedule.iterations={iterations}"))?;
    }
    let out = free_folder(&args.out);
    message!(
        "training on generated street scenes; results go to {}",
        out.display()
    );
    let device = recipe.device.open()?;
    let mut trainer = Trainer::new(recipe, &device, &out)?;
    drive(&mut trainer, &out, &ShownArgs::default())?;
    Ok(())
}

/// `out`, or the first of `out-2`, `out-3`, ... that holds no run.
fn free_folder(out: &Path) -> PathBuf {
    let numbered = |number: u32| {
        let mut name = out.as_os_str().to_owned();
        name.push(format!("-{number}"));
        PathBuf::from(name)
    };
    std::iter::once(out.to_owned())
        .chain((2..).map(numbered))
        .find(|folder| !Trainer::holds_run(folder))
        .unwrap_or_else(|| out.to_owned())
}
