//! Whether a run could use a recipe's values.

use super::Recipe;
use crate::optimizer::within;
use crate::{Decay, Error};

/// Of a resized picture, in pixels: products of two stay within 64 bits.
const LONGEST_SIDE: f64 = 1e9;
/// The order of so many takes 80 MB in each background thread.
const MOST_SCENES: u64 = 10_000_000;
const MOST_IN_BATCH: u64 = 1 << 16;

impl Recipe {
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
        let positive: [(&str, f64); 10] = [
            ("optimizer.lr", self.optimizer.lr),
            ("schedule.iterations", self.schedule.iterations as f64),
            ("data.ratio_min", self.data.ratio_min),
            ("data.synthetic_train", self.data.synthetic_train as f64),
            ("data.synthetic_val", self.data.synthetic_val as f64),
            ("train.batch", self.train.batch as f64),
            ("train.accumulate", self.train.accumulate as f64),
            ("train.keep", self.train.keep as f64),
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
        let single = [
            ("optimizer.lr", self.optimizer.lr),
            ("schedule.min_lr", self.schedule.min_lr),
            ("optimizer.weight_decay", self.optimizer.weight_decay),
            ("optimizer.clip_norm", self.optimizer.clip_norm),
        ];
        for (key, value) in single {
            // They meet weights and gradients in f32.
            if value != 0.0 && !(value as f32).is_normal() {
                let expected = "0, or a number from 1.2e-38 to 3.4e38, which f32 holds";
                return refuse(key, expected, format!("{value:e}"));
            }
        }
        let counts = [
            ("seed", self.seed, i64::MAX as u64),
            (
                "data.synthetic_seed",
                self.data.synthetic_seed,
                i64::MAX as u64,
            ),
            (
                "data.synthetic_train",
                self.data.synthetic_train as u64,
                MOST_SCENES,
            ),
            (
                "data.synthetic_val",
                self.data.synthetic_val as u64,
                MOST_SCENES,
            ),
            ("train.batch", self.train.batch as u64, MOST_IN_BATCH),
        ];
        for (key, value, most) in counts {
            if value > most {
                return refuse(key, &format!("at most {most}"), value.to_string());
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
        let side = self.data.scale.width.max(self.data.scale.height);
        if self.data.ratio_max * side as f64 > LONGEST_SIDE {
            let expected = format!(
                "at most {}, so that pictures of data.scale, {}, get sides of at most {LONGEST_SIDE} pixels",
                LONGEST_SIDE / side as f64,
                self.data.scale,
            );
            return refuse("data.ratio_max", &expected, self.data.ratio_max.to_string());
        }
        if let Some([key, expected, found]) = self.data.wrong_augment() {
            return refuse(&key, &expected, found);
        }
        for (key, value) in [
            ("data.workers", self.data.workers),
            ("data.queue", self.data.queue),
        ] {
            if value > 1024 {
                return refuse(key, "a number from 0 to 1024", value.to_string());
            }
        }
        if let Err(error) = self.eval.validate() {
            let key = format!("eval.{}", error.key);
            return refuse(&key, &error.expected, error.found);
        }
        if let Err(error) = self.model.validate() {
            let key = format!("model.{}", error.key);
            return refuse(&key, &error.expected, error.found);
        }
        self.check_training(&refuse)?;
        let both = "one of `checkpoint` and `backbone_weights`";
        if !self.checkpoint.is_empty() && !self.backbone_weights.is_empty() {
            return refuse("backbone_weights", both, "both".into());
        }
        let devices = 1 + self.further_devices.len();
        if !self.train.batch.is_multiple_of(devices) {
            let expected = format!("a multiple of {devices}, the number of devices");
            return refuse("train.batch", &expected, self.train.batch.to_string());
        }
        let (batch, accumulate) = (self.train.batch, self.train.accumulate);
        if !batch.is_multiple_of(devices.saturating_mul(accumulate)) {
            let expected = format!(
                "a number of parts that {batch} images (train.batch) have on {devices} device(s)"
            );
            return refuse("train.accumulate", &expected, accumulate.to_string());
        }
        let crop = self.data.crop;
        let smallest = self.model.min_train_batch([crop.height, crop.width]);
        if batch / accumulate < smallest {
            let expected = format!(
                "at least {smallest} for {} at a crop of {crop}, where it normalises maps of one \
                 pixel over the batch{}",
                self.model.method,
                match accumulate {
                    1 => String::new(),
                    parts => format!(", {parts} times as many with train.accumulate"),
                }
            );
            return refuse("train.batch", &expected, self.train.batch.to_string());
        }
        Ok(())
    }
}

/// The modules that are not trained.
fn frozen_modules(stages: Option<usize>) -> Vec<String> {
    let stem = ["backbone.conv1", "backbone.stem"].map(str::to_owned);
    let Some(stages) = stages else {
        return Vec::new();
    };
    let stages = (1..=stages).map(|stage| format!("backbone.layer{stage}"));
    stem.into_iter().chain(stages).collect()
}

type Refuse<'a> = dyn Fn(&str, &str, String) -> Result<(), Error> + 'a;

impl Recipe {
    /// Loss, optimizer and schedule.
    fn check_training(&self, refuse: &Refuse<'_>) -> Result<(), Error> {
        let (loss, optimizer, schedule) = (&self.loss, &self.optimizer, &self.schedule);
        let parts = [
            ("loss.cross_entropy", loss.cross_entropy),
            ("loss.dice", loss.dice),
            ("loss.lovasz", loss.lovasz),
            ("loss.focal_gamma", loss.focal_gamma),
        ];
        let factors = [
            ("optimizer.lr_factors", &optimizer.lr_factors),
            ("optimizer.decay_factors", &optimizer.decay_factors),
        ];
        let weights = loss
            .class_weights
            .iter()
            .map(|weight| ("loss.class_weights", *weight));
        let values = factors
            .iter()
            .flat_map(|(key, factors)| factors.values().map(|factor| (*key, *factor)));
        for (key, value) in parts.into_iter().chain(weights).chain(values) {
            if !(value >= 0.0 && (value as f32).is_finite()) {
                return refuse(key, "numbers of at least 0", value.to_string());
            }
        }
        if loss.cross_entropy + loss.dice + loss.lovasz == 0.0 {
            let expected = "above 0, or loss.dice or loss.lovasz that is";
            return refuse("loss.cross_entropy", expected, "0 of all of them".into());
        }
        let (given, classes) = (loss.class_weights.len(), self.model.num_classes);
        if given > 0 && (given != classes || loss.class_weights.iter().sum::<f64>() == 0.0) {
            let expected = format!("{classes} weights, of which one is above 0, or none");
            return refuse(
                "loss.class_weights",
                &expected,
                format!("{:?}", loss.class_weights),
            );
        }
        if !(0.0..1.0).contains(&loss.label_smoothing) {
            let found = loss.label_smoothing.to_string();
            return refuse("loss.label_smoothing", "a number from 0 to below 1", found);
        }
        if !(0.0..=1.0).contains(&loss.ohem_threshold) {
            let found = loss.ohem_threshold.to_string();
            return refuse("loss.ohem_threshold", "a number from 0 to 1", found);
        }
        if loss.sigmoid && self.model.binary {
            let expected = "false with model.binary, whose one output has a sigmoid already";
            return refuse("loss.sigmoid", expected, "true".into());
        }
        let of_softmax = [
            ("loss.label_smoothing", loss.label_smoothing != 0.0),
            ("loss.focal_gamma", loss.focal_gamma != 0.0),
            ("loss.ohem_threshold", loss.ohem_threshold != 0.0),
            ("loss.class_weights", given > 0),
            ("loss.sigmoid", loss.sigmoid),
        ];
        for (key, set) in of_softmax {
            if set && loss.cross_entropy == 0.0 && key != "loss.sigmoid" {
                return refuse(
                    key,
                    "none without loss.cross_entropy, to which it belongs",
                    "one".into(),
                );
            }
            if set && loss.sigmoid && !["loss.sigmoid", "loss.class_weights"].contains(&key) {
                return refuse(key, "none with loss.sigmoid", "one".into());
            }
        }
        if loss.label_smoothing != 0.0 && loss.focal_gamma != 0.0 {
            let expected =
                "none with loss.focal_gamma, which would take smoothed labels for mistakes";
            return refuse(
                "loss.label_smoothing",
                expected,
                loss.label_smoothing.to_string(),
            );
        }
        if loss.ohem_kept > 0 && loss.ohem_threshold == 0.0 {
            let expected = "0 without loss.ohem_threshold, to which it belongs";
            return refuse("loss.ohem_kept", expected, loss.ohem_kept.to_string());
        }
        for (key, beta) in [
            ("optimizer.beta1", optimizer.beta1),
            ("optimizer.beta2", optimizer.beta2),
            ("train.ema", self.train.ema),
        ] {
            if !(0.0..1.0).contains(&beta) {
                return refuse(key, "a number from 0 to below 1", beta.to_string());
            }
        }
        if !(optimizer.epsilon > 0.0 && (optimizer.epsilon as f32).is_normal()) {
            let expected = "a positive number that f32 holds";
            return refuse("optimizer.epsilon", expected, optimizer.epsilon.to_string());
        }
        let frozen = self.train.frozen_stages;
        if !(-1..=4).contains(&frozen) {
            let expected = "-1 (nothing), 0 (the stem) or 1 to 4 stages of the backbone";
            return refuse("train.frozen_stages", expected, frozen.to_string());
        }
        let parts = frozen_modules(self.train.frozen());
        for (key, factors) in factors {
            let frozen = |path: &&String| parts.iter().any(|part| within(part, path));
            if let Some(path) = factors.keys().find(frozen) {
                let expected = "none for modules that train.frozen_stages leaves as they are";
                return refuse(key, expected, format!("`{path}`"));
            }
        }
        if self.train.patience > 0 && self.train.eval_every == 0 {
            let expected = "0 where train.eval_every is 0: evaluations are what it counts";
            return refuse("train.patience", expected, self.train.patience.to_string());
        }
        if schedule.warmup > schedule.iterations {
            let expected = format!("at most schedule.iterations, {}", schedule.iterations);
            return refuse("schedule.warmup", &expected, schedule.warmup.to_string());
        }
        for (key, share) in [
            ("schedule.warmup_factor", schedule.warmup_factor),
            ("schedule.gamma", schedule.gamma),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                return refuse(key, "a number above 0, at most 1", share.to_string());
            }
        }
        let steps = schedule.decay == Decay::Step;
        let in_order = schedule.milestones.is_sorted_by(|a, b| a < b);
        if steps == schedule.milestones.is_empty() || !in_order {
            let expected = "iterations in order where schedule.decay is `step`, and none elsewhere";
            return refuse(
                "schedule.milestones",
                expected,
                format!("{:?}", schedule.milestones),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use halfseg_segmentor::{Depth, Method};

    use super::*;

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
        check_refused("data.ratio_max=inf", "`data.ratio_max`");
        check_refused("data.ratio_max=1e300", "at most 488281.25");
        check_refused("optimizer.clip_norm=1e-300", "`optimizer.clip_norm`");
        check_refused("optimizer.clip_norm=1e300", "which f32 holds");
        check_refused("optimizer.lr=1e-60", "`optimizer.lr`");
        check_refused("optimizer.lr=1e39", "`optimizer.lr`");
        check_refused("optimizer.weight_decay=1e39", "`optimizer.weight_decay`");
        check_refused("train.batch=9223372036854775806", "at most 65536");
        check_refused("train.keep=0", "`train.keep`");
        check_refused(
            "data.synthetic_train=9223372036854775807",
            "at most 10000000",
        );
        check_refused("data.synthetic_val=9223372036854775807", "at most 10000000");
        check_refused("data.crop=9223372036854775807x1", "1 to 1000000");
        check_refused("seed=-1", "--set seed=-1");
        check_refused("seed=9223372036854775808", "`seed`");
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
        check_refused("loss.cross_entropy=0", "above 0");
        check_refused("loss.class_weights=[1, 2]", "19 weights");
        check_refused("loss.class_weights=[1, -2]", "at least 0");
        check_refused("loss.label_smoothing=1", "below 1");
        check_refused("loss.ohem_kept=9", "loss.ohem_threshold");
        check_refused("optimizer.kind=adam", "adamw");
        check_refused("optimizer.beta2=1", "`optimizer.beta2`");
        check_refused("optimizer.epsilon=0", "`optimizer.epsilon`");
        check_refused("optimizer.lr_factors.decode_head=x", "a number");
        check_refused("optimizer.lr_factors.decode_head=-1", "at least 0");
        check_refused("schedule.decay=linear", "cosine");
        check_refused("schedule.decay=step", "`schedule.milestones`");
        check_refused("schedule.milestones=[9]", "none elsewhere");
        check_refused("schedule.warmup=80001", "at most schedule.iterations");
        check_refused("train.best_by=iou", "mprecision");
        check_refused("schedule.warmup_factor=0", "above 0");
        check_refused("precision.op.softmax=f16", "`precision.ops.");
    }
}
