//! Steps that recompute residual blocks against steps that keep their maps.

mod network;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Device;
use halfseg_segmentor::{Depth, Method, Segmentor};
use halfseg_train::{Learner, Recipe, RunPrecision};
use network::{Batch, values};

/// Losses of three steps, and what they leave.
fn train(model: Segmentor, recipe: &Recipe) -> (Vec<f64>, BTreeMap<String, Vec<f32>>) {
    let device = Device::flex().autodiff();
    let mut learner = Learner::new(model, recipe.precision.policy(), recipe);
    let (images, labels) = Batch::PAIR.draw(recipe.model.num_classes, &device);
    let losses = (0..3).map(|_| {
        let step = learner.step(images.clone(), labels.clone());
        assert!(step.outcome.stepped(), "{}", step.outcome);
        step.loss
    });
    let losses = losses.collect();
    (losses, values(learner.model()))
}

/// On one device the same operations run in the same order, so nothing may differ: losses, weights
/// and running statistics, which the second pass through a block must leave alone.
fn check(method: Method, depth: Depth, precision: RunPrecision) {
    let device = Device::flex().autodiff();
    let mut recipe = network::recipe(method, depth, precision, &["optimizer.lr=0.5"]);
    let model = recipe.model.init(&device);
    // Running statistics are shared between clones.
    let twin = || model.clone().valid().train();
    let (losses, kept) = train(twin(), &recipe);
    recipe.train.gradient_checkpointing = true;
    let (recomputed_losses, recomputed) = train(twin(), &recipe);

    let case = format!("{method} {depth} {precision}");
    assert_eq!(losses, recomputed_losses, "{case}");
    assert!(losses[2] != losses[0], "{case}: the steps change nothing");
    assert_eq!(kept.len(), recomputed.len());
    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    for (path, kept) in &kept {
        assert!(
            bits(kept) == bits(&recomputed[path]),
            "{case}: {path} differs when blocks are recomputed"
        );
    }
}

#[test]
fn basic_blocks_train_alike_bit_for_bit() {
    for precision in [RunPrecision::F32, RunPrecision::F16, RunPrecision::Bf16] {
        check(Method::Fcn, Depth::R18, precision);
    }
    check(Method::PspNet, Depth::R18, RunPrecision::F16);
}

#[test]
fn bottlenecks_train_alike_bit_for_bit() {
    for precision in [RunPrecision::F32, RunPrecision::F16, RunPrecision::Bf16] {
        check(Method::DeepLabV3Plus, Depth::R50, precision);
    }
    check(Method::DeepLabV3, Depth::R50, RunPrecision::F32);
}
