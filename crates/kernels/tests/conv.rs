//! The differentiable convolution against Burn's own, on the CPU.

mod guard_pages;

use burn::tensor::{DType, Device, Distribution, Tensor, module, ops::ConvOptions};
use halfseg_kernels::{Activation, Conv2dOptions, conv2d, conv2d_act, rounds_weight};

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_to_vec().unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = expected.iter().map(|e| e * e).sum::<f32>().sqrt();
    let error = found
        .iter()
        .zip(expected)
        .map(|(f, e)| (f - e).powi(2))
        .sum::<f32>()
        .sqrt();
    assert!(error <= bound * norm.max(1e-6), "{what}: {error} of {norm}");
}

const CASES: [([usize; 4], [usize; 4], Conv2dOptions); 4] = [
    ([2, 3, 17, 23], [8, 3, 3, 3], options(2, 1, 1, 1)),
    ([2, 20, 9, 33], [7, 20, 1, 1], options(1, 0, 1, 1)),
    ([1, 6, 12, 18], [6, 1, 3, 3], options(1, 12, 12, 6)),
    ([2, 8, 11, 19], [4, 4, 3, 3], options(1, 2, 2, 2)),
];

const fn options(stride: usize, padding: usize, dilation: usize, groups: usize) -> Conv2dOptions {
    Conv2dOptions {
        stride: [stride; 2],
        padding: [padding; 2],
        dilation: [dilation; 2],
        groups,
    }
}

type Results = (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>);

/// Output and gradients, for a loss that weights every output differently.
fn step(
    inputs: &(Tensor<4>, Tensor<4>, Tensor<1>),
    device: &Device,
    dtype: DType,
    convolve: impl Fn(Tensor<4>, Tensor<4>, Tensor<1>) -> Tensor<4>,
) -> Results {
    let lift = |data| Tensor::from_data(data, device).require_grad();
    let x: Tensor<4> = lift(inputs.0.to_data());
    let weight: Tensor<4> = lift(inputs.1.to_data());
    let bias: Tensor<1> = Tensor::from_data(inputs.2.to_data(), device).require_grad();
    let y = convolve(
        x.clone().cast(dtype),
        weight.clone().cast(dtype),
        bias.clone().cast(dtype),
    );
    assert_eq!(y.dtype(), dtype);
    let y = y.cast(DType::F32);
    // Fixed weights of the loss: what the output lost must not come back through them.
    let count = y.dims().iter().product::<usize>() as i64;
    let weights = Tensor::<1, burn::tensor::Int>::arange(0..count, device).float();
    let weights = (weights * 0.7).sin().reshape(y.dims());
    let grads = (y.clone() * weights).sum().backward();
    (
        values(y.inner()),
        values(x.grad(&grads).unwrap()),
        values(weight.grad(&grads).unwrap()),
        values(bias.grad(&grads).unwrap()),
    )
}

/// As if it had been cast before, to the last bit; 64 channels take Winograd's way where tiles of bf16
/// do not.
#[test]
fn f32_weights_are_rounded_to_the_maps_dtype() {
    let device = Device::flex().autodiff();
    let wide = ([1, 64, 24, 40], [64, 64, 3, 3], options(1, 1, 1, 1));
    for (x, weight, options) in CASES.into_iter().chain([wide]) {
        for dtype in [DType::F16, DType::BF16] {
            let normal = Distribution::Normal(0.0, 1.0);
            let draw = |shape| Tensor::<4>::random(shape, normal, &device).into_data();
            let (x, weight) = (draw(x), draw(weight));
            let run = |cast: bool| {
                let x = Tensor::<4>::from_data(x.clone(), &device).cast(dtype);
                let x = x.detach().require_grad();
                assert!(rounds_weight(&x));
                let weight = Tensor::<4>::from_data(weight.clone(), &device).require_grad();
                let operand = match cast {
                    true => weight.clone().cast(dtype),
                    false => weight.clone(),
                };
                let y = conv2d(x.clone(), operand, None, options);
                let grads = y.clone().cast(DType::F32).powi_scalar(2).mean().backward();
                let dw = weight.grad(&grads).unwrap();
                assert_eq!(dw.dtype(), DType::F32);
                let dx = x.grad(&grads).unwrap();
                [y.inner().into_data(), dx.into_data(), dw.into_data()]
            };
            assert_eq!(run(false), run(true), "{dtype:?} {options:?}");
        }
    }
}

