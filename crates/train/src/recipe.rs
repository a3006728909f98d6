//! Everything that decides how a run goes, as one TOML file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use halfseg_amp::{Op, Policy, Precision as OpPrecision, Scaling};
use halfseg_segmentor::{Depth, Method, SegmentorConfig};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::overrides;
use crate::{Crop, DeviceChoice, Error, LossScale, PolySchedule, Precision, Scale};

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
    pub eval: EvalRecipe,
}

/// Images and how they are augmented.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// `synthetic`, or a folder with `leftImg8bit` and `gtFine` in it.
    pub source: String,
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
    pub dtype: Precision,
    /// `auto` (512 in f16, else 1), the factor of the whole run, or the name of a dynamic scale.
    pub loss_scale: LossScale,
    /// Operations with a precision of their own, such as `softmax = "f16"`.
    pub ops: BTreeMap<Op, OpPrecision>,
    /// Modules with a precision of their own, by path, such as `"decode_head.conv_seg" = "f32"`.
    pub modules: BTreeMap<String, OpPrecision>,
}

impl PrecisionRecipe {
    /// What autocast does in this run. Bind it to the network before use.
    pub fn policy(&self) -> Policy {
        let ops = self.ops.iter();
        let policy = ops.fold(self.dtype.policy(), |policy, (op, precision)| {
            policy.with_op(*op, *precision)
        });
        let modules = self.modules.iter();
        modules.fold(policy, |policy, (path, precision)| {
            policy.with_module(path, *precision)
        })
    }

    /// How the gradient scaler of this run is set.
    pub fn scaling(&self) -> Scaling {
        self.loss_scale.scaling(self.dtype)
    }

    /// Precision and overrides, as a line for people: `f16`, or `f16 with 2 exceptions`.
    pub fn summary(&self) -> String {
        match self.ops.len() + self.modules.len() {
            0 => self.dtype.to_string(),
            1 => format!("{} with 1 exception", self.dtype),
            exceptions => format!("{} with {exceptions} exceptions", self.dtype),
        }
    }
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Images per iteration.
    pub batch: usize,
    /// Iterations between evaluations; 0 evaluates at the end only.
    pub eval_every: u64,
    /// Iterations between checkpoints; 0 writes one at the end only.
    pub checkpoint_every: u64,
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

/// How images are evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalRecipe {
    /// `whole` or `slide`.
    pub mode: EvalMode,
    /// `HEIGHTxWIDTH` of a window, for `slide`.
    pub slide_crop: Crop,
    /// `HEIGHTxWIDTH` between windows, for `slide`.
    pub slide_stride: Crop,
    /// Average softmax over six sizes and their mirror images.
    pub ms_flip: bool,
    /// `WIDTHxHEIGHT` that images are resized to fit (logits are resized back); `own` keeps them.
    pub scale: EvalScale,
}

/// How one image passes through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvalMode {
    /// At once.
    Whole,
    /// In overlapping windows whose logits are averaged.
    Slide,
}

/// The size at which images are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EvalScale {
    /// Their own.
    Own,
    /// As large as fits into this, in their own ratio.
    Fit(Scale),
}

impl std::str::FromStr for EvalScale {
    type Err = crate::ParseValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "own" {
            Ok(Self::Own)
        } else {
            text.parse().map(Self::Fit)
        }
    }
}

