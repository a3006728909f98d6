//! What every use of a recipe begins with.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burn::module::Module;
use burn::tensor::Device;
use halfseg_amp::Policy;
use halfseg_data::{Dataset, Sample};
use halfseg_devices::{Bytes, DeviceChoice, Ranks, available_memory};
use halfseg_layers::resize_memory;
use halfseg_predict::PredictorSettings;
use halfseg_segmentor::{LoadReport, Segmentor, TrainingStep, training_memory};

use crate::finite::{REMEDY, unfit_weight};
use crate::learner::replica;
use crate::run::together::{check_shares, shared};
use crate::{Error, Factors, Learner, Recipe, Splits, check_channels};

/// A network ready to be trained as a recipe says.
pub(crate) struct Start {
    pub model: Segmentor,
    /// The recipe's, bound to `model`.
    pub policy: Policy,
    /// What came from the recipe's `checkpoint` or `backbone_weights`, if it names one.
    pub loaded: Option<LoadReport>,
    /// The averages of the weights that a run goes on with.
    pub averaged: Option<Segmentor>,
}

impl Start {
    /// The network that training begins with, on the autodiff device `training`: drawn from the
    /// seed, under the weights of the recipe's `checkpoint` or `backbone_weights`, which the first of several
    /// processes alone reads.
    pub fn of(recipe: &Recipe, training: &Device, ranks: &Ranks) -> Result<Self, Error> {
        let alone = own_generator();
        let mut model = drawn(recipe, training);
        let mut loaded = None;
        let reads = |weights: &str| ranks.is_first() && !weights.is_empty();
        if reads(&recipe.checkpoint) {
            let report;
            (model, report) = model.load_pretrained(&recipe.checkpoint)?;
            loaded = Some(report);
        }
        if reads(&recipe.backbone_weights) {
            let report;
            (model, report) = model.load_backbone(&recipe.backbone_weights)?;
            loaded = Some(report);
        }
        drop(alone);
        if loaded.is_some() {
            let weights = [&recipe.checkpoint, &recipe.backbone_weights];
            let weights = weights.into_iter().find(|weights| !weights.is_empty());
            let weights = Path::new(weights.map_or("", String::as_str));
            check_weights(&model, weights, "train from others")?;
        }
        check_factors(recipe, &model)?;
        let policy = bound_policy(recipe, &model)?;
        Ok(Self {
            model,
            policy,
            loaded,
            averaged: None,
        })
    }

    /// The network of a checkpoint that the recipe comes from, and the one of its averages if it has any.
    pub fn resumed(
        recipe: &Recipe,
        weights: &Path,
        averages: Option<&Path>,
        training: &Device,
    ) -> Result<Self, Error> {
        let alone = own_generator();
        let load = |path| halfseg_segmentor::load(path, Some(&recipe.model), training);
        let (model, _) = load(weights)?;
        let averaged = averages.map(load).transpose()?;
        let averaged = averaged.map(|(averaged, _)| averaged);
        drop(alone);
        check_weights(&model, weights, REMEDY)?;
        if let (Some(path), Some(averaged)) = (averages, &averaged) {
            check_weights(averaged, path, REMEDY)?;
        }
        check_factors(recipe, &model)?;
        let policy = bound_policy(recipe, &model)?;
        Ok(Self {
            model,
            policy,
            loaded: None,
            averaged,
        })
    }
}

/// Refuses weights of which training would make nothing but what is no number.
fn check_weights(model: &Segmentor, path: &Path, remedy: &str) -> Result<(), Error> {
    unfit_weight(model).map_or(Ok(()), |found| {
        Err(Error::State {
            path: path.to_owned(),
            expected: "weights that are finite numbers".into(),
            found: format!("{found}: {remedy}"),
        })
    })
}

/// What a run of one or several processes needs before it begins.
pub(crate) struct Prepared {
    model: Segmentor,
    policy: Policy,
    further: Vec<Device>,
    pub loaded: Option<LoadReport>,
    averaged: Option<Segmentor>,
    /// The lower bound of what a step of this process takes.
    pub memory: Bytes,
}

impl Prepared {
    /// Checks what can be known before a step, on `device` (without autodiff), and takes the network that
    /// `start` gives for it with autodiff.
    pub fn of(
        recipe: &Recipe,
        data: &Splits,
        device: &Device,
        ranks: &Ranks,
        start: impl FnOnce(&Device) -> Result<Start, Error>,
    ) -> Result<Self, Error> {
        recipe.check("the recipe of this run")?;
        check_shares(recipe, ranks)?;
        check_channels(recipe, &*data.train)?;
        let memory = check_memory(recipe)?;
        check_loader(recipe, memory)?;
        check_evaluation(recipe, data.val.as_deref(), device)?;
        let Start {
            model,
            policy,
            loaded,
            averaged,
        } = start(&device.clone().autodiff())?;
        Ok(Self {
            model,
            policy,
            further: open_further(recipe, ranks)?,
            loaded,
            averaged,
            memory,
        })
    }