#[test]
fn output_and_gradients_equal_those_of_burn() {
    let plain = Device::flex();
    for device in [
        plain.clone().autodiff(),
        plain.clone().autodiff().gradient_checkpointing(),
    ] {
        for (x, weight, options) in CASES {
            let normal = Distribution::Normal(0.0, 1.0);
            let inputs = (
                Tensor::random(x, normal, &plain),
                Tensor::random(weight, normal, &plain),
                Tensor::random([weight[0]], normal, &plain),
            );
            let expected = step(&inputs, &device, DType::F32, |x, weight, bias| {
                module::conv2d(x, weight, Some(bias), ConvOptions::from(options))
            });
            // The half formats round operands, output and gradients once each.
            for (dtype, bound) in [
                (DType::F32, 1e-5),
                (DType::F16, 2e-3),
                (DType::BF16, 1.6e-2),
            ] {
                let found = step(&inputs, &device, dtype, |x, weight, bias| {
                    conv2d(x, weight, Some(bias), options)
                });
                let what = format!("{dtype:?} {x:?} {weight:?} {options:?}");
                assert_close(&found.0, &expected.0, bound, &format!("{what} output"));
                assert_close(&found.1, &expected.1, bound, &format!("{what} input"));
                assert_close(&found.2, &expected.2, bound, &format!("{what} weight"));
                // Sums of all pixels, which cancel: what is left is smaller than what was rounded.
                assert_close(&found.3, &expected.3, 8.0 * bound, &format!("{what} bias"));
            }
        }
    }
}

#[test]
fn inputs_that_need_no_gradient_get_none() {
    let device = Device::flex().autodiff();
    let x = Tensor::<4>::ones([1, 2, 4, 4], &device);
    let weight = Tensor::<4>::ones([3, 2, 3, 3], &device).require_grad();
    let y = conv2d(x.clone(), weight.clone(), None, options(1, 1, 1, 1));
    let grads = y.sum().backward();
    assert!(x.grad(&grads).is_none());
    let gradient = values(weight.grad(&grads).unwrap());
    // A tap in the corner of the kernel sees 3 x 3 of the 4 x 4 pixels.
    assert_eq!(gradient[0], 9.0);
    assert_eq!(gradient[4], 16.0);
}

#[test]
fn views_are_read_by_their_strides() {
    let device = Device::flex();
    let x = Tensor::<4>::random([1, 5, 6, 4], Distribution::Default, &device);
    let weight = Tensor::<4>::random([3, 4, 1, 1], Distribution::Default, &device);
    let permuted = x.permute([0, 3, 1, 2]);
    let copied = Tensor::from_data(permuted.to_data(), &device);
    let found = conv2d(permuted, weight.clone(), None, Conv2dOptions::default());
    let expected = conv2d(copied, weight, None, Conv2dOptions::default());
    assert_eq!(values(found), values(expected));
}

#[test]
#[should_panic(expected = "one dtype")]
fn mixed_dtypes_are_refused() {
    let device = Device::flex();
    let x = Tensor::<4>::ones([1, 2, 4, 4], &device);
    let weight = Tensor::<4>::ones([3, 2, 1, 1], &device).cast(DType::F16);
    conv2d(x, weight, None, Conv2dOptions::default());
}

#[test]
fn one_operation_equals_its_parts() {
    let plain = Device::flex();
    let normal = Distribution::Normal(0.0, 1.0);
    let x = Tensor::<4>::random([2, 40, 17, 23], normal, &plain);
    let weight = Tensor::<4>::random([33, 40, 3, 3], normal, &plain);
    let bias = Tensor::<1>::random([33], normal, &plain);
    let scale = Tensor::<1>::random([33], normal, &plain);
    let skip = Tensor::<4>::random([2, 33, 17, 23], normal, &plain);
    for skip in [None, Some(skip)] {
        for activation in [Activation::None, Activation::Relu] {
            let run = |device: &Device| {
                let lift = |tensor: &Tensor<4>| Tensor::<4>::from_data(tensor.to_data(), device);
                values(conv2d_act(
                    lift(&x),
                    lift(&weight),
                    [
                        Tensor::from_data(scale.to_data(), device),
                        Tensor::from_data(bias.to_data(), device),
                    ],
                    skip.as_ref().map(lift),
                    activation,
                    options(1, 1, 1, 1),
                ))
            };
            // With autodiff it is composed, of direct sums.
            let (found, expected) = (run(&plain), run(&plain.clone().autodiff()));
            assert_eq!(
                found.iter().any(|v| *v < 0.0),
                activation == Activation::None
            );
            assert_close(&found, &expected, 1e-4, &format!("{activation:?}"));
        }
    }
}

