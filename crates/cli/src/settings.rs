//! From flags and files to a recipe.

use std::path::Path;

use anyhow::Result;
use halfseg_segmentor::{Depth, Method};
use halfseg_train::Recipe;

use crate::args::{ConfigSources, ModelArgs, RecipeArgs};
use crate::failure::Usage;

/// The recipe that flags describe: the published one for the method and depth, under the values
/// of `--config`, under those of the flags, under those of `--set`.
pub fn recipe(args: &RecipeArgs) -> Result<Recipe> {
    let mut recipe = base(&args.model, &args.sources)?;
    if let Some(data) = &args.data {
        recipe.data.source.clone_from(data);
    }
    if let Some(iterations) = args.iterations {
        recipe.schedule.iterations = iterations;
    }
    if let Some(batch) = args.batch {
        recipe.train.batch = batch;
    }
    if let Some(crop) = args.crop {
        recipe.data.crop = crop;
    }
    if let Some(scale) = args.scale {
        recipe.data.scale = scale;
    }
    if let Some(precision) = args.precision {
        recipe.precision.dtype = precision;
    }
    if let Some(loss_scale) = args.loss_scale {
        recipe.precision.loss_scale = loss_scale;
    }
    if let Some(lr) = args.lr {
        recipe.optimizer.lr = lr;
    }
    if let Some(device) = args.device {
        recipe.device = device;
    }
    if let Some(checkpoint) = &args.checkpoint {
        recipe.checkpoint = text(checkpoint)?;
    }
    if let Some(seed) = args.seed {
        recipe.seed = seed;
    }
    if let Some(every) = args.eval_every {
        recipe.train.eval_every = every;
        if args.checkpoint_every.is_none() {
            recipe.train.checkpoint_every = every;
        }
    }
    if let Some(every) = args.checkpoint_every {
        recipe.train.checkpoint_every = every;
    }
    if let Some(workers) = args.workers {
        recipe.data.workers = workers;
    }
    apply_set(&mut recipe, &args.sources)?;
    // Flags go through the same checks as files.
    Ok(Recipe::parse(&recipe.to_toml(), "the command line")?)
}

/// The published recipe under `--config`, for the method and depth of the flags, else of the file.
pub fn base(model: &ModelArgs, sources: &ConfigSources) -> Result<Recipe> {
    let mut recipe = match &sources.config {
        Some(path) => Recipe::read(path)?,
        None => Recipe::published(
            model.method.unwrap_or(Method::Fcn),
            model.backbone.unwrap_or(Depth::R101),
        ),
    };
    recipe.set_model(model.method, model.backbone);
    if let Some(classes) = model.classes {
        recipe.model.num_classes = classes;
    }
    Ok(recipe)
}

/// Applies every `--set`.
pub fn apply_set(recipe: &mut Recipe, sources: &ConfigSources) -> Result<()> {
    for assignment in &sources.set {
        recipe.set(assignment)?;
    }
    Ok(())
}

/// A path as a configuration holds it.
pub fn text(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        Usage(format!("{}: expected a path of Unicode characters", path.display()))
    })?;
    Ok(text.to_owned())
}
