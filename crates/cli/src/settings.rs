//! From flags and files to a recipe.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use halfseg_amp::Policy;
use halfseg_data::{Classes, Crop, PictureFormat};
use halfseg_devices::{DeviceChoice, Ranks};
use halfseg_predict::{EvalMode, Predictor, PredictorSettings, known_classes};
use halfseg_segmentor::{
    Depth, Method, Segmentor, SegmentorConfig, read_architecture, read_backbone,
};
use halfseg_train::{
    DataSource, Error, Recipe, RunPrecision, bound_policy, check_classes, open_device, read_recipe,
    resolve_checkpoint,
};

use crate::args::{ConfigSources, InferenceArgs, ModelArgs, RecipeArgs};
use crate::failure::Usage;
use crate::fitting::{fit, left_to_data};
use crate::values::Mode;
use crate::{preset, published};

/// The recipe that flags describe: the published one for the method and depth (with the network of
/// `--checkpoint`, where flags ask for no other), or `--config`, under the values of `policy`,
/// under those of the flags, under those of `--set`.
pub fn recipe(args: &RecipeArgs, policy: Option<&Path>) -> Result<Recipe> {
    let config = config_file(&args.sources)?;
    let recipe = match (config, &args.checkpoint, &args.backbone_weights) {
        _ if args.preset.is_some() => preset::recipe(args)?,
        (Some(recipe), ..) => recipe,
        (None, None, Some(weights)) => {
            let model = on_backbone(&args.model, &weights_file(weights)?);
            let mut recipe = Recipe::published(model.method, model.backbone);
            recipe.model = model;
            recipe
        }
        (None, Some(weights), _) => {
            let model = starting_from(&args.model, &weights_file(weights)?);
            let mut recipe = Recipe::published(model.method, model.backbone);
            recipe.model = model;
            recipe
        }
        (None, None, None) => Recipe::published(
            args.model.method.unwrap_or(Method::Fcn),
            args.model.backbone.unwrap_or(Depth::R101),
        ),
    };
    let mut recipe = recipe;
    let left = left_to_data(args)?;
    // Before values that belong to classes, such as their weights, are held against their number.
    let data = args.data.as_deref().map(DataSource::from);
    let data = data.unwrap_or_else(|| recipe.data.source.clone());
    fit(&data, left, &mut recipe)?;
    let mut recipe = apply(args, policy, recipe)?;
    let data = recipe.data.source.clone();
    fit(&data, left, &mut recipe)?;
    // Of a file or a preset.
    for weights in [&mut recipe.checkpoint, &mut recipe.backbone_weights] {
        if published::name(Path::new(weights.as_str())).is_some() {
            let file = published::file(Path::new(weights.as_str()))?;
            *weights = text(&file)?.to_owned();
        }
    }
    if let Some(name) = &args.preset {
        preset::warn_of_batch(name, &recipe);
    }
    Ok(recipe)
}

/// The network that training from `weights` begins with: that of the file, or the published one on
/// the file's backbone if it holds no head, unless flags ask for another. What is wrong with the
/// file, loading it will tell.
fn starting_from(args: &ModelArgs, weights: &Path) -> SegmentorConfig {
    if let Ok(config) = architecture(args, weights) {
        return config;
    }
    on_backbone(args, weights)
}

/// The published network on the backbone of `weights`, unless flags ask for another.
fn on_backbone(args: &ModelArgs, weights: &Path) -> SegmentorConfig {
    let method = args.method.unwrap_or(Method::Fcn);
    let depth = read_backbone(weights).map_or(Depth::R101, |backbone| backbone.depth);
    published_on(weights, method, args.backbone.unwrap_or(depth))
}