#[test]
fn whichever_operand_is_tracked_has_a_gradient() {
    let host = Device::flex();
    let draw = |shape: [usize; 4]| {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<4>::random(shape, normal, &host)
    };
    let maps = [draw([2, 3, 6, 7]), draw([4, 3, 3, 3]), draw([2, 4, 6, 7])];
    let rows = [draw([4, 1, 1, 1]), draw([4, 1, 1, 1])].map(|row| row.reshape::<1, _>([4]));
    let options = options(1, 1, 1, 1);
    // Gradients of x, weight, skip, scale and shift; those that are wanted.
    let run = |wanted: [bool; 5]| {
        let [x, weight, skip] = std::array::from_fn(|i| match wanted[i] {
            true => maps[i].clone().autodiff().require_grad(),
            false => maps[i].clone(),
        });
        let [scale, shift] = std::array::from_fn(|i| match wanted[3 + i] {
            true => rows[i].clone().autodiff().require_grad(),
            false => rows[i].clone(),
        });
        let affine = [scale.clone(), shift.clone()];
        let y = conv2d_act(
            x.clone(),
            weight.clone(),
            affine,
            Some(skip.clone()),
            Activation::Relu,
            options,
        );
        let grads = y.powf_scalar(2.0).sum().backward();
        let maps = [x, weight, skip].map(|map| map.autodiff().grad(&grads).map(values));
        let rows = [scale, shift].map(|row| row.autodiff().grad(&grads).map(values));
        [&maps[..], &rows[..]].concat()
    };
    let all = run([true; 5]);
    for one in 0..5 {
        let found = run(std::array::from_fn(|i| i == one));
        for (i, (found, expected)) in found.iter().zip(&all).enumerate() {
            match (found, expected) {
                (Some(found), Some(expected)) if i == one => {
                    assert_close(found, expected, 1e-5, &format!("operand {i}"));
                }
                (None, _) if i != one => {}
                _ => panic!("operand {i} of {one}"),
            }
        }
    }
}

/// Not by a bit: tasks are other parts of the work, of which each sum is in one.
#[test]
#[cfg(feature = "flex")]
fn results_do_not_depend_on_the_number_of_threads() {
    let device = Device::flex();
    let cases = CASES.into_iter().chain([
        // Few products for 3x3 kernels, over few tiles and over many.
        ([1, 40, 7, 9], [72, 40, 3, 3], options(1, 1, 1, 1)),
        ([2, 33, 40, 52], [24, 33, 3, 3], options(1, 1, 1, 1)),
        ([1, 64, 30, 30], [64, 64, 3, 3], options(1, 2, 2, 1)),
        ([1, 64, 32, 64], [96, 64, 1, 1], options(1, 0, 1, 1)),
    ]);
    for (shape, weight, options) in cases {
        let inputs = (
            Tensor::<4>::random(shape, Distribution::Default, &device),
            Tensor::<4>::random(weight, Distribution::Default, &device),
            Tensor::<1>::random([weight[0]], Distribution::Default, &device),
        );
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let run = || {
                let trained = step(&inputs, &device.clone().autodiff(), dtype, |x, w, b| {
                    conv2d(x, w, Some(b), options)
                });
                let [x, w] = [&inputs.0, &inputs.1].map(|of| of.clone().cast(dtype));
                let ones = Tensor::<1>::ones([weight[0]], &device);
                let activation = Activation::Relu;
                let y = conv2d_act(x, w, [ones, inputs.2.clone()], None, activation, options);
                (trained, values(y))
            };
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                pool.build().unwrap().install(run)
            };
            let one = on(1);
            for threads in [2, 61] {
                assert!(
                    on(threads) == one,
                    "{shape:?} {weight:?} {dtype:?} {threads}"
                );
            }
        }
    }
}