    /// The learner of one of `ranks`, with the weights of the first. All of them call it.
    pub fn learner(self, recipe: &Recipe, ranks: Ranks) -> Learner {
        let seconds = recipe.train.exchange_timeout;
        ranks.set_time_out((seconds > 0).then(|| Duration::from_secs(seconds)));
        let averaged = match ranks.any(self.averaged.is_some()) {
            // The values are those of the first process.
            true => self.averaged.or_else(|| Some(self.model.clone())),
            false => None,
        };
        let averaged = averaged.map(|averaged| shared(averaged, &ranks));
        let model = shared(self.model, &ranks);
        Learner::new(model, self.policy, recipe)
            .with_averages(averaged)
            .with_further_devices(self.further)
            .with_ranks(ranks)
    }
}

/// A network drawn from the recipe's seed. The CPU draws, where this build computes there, so that the
/// weights are the same on every device; elsewhere the device itself does.
fn drawn(recipe: &Recipe, training: &Device) -> Segmentor {
    let host = DeviceChoice::Flex.open().map(Device::autodiff);
    let host = host.unwrap_or_else(|_| training.clone());
    host.seed(recipe.seed);
    let model = recipe.model.init(&host);
    match host == *training {
        true => model,
        false => replica(&model, training),
    }
}

/// The lower bound of a step's memory in this process, which its GPU must have, or the host for each of those that it
/// runs if it computes; see [`Ranks::current`].
///
/// # Errors
///
/// [`Error::Memory`] if it has less.
pub fn check_memory(recipe: &Recipe) -> Result<Bytes, Error> {
    let ranks = Ranks::current();
    let mut step = recipe.training_step();
    step.images = step.images.div_ceil(ranks.size());
    let needed = Bytes(training_memory(&recipe.model, &step));
    let on_host = recipe.device == DeviceChoice::Flex;
    let needed = match on_host {
        true => Bytes(needed.0.saturating_add(resize_of_logits(recipe))),
        false => needed,
    };
    let [_, here] = ranks.local();
    let devices = 1 + recipe.further_devices.len();
    let (of_all, device) = match on_host {
        true => (needed.0.saturating_mul(here as u64), recipe.device),
        // Each has a part of the batch, and all of the network.
        false => {
            step.images = step.images.div_ceil(devices);
            let own = training_memory(&recipe.model, &step);
            (own, recipe.device.of_rank(&ranks, devices))
        }
    };
    match device.memory() {
        Some(available) if of_all > available.0 => Err(Error::Memory {
            crop: recipe.data.crop.to_string(),
            batch: recipe.train.batch,
            needed: Bytes(of_all),
            available,
            fits: what_fits(recipe, step, available),
        }),
        _ => Ok(needed),
    }
}

/// What could be trained in `available` instead of `step`, as advice.
fn what_fits(recipe: &Recipe, step: TrainingStep, available: Bytes) -> String {
    let fits = |step: &TrainingStep| training_memory(&recipe.model, step) <= available.0;
    let mut recomputed = step;
    recomputed.recomputes = true;
    if !step.recomputes && fits(&recomputed) {
        return "train.gradient_checkpointing may make it fit".to_owned();
    }
    let fewest = recipe.model.min_train_batch(step.size).max(1);
    let fits_with = |images: usize| {
        let mut fewer = recomputed;
        fewer.images = images;
        fits(&fewer)
    };
    if fewest < step.images && fits_with(fewest) {
        // The most that fit, by halves: a batch may be given as large as one likes.
        let (mut batch, mut too_many) = (fewest, step.images);
        while too_many - batch > 1 {
            let images = batch + (too_many - batch) / 2;
            match fits_with(images) {
                true => batch = images,
                false => too_many = images,
            }
        }
        return format!(
            "with train.gradient_checkpointing, {batch} image(s) at a time may fit: make the batch smaller, or \
             train.accumulate larger"
        );
    }
    // In sixteenths of each side, from the largest on.
    let crop = (1..16).rev().find_map(|part| {
        let size = step.size.map(|side| side * part / 16);
        let mut smaller = recomputed;
        (smaller.size, smaller.images) = (size, fewest);
        (size.iter().all(|side| *side > 0) && fits(&smaller)).then_some(size)
    });
    match crop {
        Some([height, width]) => format!(
            "with train.gradient_checkpointing and {fewest} image(s) at a time, a crop of {height}x{width} may fit"
        ),
        None => "make the crop much smaller".to_owned(),
    }
}