impl TryFrom<String> for EvalScale {
    type Error = crate::ParseValueError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EvalScale> for String {
    fn from(scale: EvalScale) -> String {
        match scale {
            EvalScale::Own => "own".into(),
            EvalScale::Fit(scale) => scale.to_string(),
        }
    }
}

impl Recipe {
    /// The published recipe for `method` on a ResNetV1c of `depth`.
    ///
    /// Values: `configs/_base_/{schedules/schedule_80k,datasets/cityscapes}.py` of MMSegmentation
    /// 1.2.2 and the `amp` configurations of the four methods (static loss scale 512). The
    /// published runs use four devices with two images each; this is one device.
    pub fn published(method: Method, depth: Depth) -> Self {
        Self {
            seed: 0,
            device: DeviceChoice::Flex,
            further_devices: Vec::new(),
            checkpoint: String::new(),
            model: SegmentorConfig::new(method, depth),
            data: DataRecipe {
                source: "synthetic".into(),
                train_split: "train".into(),
                val_split: "val".into(),
                scale: Scale {
                    width: 2048,
                    height: 1024,
                },
                ratio_min: 0.5,
                ratio_max: 2.0,
                crop: Crop {
                    height: 512,
                    width: 1024,
                },
                category_limit: 0.75,
                flip: 0.5,
                photometric: true,
                workers: 2,
                queue: 4,
                synthetic_train: 500,
                synthetic_val: 50,
                synthetic_seed: 0,
            },
            optimizer: OptimizerRecipe {
                lr: 0.01,
                momentum: 0.9,
                weight_decay: 5e-4,
                clip_norm: 0.0,
            },
            schedule: ScheduleRecipe {
                iterations: 80_000,
                power: 0.9,
                min_lr: 1e-4,
            },
            precision: PrecisionRecipe {
                dtype: Precision::F16,
                loss_scale: LossScale::Auto,
                ops: BTreeMap::new(),
                modules: BTreeMap::new(),
            },
            train: TrainRecipe {
                batch: 2,
                eval_every: 8_000,
                checkpoint_every: 8_000,
                log_every: 1,
                pictures: 4,
                max_skipped: 100,
                gradient_checkpointing: false,
            },
            eval: EvalRecipe {
                mode: EvalMode::Whole,
                slide_crop: Crop {
                    height: 512,
                    width: 1024,
                },
                slide_stride: Crop {
                    height: 341,
                    width: 683,
                },
                ms_flip: false,
                scale: EvalScale::Own,
            },
        }
    }

    /// The learning rate over the run.
    pub fn poly(&self) -> PolySchedule {
        PolySchedule {
            lr: self.optimizer.lr,
            min_lr: self.schedule.min_lr,
            power: self.schedule.power,
            iterations: self.schedule.iterations,
        }
    }

    /// The recipe as TOML, every key with its value.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.table()).expect("a table of plain values is TOML")
    }

