//! Recipes of published models.

use std::path::Path;

use anyhow::Result;
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{DataSource, Recipe, RunPrecision, read_recipe};
use halfseg_zoo::Entry;

use crate::args::RecipeArgs;
use crate::failure::Usage;
use crate::published;

/// Images of a published iteration, on four devices.
const BATCH: usize = 8;

/// The recipe of the published model that `--preset` names, on random pictures until `--data` tells.
pub fn recipe(args: &RecipeArgs) -> Result<Recipe> {
    let name = args.preset.as_deref().unwrap_or_default();
    let name = name.strip_prefix("zoo:").unwrap_or(name);
    let cache = published::cache()?;
    let entry = cache.find(name)?;
    let Some((method, depth, iterations)) = known(entry) else {
        let presets: Vec<&str> = cache
            .entries()
            .iter()
            .filter(|entry| known(entry).is_some())
            .map(|entry| entry.name.as_str())
            .collect();
        let why = format!(
            "--preset {name}: expected a model that was trained on Cityscapes in crops of 512x1024 with a \
             ResNetV1c at output stride 8, found {} on {} in crops of {}; those are {}",
            entry.backbone,
            entry.data,
            entry.crop.as_deref().unwrap_or("no known size"),
            presets.join(", ")
        );
        return Err(Usage(why).into());
    };
    let mut recipe = Recipe::published(method, depth);
    recipe.backbone_weights = format!("zoo:{depth}_v1c");
    recipe.schedule.iterations = iterations;
    recipe.train.batch = BATCH;
    recipe.precision.dtype = match entry.precision.as_str() {
        "f16" => RunPrecision::F16,
        _ => RunPrecision::F32,
    };
    Ok(recipe)
}

/// Method, depth and iterations of an entry whose recipe is [`Recipe::published`].
fn known(entry: &Entry) -> Option<(Method, Depth, u64)> {
    let method = entry.method.parse().ok()?;
    let depth = match entry.backbone.as_str() {
        "R-18-D8" => Depth::R18,
        "R-50-D8" => Depth::R50,
        "R-101-D8" => Depth::R101,
        _ => return None,
    };
    let thousands = entry.schedule.as_deref()?.strip_suffix('k')?;
    let iterations = 1000 * thousands.parse::<u64>().ok()?;
    // Trained with another optimizer.
    let other = entry.name.contains("rsb") || entry.name.contains("adamw");
    let same = entry.data == "Cityscapes" && entry.crop.as_deref() == Some("512x1024");
    (same && !other).then_some((method, depth, iterations))
}

/// Says where a step will see another number of images than the published one.
pub fn warn_of_batch(name: &str, recipe: &Recipe) {
    let batch = recipe.train.batch;
    if batch != BATCH {
        warning!(
            "{name} was trained with {BATCH} images an iteration (two on each of four devices), here {batch}: \
             at the same learning rate and number of iterations scores will differ; --batch {BATCH} with \
             --devices or --accumulate makes it the same"
        );
    }
    let (devices, accumulate) = (1 + recipe.further_devices.len(), recipe.train.accumulate);
    let at_once = batch / accumulate;
    if accumulate > 1 {
        message!(
            "{batch} images an iteration in {accumulate} parts of {at_once} on {devices} device(s): \
             normalisations see {at_once} images, there all {BATCH}"
        );
    }
}

/// Says where a step will see another number of images than the recipe of the checkpoint that training starts from, or
/// else the published recipe, has.
pub fn warn_of_other_batch(recipe: &Recipe) -> Result<()> {
    if recipe.data.source == DataSource::Synthetic {
        return Ok(());
    }
    let trained = match recipe.checkpoint.as_str() {
        "" => None,
        file => read_recipe(Path::new(file))?,
    };
    let (whose, before) = match trained {
        Some(trained) => ("the checkpoint was trained with", trained.train.batch),
        None => ("the published recipe has", BATCH),
    };
    let batch = recipe.train.batch;
    if batch != before {
        warning!(
            "{whose} {before} images an iteration, here there are {batch}: learning rate and number of iterations \
             belong to the batch; --batch {before} with --devices or --accumulate makes it the same"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use halfseg_zoo::{entries, find};

    use super::*;

    #[test]
    fn the_four_models_in_half_precision_and_their_twins_are_presets() {
        for method in Method::ALL {
            for (name, iterations) in [
                (
                    format!("{method}_r101-d8_512x1024_80k_fp16_cityscapes"),
                    80_000,
                ),
                (format!("{method}_r101-d8_512x1024_80k_cityscapes"), 80_000),
                (format!("{method}_r101-d8_512x1024_40k_cityscapes"), 40_000),
            ] {
                let entry = find(&name).unwrap_or_else(|| panic!("{name}"));
                assert_eq!(known(entry), Some((method, Depth::R101, iterations)));
            }
        }
        for entry in entries().iter().filter(|entry| known(entry).is_some()) {
            let backbone = format!("{}_v1c", known(entry).unwrap().1);
            assert!(find(&backbone).is_some(), "{backbone}");
        }
    }

    #[test]
    fn other_models_are_none() {
        for name in [
            "fcn_r101b-d8_512x1024_80k_cityscapes",
            "fcn_d6_r50-d16_512x1024_80k_cityscapes",
            "fcn_r50-d8_769x769_80k_cityscapes",
            "deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes",
            "resnet101_v1c",
        ] {
            assert_eq!(known(find(name).unwrap()), None, "{name}");
        }
    }
}
