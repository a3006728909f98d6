//! How many kernels a step of mixed precision launches on a GPU, a software one will do, beside the same
//! step in Burn alone.

#![cfg(any(feature = "cuda", feature = "wgpu"))]

#[path = "../../crates/kernels/tests/gpu_device/mod.rs"]
mod gpu_device;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Tensor, activation};
use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};
use halfseg_amp::{DynamicScale, GradScaler, Policy, nn, ops};

const LAYERS: u64 = 50;

#[derive(Default)]
struct Count(AtomicU64);

impl LaunchObserver for Count {
    fn launched(&self, _kernel: &'static str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Launches of a step, the third: Burn joins operations that it has seen before, and optimizers have their
/// momentum from the second on.
fn launches(
    device: &Device,
    step: impl Fn(Vec<Linear>, &mut ModuleOptimizer) -> Vec<Linear>,
) -> u64 {
    let layers = (0..LAYERS).map(|_| LinearConfig::new(16, 16).init(device));
    let mut layers: Vec<Linear> = layers.collect();
    let mut optimizer = SgdConfig::new().init();
    let mut count = 0;
    for _ in 0..3 {
        device.sync().expect("the device works");
        let counter = Arc::new(Count::default());
        let observation = LaunchObservation::new(counter.clone());
        layers = step(layers, &mut optimizer);
        device.sync().expect("the device works");
        drop(observation);
        count = counter.0.load(Ordering::Relaxed);
    }
    count
}

fn input(device: &Device) -> Tensor<2> {
    Tensor::ones([4, 16], device)
}

#[test]
fn a_step_of_fifty_layers_launches_little_besides_its_casts() {
    let Some(device) = gpu_device::gpu() else {
        return;
    };
    let device = device.autodiff();
    let plain = launches(&device, |layers, optimizer| {
        let forward = |x, layer: &Linear| activation::relu(layer.forward(x));
        let loss = layers.iter().fold(input(&device), forward).mean();
        let grads = GradientsParams::from_grads(loss.backward(), &layers);
        optimizer.step(0.1, layers, grads)
    });
    let mixed = |policy: Policy, scaling: fn() -> GradScaler| {
        let scaler = std::cell::RefCell::new(scaling());
        launches(&device, |layers, optimizer| {
            let forward = |x, layer: &Linear| activation::relu(nn::linear(layer, x));
            let loss =
                |layers: &Vec<Linear>| ops::mean(layers.iter().fold(input(&device), forward));
            scaler
                .borrow_mut()
                .train_step(&policy, layers, optimizer, 0.1, loss)
                .0
        })
    };
    let torch = || GradScaler::dynamic(DynamicScale::torch());
    let disabled = mixed(Policy::disabled(), GradScaler::disabled);
    let scaled = mixed(Policy::disabled(), torch);
    println!(
        "{plain} launches in Burn alone, {disabled} with a disabled policy, {scaled} with a scaler"
    );
    for (name, policy) in [("f16", Policy::f16()), ("bf16", Policy::bf16())] {
        if let Err(error) = policy.check(&device) {
            println!("{error}");
            continue;
        }
        let found = mixed(policy, torch);
        println!("{found} in {name}");
        // A cast of each weight and bias; their gradients, and what is between, are joined with others.
        assert!(found <= plain + 2 * LAYERS + 20, "{found} {plain}");
    }
    assert!(disabled <= plain + 2, "{disabled} {plain}");
    assert!(scaled <= plain + 20, "{scaled} {plain}");
}
