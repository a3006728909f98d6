//! Everything that decides how a run goes, as one TOML file.

mod augment;
mod check;
mod overrides;
mod policy;
mod published;
mod text;
pub(crate) mod values;

use std::collections::BTreeMap;

use halfseg_amp::{Op, Precision as OpPrecision};
use halfseg_data::{Crop, Scale};
use halfseg_devices::{DeviceChoice, ExchangePrecision};
use halfseg_layers::Objective;
use halfseg_predict::PredictorConfig;
use halfseg_segmentor::{Depth, Method, SegmentorConfig, TrainingStep};
use serde::{Deserialize, Serialize};

use crate::{Decay, PolySchedule, Schedule};
use values::{DataSource, LossScale, Metric, OptimizerKind, RunPrecision};

/// The whole configuration of a run: model, data, optimizer, schedule, precision.
///
/// [`Recipe::published`] is the recipe of MMSegmentation's `*_d8_4xb2-80k_cityscapes-512x1024`
/// configurations on one device. As TOML it reads back what it wrote; unknown keys are errors
/// that name the nearest valid one.
///
/// ```
/// use halfseg_segmentor::{Depth, Method};
/// use halfseg_train::Recipe;
///
/// let mut recipe = Recipe::published(Method::Fcn, Depth::R101);
/// assert_eq!(recipe.optimizer.lr, 0.01);
/// recipe.set("schedule.iterations=600")?;
/// assert_eq!(Recipe::parse(&recipe.to_toml(), "copy")?, recipe);
///
/// let error = recipe.set("schedule.iteration=600").unwrap_err();
/// assert!(error.to_string().contains("nearest valid key is `schedule.iterations`"));
/// # Ok::<(), halfseg_train::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides initial weights, the order of images, their augmentation and dropout.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Devices that share each batch with `device`, in equal parts; the results are those of one
    /// device with the whole batch.
    pub further_devices: Vec<DeviceChoice>,
    /// Weights that training starts from (a whole model or a backbone); empty: random.
    pub checkpoint: String,
    /// Weights that the backbone alone starts from, of a backbone or of a whole model; empty: random, or
    /// those of `checkpoint`.
    pub backbone_weights: String,
    /// The network.
    pub model: SegmentorConfig,
    /// Images and how they are augmented.
    pub data: DataRecipe,
    /// What training makes small.
    pub loss: LossRecipe,
    /// What moves the weights.
    pub optimizer: OptimizerRecipe,
    /// Length of the run and the decay of the learning rate.
    pub schedule: ScheduleRecipe,
    /// Mixed precision.
    pub precision: PrecisionRecipe,
    /// The loop.
    pub train: TrainRecipe,
    /// How images are evaluated.
    pub eval: PredictorConfig,
}

/// Images and how they are augmented.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// `synthetic`, a folder with `leftImg8bit` and `gtFine` in it, or the definition of a data set: a file that
    /// ends with `.toml`.
    pub source: DataSource,
    /// The split that is trained on.
    pub train_split: String,
    /// The split that is evaluated on.
    pub val_split: String,
    /// `WIDTHxHEIGHT` that random ratios multiply; also the size of generated scenes.
    pub scale: Scale,
    /// Smallest random ratio.
    pub ratio_min: f64,
    /// Largest random ratio.
    pub ratio_max: f64,
    /// `HEIGHTxWIDTH` of the training crop.
    pub crop: Crop,
    /// Largest share of a crop that one class may have, if ten tries find one; 1 takes the first.
    pub category_limit: f64,
    /// Probability of a mirror image.
    pub flip: f64,
    /// Random brightness, contrast, saturation and hue, of RGB of 8 bits.
    pub photometric: bool,
    /// Probability that a crop is drawn around a pixel of a class, each class of a picture being as likely as
    /// another.
    pub class_crop: f64,
    /// Probability of turning a crop upside down.
    pub vertical_flip: f64,
    /// Probability of a rotation around the middle of a crop; what comes from outside is ignored.
    pub rotation: f64,
    /// Its largest angle either way, in degrees.
    pub rotation_degrees: f64,
    /// Probability of a Gaussian blur.
    pub blur: f64,
    /// Its largest standard deviation, in pixels.
    pub blur_sigma: f64,
    /// Probability of Gaussian noise.
    pub noise: f64,
    /// Its largest standard deviation, in 1/255 of the largest value that pictures can have.
    pub noise_std: f64,
    /// Probability of black holes in a picture, whose labels stay.
    pub cutout: f64,
    /// How many holes there are.
    pub cutout_holes: usize,
    /// Their height and width, as shares of those of the crop.
    pub cutout_share: f64,
    /// Background threads that load and augment; 0 loads in the training thread.
    pub workers: usize,
    /// Batches that wait at most.
    pub queue: usize,
    /// Number of generated training scenes, for `synthetic`.
    pub synthetic_train: usize,
    /// Number of generated scenes for evaluation, for `synthetic`.
    pub synthetic_val: usize,
    /// Which generated world; scenes of one seed are the same everywhere.
    pub synthetic_seed: u64,
}

