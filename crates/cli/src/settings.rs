//! From flags and files to a recipe.

use std::path::{Path, PathBuf};

use anyhow::Result;
use halfseg_amp::Policy;
use halfseg_predict::{EvalMode, Predictor};
use halfseg_segmentor::{
    Depth, Method, Segmentor, SegmentorConfig, read_architecture, read_backbone,
};
use halfseg_train::{Error, Recipe, RunPrecision, bound_policy, read_recipe, resolve_checkpoint};

use crate::args::{InferenceArgs, ModelArgs, RecipeArgs};

/// The recipe that flags describe: the published one for the method and depth (with the network of
/// `--checkpoint`, where flags ask for no other), or `--config`, under the values of `policy`,
/// under those of the flags, under those of `--set`.
pub fn recipe(args: &RecipeArgs, policy: Option<&Path>) -> Result<Recipe> {
    let recipe = match (&args.sources.config, &args.checkpoint) {
        (Some(path), _) => Recipe::read(path)?,
        (None, Some(weights)) => {
            let model = starting_from(&args.model, &resolve_checkpoint(weights)?);
            let mut recipe = Recipe::published(model.method, model.backbone);
            recipe.model = model;
            recipe
        }
        (None, None) => Recipe::published(
            args.model.method.unwrap_or(Method::Fcn),
            args.model.backbone.unwrap_or(Depth::R101),
        ),
    };
    Ok(apply(args, policy, recipe)?)
}

/// The network that training from `weights` begins with: that of the file, or the published one on
/// the file's backbone if it holds no head, unless flags ask for another. What is wrong with the
/// file, loading it will tell.
fn starting_from(args: &ModelArgs, weights: &Path) -> SegmentorConfig {
    if let Ok(config) = architecture(args, weights) {
        return config;
    }
    let method = args.method.unwrap_or(Method::Fcn);
    let depth = read_backbone(weights).map_or(Depth::R101, |backbone| backbone.depth);
    published_on(weights, method, args.backbone.unwrap_or(depth))
}

/// The published network, on a backbone as wide as that of `weights` if it has that depth.
fn published_on(weights: &Path, method: Method, depth: Depth) -> SegmentorConfig {
    let mut config = SegmentorConfig::new(method, depth);
    if let Ok(backbone) = read_backbone(weights)
        && backbone.depth == depth
    {
        config.stem_channels = backbone.stem_channels;
        config.base_channels = backbone.base_channels;
    }
    config
}

/// `recipe` under the values of `policy`, under those of the flags, under those of `--set`.
pub fn apply(
    args: &RecipeArgs,
    policy: Option<&Path>,
    mut recipe: Recipe,
) -> Result<Recipe, Error> {
    apply_model(&args.model, &mut recipe);
    if let Some(policy) = policy {
        read_policy(policy, args.precision, &mut recipe)?;
    }
    // Flags are assignments to keys, so that they go through the same checks as files.
    let mut assignments = Vec::new();
    let mut flag = |key: &str, value: Option<String>| {
        assignments.extend(value.map(|value| format!("{key}={value}")));
    };
    let quoted = |text: &str| format!("{text:?}");
    flag("data.source", args.data.as_deref().map(quoted));
    flag(
        "schedule.iterations",
        args.iterations.map(|v| v.to_string()),
    );
    flag("train.batch", args.batch.map(|v| v.to_string()));
    flag("data.crop", args.crop.map(|v| v.to_string()));
    flag("data.scale", args.scale.map(|v| v.to_string()));
    flag("precision.dtype", args.precision.map(|v| v.to_string()));
    flag(
        "precision.loss_scale",
        args.loss_scale.as_ref().map(|v| v.to_string()),
    );
    flag("optimizer.lr", args.lr.map(|v| v.to_string()));
    flag("device", args.device.map(|v| v.to_string()));
    if let Some((first, further)) = args.devices.split_first() {
        flag("device", Some(first.to_string()));
        let further: Vec<_> = further
            .iter()
            .map(|device| format!("\"{device}\""))
            .collect();
        flag("further_devices", Some(format!("[{}]", further.join(", "))));
    } else if args.device.is_some() {
        flag("further_devices", Some("[]".into()));
    }
    if let Some(checkpoint) = &args.checkpoint {
        let weights = resolve_checkpoint(checkpoint)?;
        flag("checkpoint", Some(quoted(text(&weights)?)));
    }
    flag("seed", args.seed.map(|v| v.to_string()));
    flag("train.eval_every", args.eval_every.map(|v| v.to_string()));
    let checkpoint_every = args.checkpoint_every.or(args.eval_every);
    flag(
        "train.checkpoint_every",
        checkpoint_every.map(|v| v.to_string()),
    );
    let checkpointing = args.gradient_checkpointing.then(|| "true".into());
    flag("train.gradient_checkpointing", checkpointing);
    flag("data.workers", args.workers.map(|v| v.to_string()));
    for assignment in assignments.iter().chain(&args.sources.set) {
        recipe.set(assignment)?;
    }
    Ok(recipe)
}