/// Refuses workers that would make more batches ahead of training than the host has memory for beside a step,
/// which takes `step` in this process.
///
/// # Errors
///
/// [`Error::Value`] of `data.workers`.
pub(crate) fn check_loader(recipe: &Recipe, step: Bytes) -> Result<(), Error> {
    let Some(available) = available_memory() else {
        return Ok(());
    };
    let step = match recipe.device {
        DeviceChoice::Flex => step,
        // Batches are made on the host, whatever the device.
        _ => Bytes(0),
    };
    let (ranks, crop) = (Ranks::current(), recipe.data.crop);
    // All channels in f32 and a label for each pixel of this process's part of a batch.
    let images = recipe.train.batch.div_ceil(ranks.size());
    let pixel = recipe.model.in_channels * size_of::<f32>() + 1;
    let batch = [images, crop.height, crop.width, pixel];
    let batch = batch
        .map(|n| n as u64)
        .into_iter()
        .fold(1, u64::saturating_mul);
    let (workers, queue) = (recipe.data.workers as u64, recipe.data.queue.max(1) as u64);
    // Each worker has one in hand beside those that wait.
    let ahead = (workers * (queue + 1)).min(recipe.schedule.iterations);
    let ahead = Bytes(ahead.saturating_mul(batch));
    let [_, here] = ranks.local();
    let left = Bytes((available.0 / here as u64).saturating_sub(step.0));
    if ahead <= left {
        return Ok(());
    }
    Err(Error::Value {
        key: "data.workers".into(),
        origin: "this run".into(),
        expected: format!(
            "as many as keep at most {left} of batches, which is what a step leaves (each worker has up to \
             data.queue = {queue} batches ready, {} each)",
            Bytes(batch)
        ),
        found: format!("{workers} workers with {ahead}"),
    })
}

/// Bytes that the host takes to resize the logits of a crop to its size.
fn resize_of_logits(recipe: &Recipe) -> u64 {
    let crop = recipe.data.crop;
    let (size, stride) = ([crop.height, crop.width], recipe.model.logits_stride());
    resize_memory(size.map(|side| side.div_ceil(stride)), size)
}

/// Whether the host could hold a picture in evaluation, by the first of `val`: a run that could not would
/// end at its first evaluation.
fn check_evaluation(
    recipe: &Recipe,
    val: Option<&dyn Dataset>,
    device: &Device,
) -> Result<(), Error> {
    let Some(val) = val.filter(|val| !val.is_empty()) else {
        return Ok(());
    };
    // What cannot be read is told where it is evaluated.
    let Ok(Sample { image, .. }) = val.get(0) else {
        return Ok(());
    };
    let settings = PredictorSettings::new(recipe.precision.policy(), recipe.eval.clone());
    let (width, height) = image.size();
    let checked = settings.check_memory(&recipe.model, device, width, height);
    Ok(checked.map_err(|error| error.of(&val.source(0)))?)
}

/// The device of this process that `recipe` computes on, without autodiff: of several processes on a machine,
/// each counts GPUs from its own first.
///
/// # Errors
///
/// Those of [`DeviceChoice::open`].
pub fn open_device(recipe: &Recipe, ranks: &Ranks) -> Result<Device, Error> {
    let devices = 1 + recipe.further_devices.len();
    Ok(recipe.device.of_rank(ranks, devices).open()?)
}

/// The devices that share batches with the first, with autodiff.
fn open_further(recipe: &Recipe, ranks: &Ranks) -> Result<Vec<Device>, Error> {
    let devices = 1 + recipe.further_devices.len();
    let open = |choice: &DeviceChoice| Ok(choice.of_rank(ranks, devices).open()?.autodiff());
    recipe.further_devices.iter().map(open).collect()
}

/// Refuses learning rates and decays of modules that `model` does not have.
fn check_factors(recipe: &Recipe, model: &Segmentor) -> Result<(), Error> {
    let optimizer = &recipe.optimizer;
    let (_, unknown) = Factors::new(model, &optimizer.lr_factors, &optimizer.decay_factors);
    let Some(path) = unknown.first() else {
        return Ok(());
    };
    let key = match optimizer.lr_factors.contains_key(path) {
        true => "optimizer.lr_factors",
        false => "optimizer.decay_factors",
    };
    Err(Error::Value {
        key: key.into(),
        origin: "this configuration".into(),
        expected: "paths of the network's modules, such as decode_head or backbone.layer1".into(),
        found: format!("`{path}`"),
    })
}

/// The casting policy of `recipe`, bound to `model`.
///
/// # Errors
///
/// A precision that the device of `model` does not compute in, or one for a module that `model` does not have. One
/// below `auxiliary_head` is no error where there is no such head: only training uses it.
pub fn bound_policy(recipe: &Recipe, model: &Segmentor) -> Result<Policy, Error> {
    let mut policy = recipe.precision.policy();
    let unmatched = policy.bind(model).into_iter().find(|module| {
        model.auxiliary_head.is_some() || !module.path.starts_with("auxiliary_head")
    });
    for device in model.devices() {
        policy.check(&device)?;
    }
    match unmatched {
        None => Ok(policy),
        Some(module) => Err(Error::UnknownKey {
            key: format!("precision.modules.{}", module.path),
            nearest: format!("precision.modules.{}", module.nearest),
            origin: "the precision policy".into(),
        }),
    }
}

/// Keeps other trainers of this process from drawing initial weights for as long as it lives.
///
/// Burn draws from one generator per process. Trainers that start side by side would take each
/// other's random numbers, and the seed of a recipe would not determine its weights. Draws that the
/// rest of the program makes at the same time still disturb it.
fn own_generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}