/// What training makes small: the sum of losses, each times its weight, of both heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRecipe {
    /// Weight of the cross-entropy.
    pub cross_entropy: f64,
    /// Weight of each class in the cross-entropy, such as `halfseg doctor` recommends; empty: 1 for all.
    pub class_weights: Vec<f64>,
    /// Share of each label that is spread over all classes.
    pub label_smoothing: f64,
    /// Exponent of the focal loss, which makes little of pixels that are right already; 0 is the cross-entropy.
    pub focal_gamma: f64,
    /// Only pixels count whose class has a smaller probability than this (OHEM); 0 takes all.
    pub ohem_threshold: f64,
    /// With it, at least so many pixels count of each image on average, the hardest of the batch.
    pub ohem_kept: usize,
    /// Tells each class from all others by a sigmoid (binary cross-entropy) in place of the softmax.
    pub sigmoid: bool,
    /// Weight of the Dice loss.
    pub dice: f64,
    /// Weight of the Lovász-softmax loss, which follows the IoU.
    pub lovasz: f64,
}

/// What moves the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerRecipe {
    /// `sgd` (stochastic gradient descent with momentum) or `adamw`.
    pub kind: OptimizerKind,
    /// Learning rate of the first iteration.
    pub lr: f64,
    /// Momentum of `sgd`, without dampening.
    pub momentum: f64,
    /// Weight decay of every parameter: added to its gradient by `sgd`, taken off the parameter by `adamw`.
    pub weight_decay: f64,
    /// What is left of the mean of gradients after a step of `adamw`.
    pub beta1: f64,
    /// What is left of the mean of their squares.
    pub beta2: f64,
    /// What `adamw` adds to their root.
    pub epsilon: f64,
    /// What the learning rate is multiplied with in some modules, by path, such as `"decode_head" = 10.0`; the
    /// longest path counts, and 0 leaves weights as they are.
    pub lr_factors: BTreeMap<String, f64>,
    /// What the weight decay is multiplied with in some modules, by path.
    pub decay_factors: BTreeMap<String, f64>,
    /// Largest global norm of the gradients; 0 does not clip.
    pub clip_norm: f64,
}

/// Length of the run and the decay of the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRecipe {
    /// Iterations of the whole run.
    pub iterations: u64,
    /// How the learning rate decays: `poly`, `cosine`, `step` or `constant`.
    pub decay: Decay,
    /// Exponent of the polynomial.
    pub power: f64,
    /// Learning rate of the last iteration, of `poly` and `cosine`.
    pub min_lr: f64,
    /// Iterations at whose beginning `step` multiplies the learning rate by `gamma`, in order.
    pub milestones: Vec<u64>,
    /// That factor.
    pub gamma: f64,
    /// Iterations in which the learning rate rises to what the decay says; 0 for none.
    pub warmup: u64,
    /// Share of the learning rate that they begin with.
    pub warmup_factor: f64,
}

