//! Steps that recompute residual blocks against steps that keep their maps.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use halfseg_segmentor::{Depth, Method, Segmentor};
use halfseg_train::{Learner, Precision, Recipe};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn recipe(method: Method, depth: Depth, precision: Precision) -> Recipe {
    let mut recipe = Recipe::published(method, depth);
    recipe.precision.dtype = precision;
    for value in [
        "model.stem_channels=8",
        "model.base_channels=4",
        "model.head_channels=8",
        "model.aux_channels=8",
        "model.c1_channels=4",
        "schedule.iterations=10",
        "optimizer.lr=0.5",
    ] {
        recipe.set(value).unwrap();
    }
    recipe
}

/// Two images and their labels, a tenth of them ignored.
fn batch(classes: usize, device: &Device) -> (Tensor<4>, Tensor<3, Int>) {
    const SIZE: [usize; 2] = [33, 49];
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let [h, w] = SIZE;
    let mut draw = |bound: u32| rng.next_u32() % bound;
    let values: Vec<f32> = (0..2 * 3 * h * w)
        .map(|_| draw(1000) as f32 / 250.0 - 2.0)
        .collect();
    let labels: Vec<i32> = (0..2 * h * w)
        .map(|_| match draw(10) {
            0 => 255,
            _ => draw(classes as u32) as i32,
        })
        .collect();
    (
        Tensor::from_data(TensorData::new(values, [2, 3, h, w]), device),
        Tensor::from_data(TensorData::new(labels, [2, h, w]), device),
    )
}

/// Parameters and running statistics by module path, as bits.
fn values(model: &Segmentor) -> BTreeMap<String, Vec<u32>> {
    #[derive(Default)]
    struct Visitor {
        path: Vec<String>,
        found: BTreeMap<String, Vec<u32>>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data: Vec<f32> = param.val().into_data().try_into_vec().unwrap();
            let bits = data.into_iter().map(f32::to_bits).collect();
            self.found.insert(self.path.join("."), bits);
        }
    }
    let mut visitor = Visitor::default();
    model.visit(&mut visitor);
    visitor.found
}

/// Losses of three steps, and what they leave.
fn train(model: Segmentor, recipe: &Recipe) -> (Vec<f64>, BTreeMap<String, Vec<u32>>) {
    let device = Device::flex().autodiff();
    let mut learner = Learner::new(model, recipe);
    let (images, labels) = batch(recipe.model.num_classes, &device);
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
fn check(method: Method, depth: Depth, precision: Precision) {
    let device = Device::flex().autodiff();
    let mut recipe = recipe(method, depth, precision);
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
    for (path, kept) in &kept {
        assert!(
            *kept == recomputed[path],
            "{case}: {path} differs when blocks are recomputed"
        );
    }
}

#[test]
fn basic_blocks_train_alike_bit_for_bit() {
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        check(Method::Fcn, Depth::R18, precision);
    }
    check(Method::PspNet, Depth::R18, Precision::F16);
}

#[test]
fn bottlenecks_train_alike_bit_for_bit() {
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        check(Method::DeepLabV3Plus, Depth::R50, precision);
    }
    check(Method::DeepLabV3, Depth::R50, Precision::F32);
}
