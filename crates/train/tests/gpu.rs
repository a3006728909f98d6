//! Whole networks on the first GPU that Burn's CUDA backend finds, if that is built, or else its wgpu
//! backend, against the CPU; a software one will do. Without a device each test says so and passes, unless `HALFSEG_REQUIRE_GPU` is set.

#![cfg(any(feature = "cuda", feature = "wgpu"))]

#[path = "../../kernels/tests/gpu_device/mod.rs"]
mod gpu_device;
mod network;

use std::collections::BTreeMap;

use burn::tensor::Device;
use gpu_device::gpu;
use halfseg_amp::Policy;
use halfseg_predict::Predictor;
use halfseg_segmentor::{Depth, Method, Segmentor, load};
use halfseg_train::{Learner, Recipe, RunPrecision};
use network::Batch;

fn recipe(method: Method, precision: RunPrecision) -> Recipe {
    network::recipe(method, Depth::R18, precision, &["optimizer.lr=2.0"])
}

/// The same network on another device, by way of a file: Burn's `fork` leaves statistics behind.
fn moved(model: &Segmentor, device: &Device) -> Segmentor {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model.save_safetensors(&path, BTreeMap::new()).unwrap();
    let (model, report) = load(&path, Some(model.config()), device).unwrap();
    assert!(report.is_complete(), "{report}");
    model
}

/// The losses of three steps.
fn train(model: Segmentor, recipe: &Recipe, device: &Device) -> Vec<f64> {
    train_with(model, recipe, device, Vec::new())
}

/// The same with further devices that share the batch.
fn train_with(
    model: Segmentor,
    recipe: &Recipe,
    device: &Device,
    further: Vec<Device>,
) -> Vec<f64> {
    let mut learner =
        Learner::new(model, recipe.precision.policy(), recipe).with_further_devices(further);
    let (images, labels) = Batch::PAIR.draw(recipe.model.num_classes, device);
    let step = |_| learner.step(images.clone(), labels.clone()).loss;
    (0..3).map(step).collect()
}

#[test]
fn training_steps_of_all_methods_follow_those_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (gpu, host) = (gpu.autodiff(), Device::flex().autodiff());
    host.seed(3);
    for method in Method::ALL {
        for (precision, bound) in [(RunPrecision::F32, 2e-5), (RunPrecision::F16, 2e-3)] {
            let recipe = recipe(method, precision);
            let model = recipe.model.init(&host);
            let found = train(moved(&model, &gpu), &recipe, &gpu);
            let expected = train(model, &recipe, &host);
            eprintln!("{method} {precision}: {found:.6?} on the GPU, {expected:.6?} on the CPU");
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() <= bound * expected,
                    "{method} {precision}: {found} is not near {expected}"
                );
            }
            let moved = (expected[2] - expected[0]).abs();
            assert!(
                moved > 1e-3 * expected[0],
                "{method}: the steps change little"
            );
        }
    }
}

