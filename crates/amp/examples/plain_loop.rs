//! A plain training loop in mixed precision: a small network learns which of three spirals a point is on.
//!
//! ```text
//! cargo run --release --example plain_loop                                  on the CPU
//! cargo run --release --example plain_loop --features wgpu -- gpu           on a GPU
//! ```
//!
//! A precision that the device does not compute in is named and left out. The program fails if what is left
//! does not learn.

use std::process::ExitCode;

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::AdamConfig;
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use halfseg_amp::{DynamicScale, GradScaler, Policy, StepOutcome, autocast, nn, ops};

const STEPS: u64 = 300;
/// What a network that learned names right.
const LEARNED: f32 = 0.95;

#[derive(Module, Debug)]
struct Net {
    first: Linear,
    norm: BatchNorm,
    second: Linear,
    classify: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        Self {
            first: LinearConfig::new(2, 64).init(device),
            norm: BatchNormConfig::new(64).init(device),
            second: LinearConfig::new(64, 64).init(device),
            classify: LinearConfig::new(64, 3).init(device),
        }
    }

    /// Points `[n, 2]` -> logits `[n, 3]`.
    fn forward(&self, points: Tensor<2>) -> Tensor<2> {
        let x = nn::batch_norm(&self.norm, nn::linear(&self.first, points));
        let x = activation::relu(nn::linear(&self.second, activation::relu(x)));
        nn::linear(&self.classify, x)
    }
}

/// Random numbers from 0 to 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    /// Points on three spirals, and which.
    fn batch(&mut self, count: usize, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
        let (mut points, mut classes) = (Vec::new(), Vec::new());
        for index in 0..count {
            let class = index % 3;
            let radius = 0.1 + 0.9 * self.next();
            let noise = 0.2 * (self.next() - 0.5);
            let angle = 4.0 * radius + std::f32::consts::TAU / 3.0 * class as f32 + noise;
            points.extend([radius * angle.cos(), radius * angle.sin()]);
            classes.push(class as i32);
        }
        (
            Tensor::from_data(TensorData::new(points, [count, 2]), device),
            Tensor::from_data(TensorData::new(classes, [count]), device),
        )
    }
}

/// Trains, and gives the part of fresh points that are named right.
fn train(policy: &Policy, mut scaler: GradScaler, device: &Device) -> f32 {
    let device = device.clone().autodiff();
    device.seed(1);
    let mut model = Net::new(&device);
    let mut optimizer = AdamConfig::new().init();
    let mut random = Random(1);
    while scaler.steps() < STEPS {
        let (points, classes) = random.batch(192, &device);
        let (updated, outcome) = scaler.train_step(policy, model, &mut optimizer, 1e-2, |model| {
            ops::cross_entropy(model.forward(points), classes)
        });
        model = updated;
        match outcome {
            StepOutcome::Stepped { loss, .. } if scaler.steps().is_multiple_of(100) => {
                println!(
                    "  step {}: loss {:.4}",
                    scaler.steps(),
                    loss.unwrap_or(f32::NAN)
                );
            }
            StepOutcome::Stepped { .. } => {}
            skipped => println!("  {skipped}"),
        }
    }
    let model = model.valid();
    let (points, classes) = random.batch(999, &device.clone().inner());
    let logits = autocast(policy, || model.forward(points));
    let right = logits.argmax(1).squeeze_dim::<1>(1).equal(classes);
    right.int().sum().into_scalar::<i32>() as f32 / 999.0
}

/// The CPU, or the first GPU that Burn finds.
fn device(name: Option<&str>) -> Option<Device> {
    match name {
        None | Some("cpu") => Some(Device::flex()),
        #[cfg(feature = "cuda")]
        Some("gpu") => Device::enumerate(burn::tensor::DeviceType::Cuda)
            .into_iter()
            .next(),
        #[cfg(all(feature = "wgpu", not(feature = "cuda")))]
        Some("gpu") => Device::enumerate(burn::tensor::DeviceType::Wgpu)
            .into_iter()
            .next(),
        _ => None,
    }
}

fn main() -> ExitCode {
    let name = std::env::args().nth(1);
    let Some(device) = device(name.as_deref()) else {
        eprintln!("there is no such device: cpu, or gpu with the feature `wgpu` or `cuda`");
        return ExitCode::from(2);
    };
    let torch = || GradScaler::dynamic(DynamicScale::torch());
    let mut failed = false;
    for (name, policy, scaler) in [
        ("f32", Policy::disabled(), GradScaler::fixed(1.0)),
        ("f16", Policy::f16(), torch()),
        // No scale is needed, but the steps are counted and checked all the same.
        ("bf16", Policy::bf16(), GradScaler::fixed(1.0)),
    ] {
        println!("{name}");
        if let Err(error) = policy.check(&device) {
            println!("  left out: {error}");
            continue;
        }
        let right = train(&policy, scaler, &device);
        println!("  {:.1} % right", 100.0 * right);
        failed |= right < LEARNED;
    }
    match failed {
        true => {
            eprintln!("less than {:.0} % right", 100.0 * LEARNED);
            ExitCode::FAILURE
        }
        false => ExitCode::SUCCESS,
    }
}
