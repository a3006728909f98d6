//! Forward and backward pass of batch normalisation with ReLU, on the CPU.
//!
//! `fused` is `halfseg_kernels::batch_norm_train`, `composed` the same of Burn's operations with
//! casts around it, as a mixed-precision network would write it.

use std::hint::black_box;

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, activation::relu};
use criterion::{Criterion, criterion_group, criterion_main};
use halfseg_kernels::{Activation, batch_norm_train};

const SHAPE: [usize; 4] = [2, 256, 64, 128];

fn fused(x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, skip: Option<Tensor<4>>) -> Tensor<4> {
    batch_norm_train(x, gamma, beta, 1e-5, skip, Activation::Relu).output
}

fn composed(x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, skip: Option<Tensor<4>>) -> Tensor<4> {
    let dtype: FloatDType = x.dtype().into();
    let [n, c, h, w] = x.dims();
    let x = x.cast(FloatDType::F32);
    let rows = x.clone().swap_dims(0, 1).reshape([c, n * h * w]);
    let mean = rows.clone().mean_dim(1);
    let variance = (rows - mean.clone()).square().mean_dim(1).reshape([c]);
    let scale = gamma / (variance + 1e-5).sqrt();
    let shift = beta - mean.reshape([c]) * scale.clone();
    let mut y = x * scale.reshape([1, c, 1, 1]) + shift.reshape([1, c, 1, 1]);
    if let Some(skip) = skip {
        y = y + skip.cast(FloatDType::F32);
    }
    relu(y).cast(dtype)
}

type Norm = fn(Tensor<4>, Tensor<1>, Tensor<1>, Option<Tensor<4>>) -> Tensor<4>;

fn step(c: &mut Criterion) {
    let device = Device::flex().autodiff();
    let normal = Distribution::Normal(0.0, 1.0);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let map = || Tensor::<4>::random(SHAPE, normal, &device).cast(dtype);
        let (x, skip) = (map().require_grad(), map().require_grad());
        let gamma = Tensor::<1>::random(SHAPE[1..2].to_vec(), normal, &device).require_grad();
        let beta = Tensor::<1>::random(SHAPE[1..2].to_vec(), normal, &device).require_grad();
        // The sum's gradient is a map of ones: what it costs is in all the figures alike.
        let name = format!("batch_norm_relu/{dtype:?}/2x256x64x128");
        let mut group = c.benchmark_group(name.to_lowercase());
        group.sample_size(10);
        for (kind, norm) in [("fused", fused as Norm), ("composed", composed)] {
            for (suffix, skip) in [("", None), ("_add", Some(&skip))] {
                group.bench_function(format!("{kind}{suffix}"), |b| {
                    b.iter(|| {
                        let y = norm(x.clone(), gamma.clone(), beta.clone(), skip.cloned());
                        black_box(y.sum().backward())
                    })
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, step);
criterion_main!(benches);