/// The scaler and the optimizer on the GPU work on all tensors at once.
///
/// In a few networks rounding decides a ReLU or a pooled branch's normalisation over two values, and moves
/// the gradient by a thousandth: one of three has to be without, and all have to go the same way roughly.
#[test]
fn a_step_moves_weights_and_momentum_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (gpu, host) = (gpu.autodiff(), Device::flex().autodiff());
    const ROUGHLY: f64 = 0.5;
    for (precision, bound) in [(RunPrecision::F32, 1e-4), (RunPrecision::F16, 0.05)] {
        let mut recipe = recipe(Method::DeepLabV3Plus, precision);
        recipe.optimizer.clip_norm = 1.0;
        let close = (0..3).any(|_| {
            let model = recipe.model.init(&host);
            let start = network::values(&model);
            let step = |model: Segmentor, device: &Device| {
                let mut learner = Learner::new(model, recipe.precision.policy(), &recipe);
                let (images, labels) = Batch::PAIR.draw(recipe.model.num_classes, device);
                let steps = [(); 2].map(|()| learner.step(images.clone(), labels.clone()));
                for step in &steps {
                    assert!(step.outcome.stepped(), "{precision}: {:?}", step.outcome);
                }
                (steps[1].outcome.clone(), network::values(learner.model()))
            };
            let (found_outcome, found) = step(moved(&model, &gpu), &gpu);
            let (outcome, expected) = step(model, &host);
            eprintln!("{precision}: {found_outcome:?} on the GPU, {outcome:?} on the CPU");
            let norm = |a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>| {
                let pairs = a
                    .iter()
                    .flat_map(|(path, values)| values.iter().zip(&b[path]));
                let squares = pairs.map(|(a, b)| f64::from(a - b).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let (off, change) = (norm(&found, &expected), norm(&expected, &start));
            eprintln!("{precision}: weights and statistics are off by {off:.3e} of {change:.3e}");
            assert!(off <= ROUGHLY * change, "{precision}");
            off <= bound * change
        });
        assert!(close, "{precision}: none of three networks is moved alike");
    }
}

#[test]
fn recomputed_blocks_train_alike() {
    let Some(gpu) = gpu() else { return };
    let (gpu, host) = (gpu.autodiff(), Device::flex().autodiff());
    for precision in [RunPrecision::F32, RunPrecision::F16] {
        let mut recipe = recipe(Method::DeepLabV3Plus, precision);
        let model = recipe.model.init(&host);
        let kept = train(moved(&model, &gpu), &recipe, &gpu);
        recipe.train.gradient_checkpointing = true;
        let recomputed = train(moved(&model, &gpu), &recipe, &gpu);
        eprintln!("{precision}: {kept:.6?} with all maps, {recomputed:.6?} with blocks recomputed");
        // The same operations; atomic sums and another choice of kernels may round otherwise.
        for (kept, recomputed) in kept.iter().zip(&recomputed) {
            let bound = if precision == RunPrecision::F32 {
                1e-5
            } else {
                2e-3
            };
            assert!((kept - recomputed).abs() <= bound * kept, "{precision}");
        }
    }
}

/// Each worker launches kernels of its own, and tensors pass between them and between the devices.
#[test]
fn workers_on_a_gpu_and_the_cpu_train_as_one_device() {
    let Some(gpu) = gpu() else { return };
    let (gpu, host) = (gpu.autodiff(), Device::flex().autodiff());
    let recipe = recipe(Method::Fcn, RunPrecision::F32);
    let model = recipe.model.init(&host);
    let expected = train(moved(&model, &gpu), &recipe, &gpu);
    for (name, further) in [("another worker", &gpu), ("the CPU", &host)] {
        let further = vec![further.clone()];
        let found = train_with(moved(&model, &gpu), &recipe, &gpu, further);
        eprintln!("{found:.6?} with {name}, {expected:.6?} alone");
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 2e-5 * expected, "with {name}");
        }
    }
}

#[test]
fn class_maps_of_all_methods_equal_those_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let host = Device::flex();
    for method in Method::ALL {
        let recipe = recipe(method, RunPrecision::F32);
        let model = recipe.model.init(&host);
        let segment = |model: Segmentor, device: &Device| {
            let predictor = Predictor::new(&model, Policy::disabled(), recipe.eval.clone());
            let (images, _) = Batch::PAIR.draw(recipe.model.num_classes, device);
            predictor.segment(images)
        };
        let found = segment(moved(&model, &gpu), &gpu);
        let expected = segment(model, &host);
        assert_eq!(found.len(), 2);
        let pairs = || {
            found
                .iter()
                .zip(&expected)
                .flat_map(|(f, e)| f.data.iter().zip(&e.data))
        };
        let different = pairs().filter(|(f, e)| f != e).count();
        eprintln!("{method}: {different} of {} pixels differ", pairs().count());
        assert!(different * 1000 <= pairs().count(), "{method}");
    }
}