/// Mixed precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionRecipe {
    /// `f32`, `f16` or `bf16`.
    pub dtype: RunPrecision,
    /// `auto` (512 in f16, else 1), the factor of the whole run, or the name of a dynamic scale.
    pub loss_scale: LossScale,
    /// Operations with a precision of their own, such as `softmax = "f16"`.
    pub ops: BTreeMap<Op, OpPrecision>,
    /// Modules with a precision of their own, by path, such as `"decode_head.conv_seg" = "f32"`.
    pub modules: BTreeMap<String, OpPrecision>,
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Images per iteration, on all devices together.
    pub batch: usize,
    /// Equal parts that each batch is taken in, one after the other, whose gradients are added up: as
    /// much less memory. Normalisations see a part at a time.
    pub accumulate: usize,
    /// Iterations between evaluations; 0 evaluates at the end only.
    pub eval_every: u64,
    /// Which score tells the best weights: `miou`, `macc`, `aacc`, `mdice` (the mean F-score), `mprecision` or
    /// `mboundary_iou`.
    pub best_by: Metric,
    /// Ends the run after so many evaluations in a row without a better score; 0 never does. Resuming goes on.
    pub patience: u64,
    /// Decay of a moving average of the weights, such as 0.999, that is evaluated and saved beside them; 0 keeps
    /// none.
    pub ema: f64,
    /// Iterations between checkpoints, besides those before evaluations; 0 writes one at the end only.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept, the last of them.
    pub keep: usize,
    /// Iterations between lines of the log; each holds the mean over them.
    pub log_every: u64,
    /// Images of the validation split that become pictures at the end.
    pub pictures: usize,
    /// Gives up after this many skipped steps in a row.
    pub max_skipped: u64,
    /// Stages of the backbone that are not trained, with the stem before them: their weights and running statistics
    /// stay as they are; 0 is the stem alone, -1 nothing.
    pub frozen_stages: i64,
    /// Normalises by running statistics, which stay as they are, in the whole backbone; scales and shifts are
    /// trained.
    pub norm_eval: bool,
    /// Recomputes each residual block in the backward pass instead of keeping its inner maps: less
    /// memory for one more forward pass, and the same results.
    pub gradient_checkpointing: bool,
    /// How gradients travel between several processes, `f32`, `f16` or `bf16`; they are added up in f32.
    pub exchange_precision: ExchangePrecision,
    /// Seconds that a process waits for another before it names it and ends the job; 0 waits forever.
    pub exchange_timeout: u64,
}

impl Recipe {
    /// The polynomial decay of the learning rate.
    pub fn poly(&self) -> PolySchedule {
        PolySchedule {
            lr: self.optimizer.lr,
            min_lr: self.schedule.min_lr,
            power: self.schedule.power,
            iterations: self.schedule.iterations,
        }
    }

    /// The learning rate over the run, with its warm-up.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            decay: self.schedule.decay,
            poly: self.poly(),
            warmup: self.schedule.warmup,
            warmup_factor: self.schedule.warmup_factor,
            milestones: self.schedule.milestones.clone(),
            gamma: self.schedule.gamma,
        }
    }

    /// A step of a run, as far as its memory depends on it.
    pub fn training_step(&self) -> TrainingStep {
        TrainingStep {
            size: [self.data.crop.height, self.data.crop.width],
            images: self.train.batch.div_ceil(self.train.accumulate.max(1)),
            element_bytes: self.precision.dtype.element_bytes(),
            recomputes: self.train.gradient_checkpointing,
            normalises_again: self.device != DeviceChoice::Flex,
            frozen_stages: self.train.frozen(),
        }
    }

    /// Changes method and depth; the network's other values become those of the preset.
    pub fn set_model(&mut self, method: Option<Method>, depth: Option<Depth>) {
        let (old_method, old_depth) = (self.model.method, self.model.backbone);
        let (method, depth) = (method.unwrap_or(old_method), depth.unwrap_or(old_depth));
        if (method, depth) != (old_method, old_depth) {
            let SegmentorConfig {
                num_classes,
                in_channels,
                binary,
                threshold,
                ..
            } = self.model;
            self.model = SegmentorConfig::new(method, depth)
                .with_num_classes(num_classes)
                .with_in_channels(in_channels)
                .with_binary(binary)
                .with_threshold(threshold);
        }
    }
}

impl TrainRecipe {
    /// Stages that are not trained, if the stem is not.
    pub(crate) fn frozen(&self) -> Option<usize> {
        usize::try_from(self.frozen_stages).ok()
    }
}

impl LossRecipe {
    /// What the losses of this recipe are.
    pub fn objective(&self) -> Objective {
        let mut objective = Objective::default();
        objective.cross_entropy = self.cross_entropy;
        objective.class_weights = self
            .class_weights
            .iter()
            .map(|weight| *weight as f32)
            .collect();
        objective.label_smoothing = self.label_smoothing;
        objective.focal_gamma = self.focal_gamma;
        objective.ohem_threshold = self.ohem_threshold;
        objective.ohem_kept = self.ohem_kept;
        objective.sigmoid = self.sigmoid;
        objective.dice = self.dice;
        objective.lovasz = self.lovasz;
        objective
    }
}
