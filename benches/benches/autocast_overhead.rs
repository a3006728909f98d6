//! What calling layers through `halfseg_amp` costs when nothing is to be cast.
//!
//! `plain` calls Burn's `forward`, `unscoped` and `disabled` the functions of `halfseg_amp::nn`
//! outside any scope and under the disabled policy. `linear/f32/1x4` is next to no work, so it shows
//! the price of a call; `block/f32/...` is a bottleneck's middle as the models have it.

use std::hint::black_box;

use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Distribution, Tensor, activation};
use criterion::{Criterion, criterion_group, criterion_main};
use halfseg_amp::{Policy, autocast, nn};

fn block(conv: &Conv2d, norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    activation::relu(nn::batch_norm(norm, nn::conv2d(conv, x)))
}

fn call(c: &mut Criterion) {
    let device = Device::flex();
    let layer: Linear = LinearConfig::new(4, 4).init(&device);
    let x = Tensor::<2>::ones([1, 4], &device);
    let mut group = c.benchmark_group("linear/f32/1x4");
    group.bench_function("plain", |b| b.iter(|| black_box(layer.forward(x.clone()))));
    group.bench_function("unscoped", |b| {
        b.iter(|| black_box(nn::linear(&layer, x.clone())))
    });
    let policy = Policy::disabled();
    autocast(&policy, || {
        group.bench_function("disabled", |b| {
            b.iter(|| black_box(nn::linear(&layer, x.clone())))
        });
    });
    group.finish();
}

fn forward(c: &mut Criterion) {
    let device = Device::flex();
    let conv = Conv2dConfig::new([64, 64], [3, 3])
        .with_padding(PaddingConfig2d::Same)
        .with_bias(false)
        .init(&device);
    let norm = BatchNormConfig::new(64).init(&device);
    let x = Tensor::random([1, 64, 64, 128], Distribution::Normal(0.0, 1.0), &device);
    let mut group = c.benchmark_group("block/f32/1x64x64x128");
    group.sample_size(50);
    group.bench_function("plain", |b| {
        b.iter(|| black_box(activation::relu(norm.forward(conv.forward(x.clone())))))
    });
    group.bench_function("unscoped", |b| {
        b.iter(|| black_box(block(&conv, &norm, x.clone())))
    });
    let policy = Policy::disabled();
    group.bench_function("disabled", |b| {
        b.iter(|| autocast(&policy, || black_box(block(&conv, &norm, x.clone()))))
    });
    group.finish();
}

criterion_group!(benches, call, forward);
criterion_main!(benches);
