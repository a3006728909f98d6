//! What calling layers through `halfseg_amp` costs when nothing is to be cast.
//!
//! `plain` calls Burn's `forward`, `unscoped` and `disabled` the functions of `halfseg_amp::nn`
//! outside any scope and under the disabled policy. `linear/f32/1x4` is next to no work, so it shows
//! the price of a call; `block/f32/...` is a convolution, batch norm and ReLU as models have them.
//! `step/f32/...` is a training step of a ResNet-18: in Burn alone, in the parts of a disabled scaler, and
//! as one call under the disabled policy.
//!
//! The three take turns, and each round is compared with itself: what a busy or throttled machine
//! does to one it does to all. Criterion, which times one after the other, shows differences of
//! 15 % between equal code on such a machine.

#[path = "../../crates/amp/tests/models/resnet18_amp.rs"]
mod adapted;
#[path = "../../crates/amp/tests/models/resnet18.rs"]
mod resnet18;

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, LinearConfig, PaddingConfig2d};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor, activation};
use halfseg_amp::{GradScaler, Policy, autocast, nn};

/// Time that each workload is measured for.
const TOTAL: Duration = Duration::from_secs(20);
/// Time that one variant takes in one round.
const TURN: Duration = Duration::from_millis(20);

const NAMES: [&str; 3] = ["plain", "unscoped", "disabled"];

/// Seconds per call of each variant, by round. Each round begins with another variant.
fn alternate(variants: &[&dyn Fn(); 3]) -> Vec<[f64; 3]> {
    let time = |body: &dyn Fn(), calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| body());
        start.elapsed()
    };
    let mut calls = 1;
    while time(variants[0], calls) < TURN {
        calls *= 2;
    }
    let begin = Instant::now();
    let mut rounds = Vec::new();
    while begin.elapsed() < TOTAL {
        let mut round = [0.0; 3];
        for turn in 0..3 {
            let variant = (rounds.len() + turn) % 3;
            round[variant] = time(variants[variant], calls).as_secs_f64() / f64::from(calls);
        }
        rounds.push(round);
    }
    rounds
}

/// The first quartile, the median and the third quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

fn report(name: &str, variants: [&dyn Fn(); 3]) {
    let rounds = alternate(&variants);
    for (variant, called) in NAMES.iter().enumerate() {
        let times = quartiles(rounds.iter().map(|round| round[variant]).collect());
        let ratios = quartiles(
            rounds
                .iter()
                .map(|round| round[variant] / round[0])
                .collect(),
        );
        println!(
            "{name:24} {called:9} {:10.3} us   ratio to plain {:.4} ({:.4} to {:.4}), {} rounds",
            times[1] * 1e6,
            ratios[1],
            ratios[0],
            ratios[2],
            rounds.len(),
        );
    }
}

fn linear(device: &Device) {
    let layer = LinearConfig::new(4, 4).init(device);
    let x = Tensor::<2>::ones([1, 4], device);
    let policy = Policy::disabled();
    report(
        "linear/f32/1x4",
        [
            &|| drop(black_box(layer.forward(x.clone()))),
            &|| drop(black_box(nn::linear(&layer, x.clone()))),
            &|| autocast(&policy, || drop(black_box(nn::linear(&layer, x.clone())))),
        ],
    );
}

fn block(device: &Device, name: &str, [c, h, w]: [usize; 3]) {
    let conv = Conv2dConfig::new([c, c], [3, 3])
        .with_padding(PaddingConfig2d::Same)
        .with_bias(false)
        .init(device);
    let norm = BatchNormConfig::new(c).init(device);
    let x = Tensor::random([1, c, h, w], Distribution::Normal(0.0, 1.0), device);
    let policy = Policy::disabled();
    let through = |conv: &Conv2d, norm: &BatchNorm, x: Tensor<4>| {
        black_box(activation::relu(nn::batch_norm(norm, nn::conv2d(conv, x))))
    };
    report(
        name,
        [
            &|| {
                drop(black_box(activation::relu(
                    norm.forward(conv.forward(x.clone())),
                )))
            },
            &|| drop(through(&conv, &norm, x.clone())),
            &|| autocast(&policy, || drop(through(&conv, &norm, x.clone()))),
        ],
    );
}

/// A model and its optimizer, which a step takes and gives back.
fn stepper<M>(model: M, step: impl Fn(M, &mut ModuleOptimizer) -> M) -> impl Fn() {
    let state = RefCell::new((Some(model), SgdConfig::new().init()));
    move || {
        let (model, optimizer) = &mut *state.borrow_mut();
        let taken = model.take().expect("it is put back");
        *model = Some(step(taken, optimizer));
    }
}

/// A ResNet-18 with `width` channels in its first stage, on `[n, 3, side, side]`.
fn step(device: &Device, name: &str, width: usize, [n, side]: [usize; 2]) {
    let x = Tensor::<4>::random([n, 3, side, side], Distribution::Normal(0.0, 1.0), device);
    let policy = Policy::disabled();
    let plain = stepper(
        resnet18::ResNet18::new(5, width, device),
        |model, optimizer| {
            let loss = model.forward(x.clone()).mean();
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            optimizer.step(1e-3, model, grads)
        },
    );
    let parts = stepper(
        adapted::ResNet18::new(5, width, device),
        |model, optimizer| {
            let mut scaler = GradScaler::disabled();
            scaler.begin(&model);
            let grads = scaler
                .scale(model.forward(x.clone()).mean())
                .backward(&model);
            let grads = scaler.unscale(grads);
            scaler.step(optimizer, 1e-3, model, grads).0
        },
    );
    let whole = stepper(
        adapted::ResNet18::new(5, width, device),
        |model, optimizer| {
            let loss = |model: &adapted::ResNet18| model.forward(x.clone()).mean();
            GradScaler::disabled()
                .train_step(&policy, model, optimizer, 1e-3, loss)
                .0
        },
    );
    report(name, [&plain, &parts, &whole]);
}

fn main() {
    // `cargo test` runs benchmarks to see that they start.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let device = Device::flex();
    linear(&device);
    block(&device, "block/f32/1x8x8x8", [8, 8, 8]);
    block(&device, "block/f32/1x64x64x128", [64, 64, 128]);
    let device = device.autodiff();
    step(&device, "step/f32/1x3x32x32", 4, [1, 32]);
    step(&device, "step/f32/4x3x64x64", 16, [4, 64]);
}
