//! Digits that are drawn, a network that reads them, and burn-train's learner in mixed precision.

use std::path::Path;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::AdamConfig;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{
    ClassificationOutput, InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep,
};
use halfseg_amp::{
    DynamicScale, GradScaler, Policy, ScalerSchedule, SharedScaler, autocast, nn, ops,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Height and width of an image, in pixels.
pub const SIDE: usize = 16;

/// The segments of a seven-segment display that each digit lights: top, upper left, upper right, middle,
/// lower left, lower right, bottom.
const SEGMENTS: [[u8; 7]; 10] = [
    [1, 1, 1, 0, 1, 1, 1],
    [0, 0, 1, 0, 0, 1, 0],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 1, 1, 0, 1, 1],
    [0, 1, 1, 1, 0, 1, 0],
    [1, 1, 0, 1, 0, 1, 1],
    [1, 1, 0, 1, 1, 1, 1],
    [1, 0, 1, 0, 0, 1, 0],
    [1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 0, 1, 1],
];

/// An image of a digit, row by row.
#[derive(Clone, Debug)]
pub struct Digit {
    pixels: Vec<f32>,
    digit: u8,
}

impl Digit {
    /// A digit somewhere in the image, in some brightness, under noise.
    fn drawn(random: &mut ChaCha8Rng) -> Self {
        let digit = random.random_range(0..10u8);
        let (left, top) = (
            random.random_range(1..8usize),
            random.random_range(1..5usize),
        );
        let brightness = random.random_range(0.6..1.0f32);
        let mut pixels: Vec<f32> = (0..SIDE * SIDE)
            .map(|_| random.random_range(0.0..0.4f32))
            .collect();
        let mut line = |x: usize, y: usize, across: bool| {
            for step in 0..5 {
                let (x, y) = if across { (x + step, y) } else { (x, y + step) };
                pixels[(top + y) * SIDE + left + x] += brightness;
            }
        };
        let places = [
            (0, 0, true),
            (0, 0, false),
            (5, 0, false),
            (0, 5, true),
            (0, 5, false),
            (5, 5, false),
            (0, 10, true),
        ];
        for ((x, y, across), lit) in places.into_iter().zip(SEGMENTS[usize::from(digit)]) {
            if lit == 1 {
                line(x, y, across);
            }
        }
        Self { pixels, digit }
    }
}

/// `count` digits, always the same ones for a seed.
pub fn digits(count: usize, seed: u64) -> Vec<Digit> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| Digit::drawn(&mut random)).collect()
}

/// Images `[n, 1, h, w]` with their digits `[n]`.
#[derive(Clone, Debug)]
pub struct Batch {
    images: Tensor<4>,
    digits: Tensor<1, Int>,
}

#[derive(Clone)]
struct IntoBatch;

impl Batcher<Digit, Batch> for IntoBatch {
    fn batch(&self, items: Vec<Digit>, device: &Device) -> Batch {
        let count = items.len();
        let digits: Vec<i32> = items.iter().map(|item| i32::from(item.digit)).collect();
        let pixels: Vec<f32> = items.into_iter().flat_map(|item| item.pixels).collect();
        Batch {
            images: Tensor::from_data(TensorData::new(pixels, [count, 1, SIDE, SIDE]), device),
            digits: Tensor::from_data(TensorData::new(digits, [count]), device),
        }
    }
}

/// Two convolutions and a classifier, and what training them in mixed precision takes.
#[derive(Module, Debug)]
pub struct Network {
    conv1: Conv2d,
    norm1: BatchNorm,
    conv2: Conv2d,
    norm2: BatchNorm,
    classify: Linear,
    #[module(skip)]
    policy: Policy,
    #[module(skip)]
    scaler: SharedScaler,
}

