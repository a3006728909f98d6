//! Everything that decides how a run goes, as one TOML file.

mod check;
mod overrides;
mod policy;
mod published;
mod text;
pub(crate) mod values;

use std::collections::BTreeMap;

use halfseg_amp::{Op, Precision as OpPrecision};
use halfseg_data::{Crop, Scale};
use halfseg_devices::DeviceChoice;
use halfseg_predict::PredictorConfig;
use halfseg_segmentor::{Depth, Method, SegmentorConfig, TrainingStep};
use serde::{Deserialize, Serialize};

use crate::PolySchedule;
use values::{DataSource, LossScale, RunPrecision};

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
    /// Stochastic gradient descent.
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
    /// `synthetic`, or a folder with `leftImg8bit` and `gtFine` in it.
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
    /// Random brightness, contrast, saturation and hue.
    pub photometric: bool,
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

/// Stochastic gradient descent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerRecipe {
    /// Learning rate of the first iteration.
    pub lr: f64,
    /// Momentum, without dampening.
    pub momentum: f64,
    /// Weight decay, added to the gradient of every parameter.
    pub weight_decay: f64,
    /// Largest global norm of the gradients; 0 does not clip.
    pub clip_norm: f64,
}

/// Length of the run and the decay of the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRecipe {
    /// Iterations of the whole run.
    pub iterations: u64,
    /// Exponent of the polynomial.
    pub power: f64,
    /// Learning rate of the last iteration.
    pub min_lr: f64,
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
    /// Recomputes each residual block in the backward pass instead of keeping its inner maps: less
    /// memory for one more forward pass, and the same results.
    pub gradient_checkpointing: bool,
}

impl Recipe {
    /// The learning rate over the run.
    pub fn poly(&self) -> PolySchedule {
        PolySchedule {
            lr: self.optimizer.lr,
            min_lr: self.schedule.min_lr,
            power: self.schedule.power,
            iterations: self.schedule.iterations,
        }
    }

    /// A step of a run, as far as its memory depends on it.
    pub fn training_step(&self) -> TrainingStep {
        TrainingStep {
            size: [self.data.crop.height, self.data.crop.width],
            images: self.train.batch.div_ceil(self.train.accumulate.max(1)),
            element_bytes: self.precision.dtype.element_bytes(),
            recomputes: self.train.gradient_checkpointing,
        }
    }

    /// Changes method and depth; the network's other values become those of the preset.
    pub fn set_model(&mut self, method: Option<Method>, depth: Option<Depth>) {
        let (old_method, old_depth) = (self.model.method, self.model.backbone);
        let (method, depth) = (method.unwrap_or(old_method), depth.unwrap_or(old_depth));
        if (method, depth) != (old_method, old_depth) {
            let classes = self.model.num_classes;
            self.model = SegmentorConfig::new(method, depth);
            self.model.num_classes = classes;
        }
    }
}