    /// Reads a recipe. Keys that it leaves out are those of the published recipe for the method
    /// and depth that it names (FCN on ResNet-101 unless it does).
    ///
    /// # Errors
    ///
    /// Text that is not TOML, unknown keys and unusable values; `origin` names the text in them.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| Error::Config {
                origin: origin.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
        let (method, depth) = named_model(&table, origin)?;
        let mut base =
            Self::published(method.unwrap_or(Method::Fcn), depth.unwrap_or(Depth::R101)).table();
        overrides::merge(&mut base, table, origin)?;
        Self::from_table(base, origin)
    }

    /// Reads a recipe from a file; see [`parse`](Self::parse).
    ///
    /// # Errors
    ///
    /// A file that cannot be read, and those of [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Applies `key=value`, such as `optimizer.lr=0.02`.
    ///
    /// # Errors
    ///
    /// An unknown key (with the nearest valid one) or an unusable value; the recipe is unchanged
    /// then.
    pub fn set(&mut self, assignment: &str) -> Result<(), Error> {
        let mut table = self.table();
        overrides::set(&mut table, assignment)?;
        *self = Self::from_table(table, &format!("--set {assignment}"))?;
        Ok(())
    }

    /// Takes dtype and exceptions from a policy file, such as `halfseg audit --policy` writes, in
    /// place of the recipe's own; they are part of the recipe from then on, and the file is not
    /// needed any more.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is no policy, and one with another dtype for weights than f32
    /// or for results than that of the computation, which these networks do not have.
    pub fn read_policy(&mut self, path: &Path) -> Result<(), Error> {
        let policy = Policy::load(path)?;
        let refuse = |key: &str, expected: &str, found: OpPrecision| {
            Err(Error::Value {
                key: key.into(),
                origin: path.display().to_string(),
                expected: expected.into(),
                found: format!("`{found}`"),
            })
        };
        if policy.param() != OpPrecision::F32 {
            return refuse("param", "f32, the dtype of the weights", policy.param());
        }
        if policy.output() != OpPrecision::Input {
            let expected = "input, since logits and losses are f32 in any case";
            return refuse("output", expected, policy.output());
        }
        self.precision.dtype = match policy.compute() {
            OpPrecision::F16 => Precision::F16,
            OpPrecision::Bf16 => Precision::Bf16,
            OpPrecision::F32 | OpPrecision::Input => Precision::F32,
            other => return refuse("compute", "f16, bf16 or f32", other),
        };
        self.precision.ops = policy.ops().clone();
        self.precision.modules = policy.modules().clone();
        Ok(())
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

    fn table(&self) -> Table {
        Table::try_from(self).expect("a recipe is a table of plain values")
    }

    fn from_table(table: Table, origin: &str) -> Result<Self, Error> {
        let recipe: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| Error::Config {
                origin: origin.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
        recipe.check(origin)?;
        Ok(recipe)
    }

    /// Whether a run could use these values; files and [`set`](Self::set) are checked already.
    ///
    /// # Errors
    ///
    /// The first value that it could not; `origin` names where the values come from.
    pub fn check(&self, origin: &str) -> Result<(), Error> {
        let refuse = |key: &str, expected: &str, found: String| {
            Err(Error::Value {
                key: key.into(),
                origin: origin.into(),
                expected: expected.into(),
                found,
            })
        };
        let positive: [(&str, f64); 8] = [
            ("optimizer.lr", self.optimizer.lr),
            ("schedule.iterations", self.schedule.iterations as f64),
            ("data.ratio_min", self.data.ratio_min),
            ("data.synthetic_train", self.data.synthetic_train as f64),
            ("data.synthetic_val", self.data.synthetic_val as f64),
            ("train.batch", self.train.batch as f64),
            ("train.log_every", self.train.log_every as f64),
            ("train.max_skipped", self.train.max_skipped as f64),
        ];
        for (key, value) in positive {
            if value.is_nan() || value <= 0.0 || value.is_infinite() {
                return refuse(key, "a positive number", value.to_string());
            }
        }
        let not_negative = [
            ("optimizer.weight_decay", self.optimizer.weight_decay),
            ("optimizer.clip_norm", self.optimizer.clip_norm),
            ("schedule.power", self.schedule.power),
            ("schedule.min_lr", self.schedule.min_lr),
        ];
        for (key, value) in not_negative {
            if value.is_nan() || value < 0.0 || value.is_infinite() {
                return refuse(key, "a number of at least 0", value.to_string());
            }
        }
        let shares = [
            ("optimizer.momentum", self.optimizer.momentum),
            ("data.flip", self.data.flip),
            ("data.category_limit", self.data.category_limit),
        ];
        for (key, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return refuse(key, "a number from 0 to 1", value.to_string());
            }
        }
        if self.data.ratio_max.is_nan() || self.data.ratio_max < self.data.ratio_min {
            return refuse(
                "data.ratio_max",
                "a number of at least data.ratio_min",
                self.data.ratio_max.to_string(),
            );
        }
        for (key, value) in [
            ("data.workers", self.data.workers),
            ("data.queue", self.data.queue),
        ] {
            if value > 1024 {
                return refuse(key, "a number from 0 to 1024", value.to_string());
            }
        }
        let (crop, stride) = (self.eval.slide_crop, self.eval.slide_stride);
        let gaps = stride.height > crop.height || stride.width > crop.width;
        if self.eval.mode == EvalMode::Slide && gaps {
            let expected =
                format!("at most eval.slide_crop, {crop}, so that windows leave no gaps");
            return refuse("eval.slide_stride", &expected, stride.to_string());
        }
        if let Err(error) = self.model.validate() {
            let key = format!("model.{}", error.key);
            return refuse(&key, error.expected, error.found);
        }
        let devices = 1 + self.further_devices.len();
        if !self.train.batch.is_multiple_of(devices) {
            let expected = format!("a multiple of {devices}, the number of devices");
            return refuse("train.batch", &expected, self.train.batch.to_string());
        }
        let smallest = self.model.method.min_train_batch();
        if self.train.batch < smallest {
            let expected = format!(
                "at least {smallest} for {}, which normalises maps of one pixel over the batch",
                self.model.method
            );
            return refuse("train.batch", &expected, self.train.batch.to_string());
        }
        Ok(())
    }
}

