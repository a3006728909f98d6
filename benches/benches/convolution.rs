//! The passes of a convolution on the CPU, at the shapes of ResNet-101-D8 networks for images of
//! 512x1024, beside Burn's own convolution.
//!
//! Throughput is in multiplications and additions of the direct sums: `Gelem/s` are GFLOP/s, which ways
//! that take fewer products exceed.

use std::hint::black_box;

use burn::tensor::module::conv2d as burn_conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Distribution, Tensor};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use halfseg_devices::keep_freed_memory;
use halfseg_kernels::{Conv2dOptions, conv2d};

/// Name, channels of input and output, height and width of the input, taps in each direction, stride,
/// dilation, groups.
type Shape = (
    &'static str,
    [usize; 2],
    [usize; 2],
    usize,
    usize,
    usize,
    usize,
);

const SHAPES: [Shape; 9] = [
    ("stem", [3, 32], [512, 1024], 3, 2, 1, 1),
    ("1x1_reduce", [1024, 256], [64, 128], 1, 1, 1, 1),
    ("1x1_expand", [256, 1024], [64, 128], 1, 1, 1, 1),
    ("3x3_stride2", [128, 128], [128, 256], 3, 2, 1, 1),
    ("3x3_dilation2", [256, 256], [64, 128], 3, 1, 2, 1),
    ("3x3_dilation4", [512, 512], [64, 128], 3, 1, 4, 1),
    ("head_3x3", [2048, 512], [64, 128], 3, 1, 1, 1),
    ("aspp_dilation24", [2048, 512], [64, 128], 3, 1, 24, 1),
    (
        "depthwise_dilation12",
        [2048, 2048],
        [64, 128],
        3,
        1,
        12,
        2048,
    ),
];

type Convolve = fn(Tensor<4>, Tensor<4>, Conv2dOptions) -> Tensor<4>;

fn ours(x: Tensor<4>, weight: Tensor<4>, options: Conv2dOptions) -> Tensor<4> {
    conv2d(x, weight, None, options)
}

fn burns(x: Tensor<4>, weight: Tensor<4>, options: Conv2dOptions) -> Tensor<4> {
    burn_conv2d(x, weight, None, ConvOptions::from(options))
}

fn passes(c: &mut Criterion) {
    keep_freed_memory();
    let device = Device::flex();
    for (name, [c_in, c_out], [h, w], kernel, stride, dilation, groups) in SHAPES {
        let options = Conv2dOptions {
            stride: [stride; 2],
            padding: [dilation * (kernel / 2); 2],
            dilation: [dilation; 2],
            groups,
        };
        let normal = Distribution::Normal(0.0, 1.0);
        let x = Tensor::<4>::random([1, c_in, h, w], normal, &device);
        let weight = Tensor::<4>::random([c_out, c_in / groups, kernel, kernel], normal, &device);
        let pixels = (h / stride) * (w / stride);
        let products = c_out * c_in / groups * kernel * kernel * pixels;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (x, weight) = (x.clone().cast(dtype), weight.clone().cast(dtype));
            let mut group = c.benchmark_group(format!("{name}/{dtype:?}").to_lowercase());
            group.sample_size(10);
            group.throughput(Throughput::Elements(2 * products as u64));
            for (who, convolve) in [("halfseg", ours as Convolve), ("burn", burns)] {
                group.bench_function(format!("{who}/forward"), |b| {
                    b.iter(|| black_box(convolve(x.clone(), weight.clone(), options)))
                });
                // The backward pass of a map whose gradient is all ones, for one of the operands.
                for (pass, wanted) in [("input_gradient", 0), ("weight_gradient", 1)] {
                    let record = || {
                        let [x, weight] =
                            [(x.clone(), 0), (weight.clone(), 1)].map(|(t, index)| {
                                let t = Tensor::from_inner(t);
                                if index == wanted { t.require_grad() } else { t }
                            });
                        convolve(x, weight, options)
                    };
                    group.bench_function(format!("{who}/{pass}"), |b| {
                        b.iter_batched(record, |y| black_box(y.backward()), BatchSize::PerIteration)
                    });
                }
            }
            group.finish();
        }
    }
}

criterion_group!(benches, passes);
criterion_main!(benches);