/// The published network, on a backbone of the stem and the widths of `weights` if it has that depth.
fn published_on(weights: &Path, method: Method, depth: Depth) -> SegmentorConfig {
    let mut config = SegmentorConfig::new(method, depth);
    if let Ok(backbone) = read_backbone(weights)
        && backbone.depth == depth
    {
        config.stem_channels = backbone.stem_channels;
        config.base_channels = backbone.base_channels;
        config.deep_stem = backbone.deep_stem;
        config.avg_down = backbone.avg_down;
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
    let mut keys = Assignments::default();
    keys.text("data.source", args.data.as_deref());
    keys.put("schedule.iterations", args.iterations);
    keys.put("train.batch", args.batch);
    keys.put("train.accumulate", args.accumulate);
    keys.put("data.crop", args.crop);
    keys.put("data.scale", args.scale);
    keys.put("precision.dtype", args.precision);
    keys.put("precision.loss_scale", args.loss_scale.as_ref());
    keys.put("optimizer.lr", args.lr);
    keys.device(args.device, &args.devices);
    if let Some(checkpoint) = &args.checkpoint {
        let weights = weights_file(checkpoint)?;
        keys.text("checkpoint", Some(text(&weights)?));
        keys.text("backbone_weights", Some(""));
    }
    if let Some(weights) = &args.backbone_weights {
        let weights = weights_file(weights)?;
        keys.text("backbone_weights", Some(text(&weights)?));
        keys.text("checkpoint", Some(""));
    }
    keys.put("seed", args.seed);
    keys.put("train.eval_every", args.eval_every);
    keys.put("train.ema", args.ema);
    keys.put("train.checkpoint_every", args.checkpoint_every);
    keys.put("train.keep", args.keep);
    let recomputes = args.gradient_checkpointing.then_some(true);
    keys.put("train.gradient_checkpointing", recomputes);
    keys.put("data.workers", args.workers);
    keys.put("train.exchange_precision", args.exchange_precision);
    keys.put("train.exchange_timeout", args.exchange_timeout);
    keys.apply(&args.sources, &mut recipe)?;
    Ok(recipe)
}

/// Flags as assignments to keys of the configuration, so that they go through the same checks as files
/// and `--set`.
#[derive(Default)]
struct Assignments(Vec<String>);

impl Assignments {
    /// Of a number, or a text that needs no quotes.
    fn put(&mut self, key: &str, value: Option<impl Display>) {
        self.0.extend(value.map(|value| format!("{key}={value}")));
    }

    /// Of any text.
    fn text(&mut self, key: &str, value: Option<&str>) {
        self.put(key, value.map(toml::Value::from));
    }

    /// Of one device, or of several that share each batch.
    fn device(&mut self, one: Option<DeviceChoice>, several: &[DeviceChoice]) {
        let first = one.or(several.first().copied());
        self.put("device", first);
        let further = several.iter().skip(1).map(DeviceChoice::to_string);
        let further: toml::Value = further.collect::<Vec<_>>().into();
        self.put("further_devices", first.map(|_| further));
    }

    /// Lays these over the recipe, and those of `--set` over these.
    fn apply(&self, sources: &ConfigSources, recipe: &mut Recipe) -> Result<(), Error> {
        recipe.set_all(self.0.iter().chain(&sources.set))
    }
}

/// The path and the text of `--config`.
pub fn config_text(sources: &ConfigSources) -> Result<Option<(&Path, &str)>, Error> {
    let Some(path) = &sources.config else {
        return Ok(None);
    };
    if sources.text.get().is_none() {
        let text = halfseg_files::read_text(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        // Nobody else sets it.
        let _ = sources.text.set(text);
    }
    Ok(sources.text.get().map(|text| (&**path, &**text)))
}

/// The recipe of `--config`.
pub fn config_file(sources: &ConfigSources) -> Result<Option<Recipe>, Error> {
    let text = config_text(sources)?;
    text.map(|(path, text)| Recipe::parse(text, &path.display().to_string()))
        .transpose()
}

/// Refuses a job that is not told what its data are: generated scenes would give a network of no use
/// without a word.
pub fn require_data(data: Option<&str>, sources: &ConfigSources) -> Result<()> {
    const KEY: &str = "data.source";
    let is_set = |assignment: &String| {
        let key = assignment.split('=').next().unwrap_or_default().trim();
        key == KEY || key == "data"
    };
    let in_file = match config_text(sources)?.map(|(_, text)| text.parse::<toml::Table>()) {
        Some(Ok(table)) => table
            .get("data")
            .is_some_and(|data| data.get("source").is_some()),
        // What is wrong with the file, reading it will tell.
        Some(Err(_)) => true,
        None => false,
    };
    if data.is_some() || sources.set.iter().any(is_set) || in_file {
        return Ok(());
    }
    let why = "expected --data PATH, a folder with leftImg8bit and gtFine in it or the definition of a data set \
               (FILE.toml, see `halfseg data init`), or --data synthetic for generated scenes; found none";
    Err(Usage(why.into()).into())
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

/// Says which flags change nothing of how the network is run.
fn warn_of_no_effect(args: &InferenceArgs, recipe: &Recipe) {
    if recipe.eval.mode == EvalMode::Whole {
        for (flag, size) in [("--crop", args.pass.crop), ("--stride", args.pass.stride)] {
            if size.is_some() {
                warning!("{flag} has no effect without --mode slide");
            }
        }
    }
    const OF_TRAINING: [&str; 7] = [
        "train",
        "optimizer",
        "schedule",
        "seed",
        "further_devices",
        "checkpoint",
        "backbone_weights",
    ];
    for assignment in &args.sources.set {
        let key = assignment.split('=').next().unwrap_or_default().trim();
        if OF_TRAINING.contains(&key.split('.').next().unwrap_or_default()) {
            warning!("--set {key} has no effect here: it is one of training");
        }
    }
}

/// The weights that a path means: the file, for the folder of a run its best checkpoint, else its
/// last, and for `zoo:NAME` the published file, which is fetched if it is not here.
pub fn weights_file(path: &Path) -> Result<PathBuf, Error> {
    if published::name(path).is_some() {
        return published::file(path);
    }
    let file = resolve_checkpoint(path)?;
    // A pipe would be waited for, for ever perhaps.
    if file.exists() && !file.is_file() {
        let source = io::Error::other("expected a checkpoint, found no regular file");
        return Err(Error::Read { path: file, source });
    }
    Ok(file)
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
        false => published_on(weights, method, depth)
            .with_num_classes(found.num_classes)
            .with_binary(found.binary)
            .with_threshold(found.threshold),
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
    /// What its classes are called and shown in.
    pub classes: Classes,
    /// What its pictures hold, and what they are normalised by.
    pub pictures: PictureFormat,
    /// What it is cast by, bound to it.
    pub policy: Policy,
    /// The checkpoint's recipe (else the published one, in f32) under `--config`, flags and `--set`.
    pub recipe: Recipe,
}

impl Loaded {
    /// Loads the checkpoint that the flags name.
    pub fn open(args: &InferenceArgs, data: Option<&str>) -> Result<Self> {
        let weights = weights_file(&args.checkpoint)?;
        let config = architecture(&args.model, &weights)?;
        let mut recipe = match (config_file(&args.sources)?, read_recipe(&weights)?) {
            (Some(recipe), _) => recipe,
            (None, Some(recipe)) => recipe,
            (None, None) => {
                let mut recipe = Recipe::published(config.method, config.backbone);
                // As MMSegmentation tests its checkpoints, those trained in f16 too.
                recipe.precision.dtype = RunPrecision::F32;
                recipe
            }
        };
        // The device is this machine's, not that of the run's past.
        let pass = &args.pass;
        recipe.device = pass.device.unwrap_or_default();
        recipe.further_devices.clear();
        recipe.model = config;
        if let Some(policy) = &args.policy {
            read_policy(policy, args.precision, &mut recipe)?;
        }
        let mut keys = Assignments::default();
        keys.text("data.source", data);
        keys.put("precision.dtype", args.precision);
        keys.put("eval.slide_crop", pass.crop);
        // Two thirds of the window, as the published sliding recipes have it.
        let third = |side: usize| (side * 2).div_ceil(3);
        let stride = pass.stride.or(pass.crop.map(|crop| Crop {
            height: third(crop.height),
            width: third(crop.width),
        }));
        keys.put("eval.slide_stride", stride);
        let mode = pass.mode.map(|mode| match mode {
            Mode::Whole => "whole",
            Mode::Slide => "slide",
        });
        keys.put("eval.mode", mode);
        keys.put("eval.scale", pass.scale.map(String::from));
        keys.put("eval.ms_flip", args.ms_flip.then_some(true));
        keys.apply(&args.sources, &mut recipe)?;
        recipe.check("the flags")?;
        warn_of_no_effect(args, &recipe);
        let device = open_device(&recipe, &Ranks::current())?;
        let (model, report) = halfseg_segmentor::load(&weights, Some(&recipe.model), &device)?;
        let policy = bound_policy(&recipe, &model)?;
        let settings = PredictorSettings::read(&weights)?;
        let pictures = settings
            .map(|settings| settings.pictures)
            .unwrap_or_default();
        let (channels, taken) = (pictures.channels(), recipe.model.in_channels);
        if channels != taken {
            let file = weights.display();
            bail!(
                "{file}: expected a network for pictures of {pictures}, found one of {taken} channels"
            );
        }
        let outputs = recipe.model.num_classes;
        let classes = Classes::for_network(known_classes(&weights)?, outputs);
        message!(
            "{} on {} in {} from {}: {report}",
            recipe.model.method,
            recipe.model.backbone,
            recipe.precision.summary(),
            weights.display()
        );
        let eval = toml::to_string(&recipe.eval).unwrap_or_default();
        detail!("on {}\n[eval]\n{eval}", recipe.device);
        Ok(Self {
            weights,
            model,
            classes,
            pictures,
            policy,
            recipe,
        })
    }

    /// Refuses Cityscapes' classes for a network of this program that was trained for as many others.
    pub fn check_trained(&self, data: &str, found: &Classes) -> Result<()> {
        let settings = PredictorSettings::read(&self.weights)?;
        match settings.and_then(|settings| settings.classes) {
            Some(trained) if trained.len() == self.recipe.model.num_classes => {
                Ok(check_classes(data, found, &self.weights, &trained)?)
            }
            _ => Ok(()),
        }
    }

    /// The network as the recipe runs it.
    pub fn predictor(&self) -> Predictor {
        let eval = self.recipe.eval.clone();
        let predictor = Predictor::new(&self.model, self.policy.clone(), eval);
        let predictor = predictor.with_classes(self.classes.clone());
        predictor.with_pictures(self.pictures.clone())
    }
}