/// Method and depth that a user's table names, before anything else of it is read.
fn named_model(table: &Table, origin: &str) -> Result<(Option<Method>, Option<Depth>), Error> {
    let model = table.get("model").and_then(|model| model.as_table());
    let text = |key: &str| {
        model
            .and_then(|model| model.get(key))
            .and_then(|value| value.as_str())
    };
    let refuse = |key: &str, expected: &str, found: &str| Error::Value {
        key: format!("model.{key}"),
        origin: origin.to_owned(),
        expected: expected.to_owned(),
        found: format!("`{found}`"),
    };
    let method = text("method")
        .map(|text| {
            text.parse()
                .map_err(|_| refuse("method", "fcn, pspnet, deeplabv3 or deeplabv3plus", text))
        })
        .transpose()?;
    let depth = text("backbone")
        .map(|text| {
            text.parse().map_err(|_| {
                refuse(
                    "backbone",
                    "resnet18, resnet34, resnet50, resnet101 or resnet152",
                    text,
                )
            })
        })
        .transpose()?;
    Ok((method, depth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_values_are_those_of_the_papers_code() {
        let recipe = Recipe::published(Method::DeepLabV3Plus, Depth::R101);
        assert_eq!(recipe.data.crop.to_string(), "512x1024");
        assert_eq!(recipe.data.scale.to_string(), "2048x1024");
        assert_eq!((recipe.data.ratio_min, recipe.data.ratio_max), (0.5, 2.0));
        assert_eq!(recipe.train.batch, 2);
        let optimizer = &recipe.optimizer;
        assert_eq!(
            (optimizer.lr, optimizer.momentum, optimizer.weight_decay),
            (0.01, 0.9, 5e-4)
        );
        let schedule = &recipe.schedule;
        assert_eq!(
            (schedule.iterations, schedule.power, schedule.min_lr),
            (80_000, 0.9, 1e-4)
        );
        assert_eq!(recipe.model.aux_weight, 0.4);
        assert_eq!(recipe.precision.scaling(), Scaling::Fixed(512.0));
    }

    #[test]
    fn every_preset_reads_back_what_it_prints() {
        for method in Method::ALL {
            for depth in Depth::ALL {
                let recipe = Recipe::published(method, depth);
                let again = Recipe::parse(&recipe.to_toml(), "copy").unwrap();
                assert_eq!(again, recipe, "{method} {depth}");
            }
        }
    }

    #[test]
    fn a_short_file_gets_the_presets_other_values() {
        let recipe = Recipe::parse(
            "[model]\nmethod = \"pspnet\"\nbackbone = \"resnet18\"\n[optimizer]\nlr = 1",
            "a.toml",
        )
        .unwrap();
        let mut expected = Recipe::published(Method::PspNet, Depth::R18);
        expected.optimizer.lr = 1.0;
        assert_eq!(recipe, expected);
        assert_eq!(recipe.model.head_channels, 128);
    }

    fn check_refused(assignment: &str, expect: &str) {
        let mut recipe = Recipe::published(Method::PspNet, Depth::R18);
        let before = recipe.clone();
        let error = recipe.set(assignment).unwrap_err().to_string();
        assert!(
            error.contains(expect),
            "{assignment}: expected `{expect}` in `{error}`"
        );
        assert_eq!(recipe, before);
    }

    #[test]
    fn unusable_values_are_refused_by_name() {
        check_refused("optimizer.lr=0", "`optimizer.lr`");
        check_refused("optimizer.lr=nan", "`optimizer.lr`");
        check_refused("data.flip=2", "`data.flip`");
        check_refused("data.ratio_max=0.1", "`data.ratio_max`");
        check_refused("schedule.iterations=0", "`schedule.iterations`");
        check_refused("data.crop=12", "HEIGHTxWIDTH");
        check_refused("data.crop=64x1000001", "1 to 1000000");
        check_refused("data.workers=100000", "0 to 1024");
        check_refused("data.synthetic_train=0", "`data.synthetic_train`");
        check_refused("precision.dtype=f64", "f32, f16 or bf16");
        check_refused("precision.loss_scale=-1", "megatron");
        check_refused("precision.loss_scale=1e38", "2^126");
        check_refused("precision.loss_scale=nan", "2^126");
        check_refused("model.num_classes=0", "`model.num_classes`");
        check_refused("model.method=unet", "deeplabv3plus");
        check_refused("train.batch=1", "at least 2 for pspnet");
        check_refused(
            "further_devices=[\"flex\", \"flex\"]",
            "a multiple of 3, the number of devices",
        );
        check_refused("further_devices=[\"gpu\"]", "cuda:N");
        check_refused("data.worker=1", "nearest valid key is `data.workers`");
        check_refused(
            "precision.ops.sofmax=f16",
            "nearest valid key is `precision.ops.softmax`",
        );
        check_refused("precision.ops.softmax=f64", "f16, bf16, f32 or input");
        check_refused("precision.modules.head=1", "f16, bf16, f32 or input");
        check_refused("precision.op.softmax=f16", "`precision.ops.");
    }

    #[test]
    fn exceptions_are_part_of_the_recipe() {
        let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
        assert_eq!(recipe.precision.policy(), Policy::f16());
        recipe.set("precision.ops.interpolate=f16").unwrap();
        recipe
            .set("precision.modules.decode_head.conv_seg=f32")
            .unwrap();
        recipe.set("precision.modules.backbone=bf16").unwrap();
        let expected = Policy::f16()
            .with_op(Op::Interpolate, OpPrecision::F16)
            .with_module("decode_head.conv_seg", OpPrecision::F32)
            .with_module("backbone", OpPrecision::Bf16);
        assert_eq!(recipe.precision.policy(), expected);
        assert_eq!(recipe.precision.summary(), "f16 with 3 exceptions");
        let text = recipe.to_toml();
        assert_eq!(Recipe::parse(&text, "copy").unwrap(), recipe);
    }

    #[test]
    fn policy_files_become_part_of_the_recipe_or_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
        let policy = Policy::bf16()
            .with_op(Op::Conv2d, OpPrecision::F32)
            .with_module("decode_head.conv_seg", OpPrecision::Bf16);
        policy.save(&path).unwrap();
        recipe.read_policy(&path).unwrap();
        assert_eq!(recipe.precision.dtype, Precision::Bf16);
        assert_eq!(recipe.precision.policy(), policy);

        let before = recipe.clone();
        for (policy, key) in [
            (Policy::f16().with_param(OpPrecision::F16), "`param`"),
            (Policy::f16().with_output(OpPrecision::F16), "`output`"),
        ] {
            policy.save(&path).unwrap();
            let error = recipe.read_policy(&path).unwrap_err().to_string();
            assert!(
                error.contains(key) && error.contains("policy.json"),
                "{error}"
            );
            assert_eq!(recipe, before);
        }
    }

    #[test]
    fn toml_that_does_not_parse_names_its_file_and_line() {
        let error = Recipe::parse("seed = \n", "bad.toml")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("bad.toml") && error.contains("line 1"),
            "{error}"
        );
    }
}
