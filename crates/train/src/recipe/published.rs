//! The recipe of the published models.

use std::collections::BTreeMap;

use halfseg_data::{Crop, Scale};
use halfseg_devices::{DeviceChoice, ExchangePrecision};
use halfseg_predict::PredictorConfig;
use halfseg_segmentor::{Depth, Method, SegmentorConfig};

use super::{
    DataRecipe, LossRecipe, OptimizerRecipe, PrecisionRecipe, Recipe, ScheduleRecipe, TrainRecipe,
};
use crate::{DataSource, Decay, LossScale, Metric, OptimizerKind, RunPrecision};

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
            backbone_weights: String::new(),
            model: SegmentorConfig::new(method, depth),
            data: DataRecipe {
                source: DataSource::Synthetic,
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
                class_crop: 0.0,
                vertical_flip: 0.0,
                rotation: 0.0,
                rotation_degrees: 10.0,
                blur: 0.0,
                blur_sigma: 2.0,
                noise: 0.0,
                noise_std: 10.0,
                cutout: 0.0,
                cutout_holes: 1,
                cutout_share: 0.25,
                workers: 2,
                queue: 4,
                synthetic_train: 500,
                synthetic_val: 50,
                synthetic_seed: 0,
            },
            loss: LossRecipe {
                cross_entropy: 1.0,
                class_weights: Vec::new(),
                label_smoothing: 0.0,
                focal_gamma: 0.0,
                ohem_threshold: 0.0,
                ohem_kept: 0,
                sigmoid: false,
                dice: 0.0,
                lovasz: 0.0,
            },
            optimizer: OptimizerRecipe {
                kind: OptimizerKind::Sgd,
                lr: 0.01,
                momentum: 0.9,
                weight_decay: 5e-4,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                lr_factors: BTreeMap::new(),
                decay_factors: BTreeMap::new(),
                clip_norm: 0.0,
            },
            schedule: ScheduleRecipe {
                iterations: 80_000,
                decay: Decay::Poly,
                power: 0.9,
                min_lr: 1e-4,
                milestones: Vec::new(),
                gamma: 0.1,
                warmup: 0,
                warmup_factor: 0.1,
            },
            precision: PrecisionRecipe {
                dtype: RunPrecision::F16,
                loss_scale: LossScale::Auto,
                ops: BTreeMap::new(),
                modules: BTreeMap::new(),
            },
            train: TrainRecipe {
                batch: 2,
                accumulate: 1,
                eval_every: 8_000,
                best_by: Metric::Miou,
                patience: 0,
                ema: 0.0,
                checkpoint_every: 8_000,
                keep: 1,
                log_every: 1,
                pictures: 4,
                max_skipped: 100,
                frozen_stages: -1,
                norm_eval: false,
                gradient_checkpointing: false,
                exchange_precision: ExchangePrecision::F32,
                exchange_timeout: 600,
            },
            eval: PredictorConfig::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use halfseg_amp::Scaling;

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
}