impl Network {
    /// A network on `device`, which computes as `policy` says.
    pub fn new(policy: Policy, scaler: SharedScaler, device: &Device) -> Self {
        let conv = |inputs, outputs| {
            Conv2dConfig::new([inputs, outputs], [3, 3])
                .with_stride([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        Self {
            conv1: conv(1, 16),
            norm1: BatchNormConfig::new(16).init(device),
            conv2: conv(16, 32),
            norm2: BatchNormConfig::new(32).init(device),
            classify: LinearConfig::new(32 * SIDE * SIDE / 16, 10).init(device),
            policy,
            scaler,
        }
    }

    /// Images `[n, 1, h, w]` -> logits `[n, 10]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(nn::batch_norm(&self.norm1, nn::conv2d(&self.conv1, images)));
        let x = relu(nn::batch_norm(&self.norm2, nn::conv2d(&self.conv2, x)));
        nn::linear(&self.classify, x.flatten(1, 3))
    }

    fn classify(&self, batch: Batch) -> ClassificationOutput {
        let logits = self.forward(batch.images);
        let loss = ops::cross_entropy(logits.clone(), batch.digits.clone());
        ClassificationOutput::new(loss, logits, batch.digits)
    }
}

impl TrainStep for Network {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let mut item = None;
        let grads = self.scaler.gradients(&self.policy, self, |network| {
            let output = network.classify(batch);
            let loss = output.loss.clone();
            item = Some(output);
            loss
        });
        let item = item.expect("the loss was computed");
        TrainOutput { grads, item }
    }
}

impl InferenceStep for Network {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        autocast(&self.policy, || self.classify(batch))
    }
}

/// What is trained, and how far.
pub struct Run<'a> {
    /// What operations compute in.
    pub policy: Policy,
    /// How losses are scaled.
    pub scaler: GradScaler,
    /// Where checkpoints and logs go.
    pub folder: &'a Path,
    /// The epoch to end with.
    pub epochs: usize,
    /// The epoch whose checkpoint to go on from.
    pub resume: Option<usize>,
    /// Images to train on.
    pub images: usize,
}

/// Trains on the CPU, and gives the network and the scaler as they are afterwards.
pub fn train(run: Run<'_>) -> (Network, GradScaler) {
    let device = Device::flex();
    let loader = |count, seed| -> std::sync::Arc<dyn DataLoader<Batch>> {
        DataLoaderBuilder::new(IntoBatch)
            .batch_size(32)
            .shuffle(seed)
            .set_device(device.clone())
            .build(InMemDataset::new(digits(count, seed)))
    };
    let scaler = SharedScaler::new(run.scaler);
    let network = Network::new(run.policy, scaler.clone(), &device.clone().autodiff());
    // The record of the schedule, which the checkpointer saves, holds the scaler's state as well.
    let rate = ScalerSchedule::new(2e-3, scaler.clone());
    let mut training = SupervisedTraining::new(run.folder, loader(run.images, 1), loader(256, 2))
        .metrics((AccuracyMetric::new(), LossMetric::new()))
        .with_default_checkpointers()
        .num_epochs(run.epochs);
    if let Some(epoch) = run.resume {
        training = training.checkpoint(epoch);
    }
    let learner = Learner::new(network, AdamConfig::new().init(), rate);
    let result = training.launch(learner);
    if let Some(error) = result.error {
        panic!("training ended: {error}");
    }
    (result.model, scaler.scaler())
}

/// The part of freshly drawn digits that a network names right.
pub fn accuracy(network: &Network, seed: u64) -> f32 {
    let batch = IntoBatch.batch(digits(512, seed), &network.classify.weight.device());
    let logits = autocast(&network.policy, || network.forward(batch.images));
    let right = logits.argmax(1).squeeze_dim::<1>(1).equal(batch.digits);
    right.float().mean().into_scalar::<f32>()
}

/// The policy and the scaler that a name stands for: `f16`, `bf16` or `f32`.
pub fn precision(name: &str) -> Option<(Policy, GradScaler)> {
    match name {
        "f16" => Some((Policy::f16(), GradScaler::dynamic(DynamicScale::torch()))),
        "bf16" => Some((Policy::bf16(), GradScaler::disabled())),
        "f32" => Some((Policy::disabled(), GradScaler::disabled())),
        _ => None,
    }
}