/// Takes the precision from a policy file. A `--precision` that says otherwise is refused: the file's
/// exceptions were found for its own dtype.
fn read_policy(
    path: &Path,
    precision: Option<RunPrecision>,
    recipe: &mut Recipe,
) -> Result<(), Error> {
    recipe.read_policy(path)?;
    let dtype = recipe.precision.dtype;
    match precision {
        Some(precision) if precision != dtype => Err(Error::Value {
            key: "--precision".into(),
            origin: "the flags".into(),
            expected: format!("{dtype}, as `--policy {}` has it, or none", path.display()),
            found: format!("`{precision}`"),
        }),
        _ => Ok(()),
    }
}

fn apply_model(args: &ModelArgs, recipe: &mut Recipe) {
    recipe.set_model(args.method, args.backbone);
    if let Some(classes) = args.classes {
        recipe.model.num_classes = classes;
    }
}

/// A path as a configuration holds it.
fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::Config {
        origin: path.display().to_string(),
        message: "expected a path of Unicode characters".into(),
    })
}

/// The architecture that weights are loaded into: read off the file, unless flags ask for another
/// one (loading then names what differs).
pub fn architecture(args: &ModelArgs, weights: &Path) -> Result<SegmentorConfig> {
    let found = match read_architecture(weights) {
        Ok(found) => found,
        // A file that shows no architecture: loading it will tell what is wrong with it.
        Err(error) => match (args.method, args.backbone) {
            (Some(method), Some(depth)) => published_on(weights, method, depth),
            _ => return Err(error.into()),
        },
    };
    let method = args.method.unwrap_or(found.method);
    let depth = args.backbone.unwrap_or(found.backbone);
    let mut config = match (method, depth) == (found.method, found.backbone) {
        true => found,
        false => published_on(weights, method, depth).with_num_classes(found.num_classes),
    };
    if let Some(classes) = args.classes {
        config.num_classes = classes;
    }
    Ok(config)
}

/// A network ready to be run, with the recipe that says how.
pub struct Loaded {
    /// The weights' file.
    pub weights: PathBuf,
    /// The network.
    pub model: Segmentor,
    /// What it is cast by, bound to it.
    pub policy: Policy,
    /// The checkpoint's recipe (else the published one, in f32) under `--config`, flags and `--set`.
    pub recipe: Recipe,
}

impl Loaded {
    /// Loads the checkpoint that the flags name.
    pub fn open(args: &InferenceArgs, data: Option<&str>) -> Result<Self> {
        let weights = resolve_checkpoint(&args.checkpoint)?;
        let config = architecture(&args.model, &weights)?;
        let mut recipe = match (&args.sources.config, read_recipe(&weights)?) {
            (Some(path), _) => Recipe::read(path)?,
            (None, Some(recipe)) => recipe,
            (None, None) => {
                let mut recipe = Recipe::published(config.method, config.backbone);
                // As MMSegmentation tests its checkpoints, those trained in f16 too.
                recipe.precision.dtype = RunPrecision::F32;
                recipe
            }
        };
        recipe.device = args.device.unwrap_or_default();
        recipe.model = config;
        if let Some(data) = data {
            recipe.data.source = data.into();
        }
        if let Some(policy) = &args.policy {
            read_policy(policy, args.precision, &mut recipe)?;
        }
        if let Some(precision) = args.precision {
            recipe.precision.dtype = precision;
        }
        if let Some(mode) = &args.mode {
            recipe.eval.mode = if mode == "slide" {
                EvalMode::Slide
            } else {
                EvalMode::Whole
            };
        }
        if let Some(crop) = args.crop {
            recipe.eval.slide_crop = crop;
            // Two thirds of the window, as the published sliding recipes have it.
            let third = |side: usize| (side * 2).div_ceil(3);
            recipe.eval.slide_stride.height = third(crop.height);
            recipe.eval.slide_stride.width = third(crop.width);
        }
        if let Some(stride) = args.stride {
            recipe.eval.slide_stride = stride;
        }
        if let Some(scale) = args.scale {
            recipe.eval.scale = scale;
        }
        recipe.eval.ms_flip |= args.ms_flip;
        for assignment in &args.sources.set {
            recipe.set(assignment)?;
        }
        recipe.check("the flags")?;
        let device = recipe.device.open()?;
        let (model, report) = halfseg_segmentor::load(&weights, Some(&recipe.model), &device)?;
        let policy = bound_policy(&recipe, &model)?;
        eprintln!(
            "{} on {} in {} from {}: {report}",
            recipe.model.method,
            recipe.model.backbone,
            recipe.precision.summary(),
            weights.display()
        );
        Ok(Self {
            weights,
            model,
            policy,
            recipe,
        })
    }

    /// The network as the recipe runs it.
    pub fn predictor(&self) -> Predictor {
        let eval = self.recipe.eval.clone();
        Predictor::new(&self.model, self.policy.clone(), eval)
    }
}
