//! A network of one's own, of Burn's layers, learns to tell discs from squares in mixed precision: with the policies and
//! the gradient scaler of `halfseg-amp`, on the kernels of `halfseg-kernels`, on the CPU and on GPUs.

mod network;
mod scenes;

pub use network::Network;
pub use scenes::{CLASSES, Scenes};

use burn::module::Module;
use burn::optim::AdamConfig;
use burn::tensor::Device;
use halfseg_amp::{DynamicScale, GradScaler, Policy, StepOutcome, autocast};

/// What a run comes to.
#[derive(Debug)]
pub struct Trained {
    /// Of each step that was taken.
    pub losses: Vec<f32>,
    /// Mean intersection over union on new pictures, 0 to 1.
    pub miou: f64,
}

/// The policy and the scaler of `f32`, `f16` or `bf16`.
pub fn precision(name: &str) -> Option<(Policy, GradScaler)> {
    match name {
        "f32" => Some((Policy::disabled(), GradScaler::fixed(1.0))),
        "f16" => Some((Policy::f16(), GradScaler::dynamic(DynamicScale::torch()))),
        // As wide a range as f32's: no scale is needed, but steps are checked all the same.
        "bf16" => Some((Policy::bf16(), GradScaler::fixed(1.0))),
        _ => None,
    }
}

/// Trains on new pictures in each step, and scores the network on further ones.
pub fn train(
    policy: &Policy,
    mut scaler: GradScaler,
    device: &Device,
    steps: u64,
    mut said: impl FnMut(u64, &StepOutcome),
) -> Trained {
    let training = device.clone().autodiff();
    let mut network = Network::new(CLASSES.len(), &training);
    let mut optimizer = AdamConfig::new().init();
    let mut scenes = Scenes::new(1);
    let mut losses = Vec::new();
    while scaler.steps() < steps {
        let (pictures, labels) = scenes.batch(4, &training);
        let (updated, outcome) =
            scaler.train_step(policy, network, &mut optimizer, 1e-2, |network| {
                network.loss(pictures, labels)
            });
        network = updated;
        said(scaler.steps(), &outcome);
        if let StepOutcome::Stepped { loss, .. } = outcome {
            losses.extend(loss);
        }
    }
    let network = network.valid();
    let (pictures, labels) = scenes.batch(16, device);
    let found = autocast(policy, || network.classes(pictures));
    let [found, labels] =
        [found, labels].map(|classes| classes.into_data().iter::<i64>().collect::<Vec<_>>());
    Trained {
        losses,
        miou: mean_iou(&found, &labels),
    }
}

fn mean_iou(found: &[i64], labels: &[i64]) -> f64 {
    let pairs = || found.iter().zip(labels);
    let of = |class: i64| {
        let both = pairs().filter(|pair| *pair.0 == class && *pair.1 == class);
        let either = pairs().filter(|pair| *pair.0 == class || *pair.1 == class);
        both.count() as f64 / either.count() as f64
    };
    (0..CLASSES.len() as i64).map(of).sum::<f64>() / CLASSES.len() as f64
}
