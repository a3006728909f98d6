//! What autocast casts: checks 22 to 26. Check 27, the memory of a whole step, is in
//! `crates/cli/tests/bench.rs`.

mod common;

use burn::module::{Lora, Module, Param};
use burn::nn::conv::{
    Conv1dConfig, Conv2dConfig, Conv3dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig,
    ConvTranspose3dConfig,
};
use burn::nn::loss::{CrossEntropyLossConfig, HuberLossConfig, Reduction};
use burn::nn::{
    BatchNormConfig, GroupNormConfig, InstanceNormConfig, LayerNormConfig, Linear, LinearConfig,
    PReluConfig,
};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::ops::{
    AttentionModuleOptions, GridSampleOptions, InterpolateMode, InterpolateOptions,
};
use burn::tensor::{DType, FloatDType, IndexingUpdateOp, Int, Tensor, activation, module};
use common::{
    Net, Weights, check_layer, check_unary, computes_in, device, exact, gradients, plain_device,
    policies, runnable, values, vec,
};
use halfseg_amp::{GradScaler, Op, OpClass, Policy, Precision};
use halfseg_amp::{autocast, cast, cast_param, cast_report, current, nn, observe, operands, ops};

/// A recurrent cell: two steps of `tanh(x U + h V)` on the same input.
#[derive(Module, Debug)]
struct RecurrentCell {
    input: Param<Tensor<2>>,
    state: Param<Tensor<2>>,
}

impl RecurrentCell {
    fn run(&self, x: Tensor<2>, input: Tensor<2>, state: Tensor<2>) -> Tensor<2> {
        let driven = x.matmul(input);
        let hidden = driven.clone().tanh();
        (driven + hidden.matmul(state)).tanh()
    }
}

/// PyTorch's lists, written out: no class is taken from the code under test.
#[test]
fn check_22_every_listed_operation_casts_as_pytorch_lists_it() {
    use Op::*;
    let lower = [
        Conv1d,
        Conv2d,
        Conv3d,
        ConvTranspose,
        Matmul,
        Linear,
        Attention,
        Rnn,
        Model,
        PRelu,
    ];
    let f32s = [
        Exp,
        InverseTrig,
        Log,
        Pow,
        Softmax,
        LogSoftmax,
        Softplus,
        Sum,
        Mean,
        Prod,
        Norm,
        LayerNorm,
        GroupNorm,
        Loss,
        Interpolate,
    ];
    let untouched = [BatchNorm, Pool, Embedding, Promote];
    let all = [&lower[..], &f32s, &untouched, &[BinaryCrossEntropy]].concat();
    assert!(Op::ALL.iter().all(|op| all.contains(op)));
    assert_eq!(Op::ALL.len(), all.len());

    let device = device();
    let x = values([3, 5], 1, &device).mul_scalar(7.0);
    for (half, policy) in policies() {
        for input in [x.clone(), x.clone().cast(half)] {
            let check = |op: Op, expected: FloatDType| {
                let manual = exact(input.clone().cast(expected));
                let auto = autocast(&policy, || cast(op, input.clone()));
                assert_eq!(exact(auto), manual, "{op} of {:?}", input.dtype());
                if computes_in(FloatDType::F64) {
                    let wide = x.clone().cast(FloatDType::F64);
                    let auto = autocast(&policy, || cast(op, wide));
                    assert_eq!(auto.dtype(), DType::F64, "{op} must leave f64 alone");
                }
            };
            lower.iter().for_each(|op| check(*op, half));
            f32s.iter().for_each(|op| check(*op, FloatDType::F32));
            let own = FloatDType::from(input.dtype());
            untouched.iter().for_each(|op| check(*op, own));
        }
    }
}

#[test]
fn check_22_convolutions_and_products_run_in_the_compute_dtype() {
    let device = device();
    let class = OpClass::Compute;
    let x3 = values([2, 4, 9], 1, &device);
    let x4 = values([2, 4, 9, 7], 2, &device);
    let x5 = values([1, 4, 5, 4, 3], 3, &device);

    let layer = Conv1dConfig::new(4, 6, 3).init(&device);
    check_layer("conv1d", class, &layer, x3.clone(), nn::conv1d, |l, x| {
        l.forward(x)
    });
    let layer = Conv2dConfig::new([4, 6], [3, 3])
        .with_dilation([2, 2])
        .init(&device);
    check_layer("conv2d", class, &layer, x4.clone(), nn::conv2d, |l, x| {
        l.forward(x)
    });
    let layer = Conv2dConfig::new([4, 6], [1, 1])
        .with_bias(false)
        .init(&device);
    check_layer(
        "conv2d 1x1",
        class,
        &layer,
        x4.clone(),
        nn::conv2d,
        |l, x| l.forward(x),
    );
    let layer = Conv3dConfig::new([4, 2], [2, 2, 2]).init(&device);
    check_layer("conv3d", class, &layer, x5.clone(), nn::conv3d, |l, x| {
        l.forward(x)
    });
    let layer = ConvTranspose1dConfig::new([4, 3], 3).init(&device);
    check_layer(
        "conv_transpose1d",
        class,
        &layer,
        x3,
        nn::conv_transpose1d,
        |l, x| l.forward(x),
    );
    let layer = ConvTranspose2dConfig::new([4, 3], [2, 2]).init(&device);
    check_layer(
        "conv_transpose2d",
        class,
        &layer,
        x4,
        nn::conv_transpose2d,
        |l, x| l.forward(x),
    );
    let layer = ConvTranspose3dConfig::new([4, 3], [2, 2, 2]).init(&device);
    check_layer(
        "conv_transpose3d",
        class,
        &layer,
        x5,
        nn::conv_transpose3d,
        |l, x| l.forward(x),
    );

    let layer = LinearConfig::new(8, 5).init(&device);
    let x = values([3, 8], 4, &device);
    check_layer("linear", class, &layer, x.clone(), nn::linear, |l, x| {
        l.forward(x)
    });

    let layer = PReluConfig::new().with_num_parameters(8).init(&device);
    check_layer("prelu", class, &layer, x.clone(), nn::prelu, |l, x| {
        l.forward(x)
    });

    // Burn's recurrent layers take no half-precision weights; a cell of one's own does.
    let cell = RecurrentCell {
        input: Param::from_tensor(values([8, 4], 6, &device)),
        state: Param::from_tensor(values([4, 4], 7, &device)),
    };
    let auto = |cell: &RecurrentCell, x: Tensor<2>| {
        observe(Op::Rnn, &cell.input, x, |x| {
            let (x, input) = operands(Op::Rnn, x, &cell.input);
            cell.run(x, input, cast_param(Op::Rnn, &cell.state))
        })
    };
    check_layer("rnn", class, &cell, x.clone(), auto, |cell, x| {
        cell.run(x, cell.input.val(), cell.state.val())
    });

    let matmul = |x: Tensor<2>| x.clone().matmul(x.transpose());
    let auto = |x: Tensor<2>| ops::matmul(x.clone(), x.transpose());
    check_unary("matmul", class, x, auto, matmul);

    let x = values([1, 2, 5, 4], 5, &device);
    let options = AttentionModuleOptions::default();
    let manual = |x: Tensor<4>| module::attention(x.clone(), x.clone(), x, None, None, options);
    let auto = |x: Tensor<4>| ops::attention(x.clone(), x.clone(), x, None, options);
    check_unary("attention", class, x, auto, manual);
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "what the wrapper is compared with"
)]
fn check_22_functions_that_need_range_run_in_f32() {
    let device = device();
    let full = OpClass::Full;
    let x = values([5, 7], 1, &device).mul_scalar(3.0);
    let positive = x.clone().abs().add_scalar(0.125);

    check_unary("exp", full, x.clone(), ops::exp, |x| x.exp());
    check_unary("sinh", full, x.clone(), ops::sinh, |x| x.sinh());
    check_unary("cosh", full, x.clone(), ops::cosh, |x| x.cosh());
    check_unary("tan", full, x.clone(), ops::tan, |x| x.tan());
    let below_one = x.clone().div_scalar(4.0);
    check_unary("acos", full, below_one.clone(), ops::acos, |x| x.acos());
    check_unary("asin", full, below_one, ops::asin, |x| x.asin());
    check_unary("log", full, positive.clone(), ops::log, |x| x.log());
    check_unary("log1p", full, positive.clone(), ops::log1p, |x| x.log1p());
    let auto = |x: Tensor<2>| ops::powf(x.clone(), x);
    check_unary("powf", full, positive.clone(), auto, |x| x.clone().powf(x));
    let auto = |x: Tensor<2>| ops::powf_scalar(x, 2.5);
    check_unary("powf_scalar", full, positive.clone(), auto, |x| {
        x.powf_scalar(2.5)
    });
    check_unary("recip", full, positive, ops::recip, |x| x.recip());
    let auto = |x: Tensor<2>| ops::softmax(x, 1);
    check_unary("softmax", full, x.clone(), auto, |x| {
        activation::softmax(x, 1)
    });
    let auto = |x: Tensor<2>| ops::softmin(x, 1);
    check_unary("softmin", full, x.clone(), auto, |x| {
        activation::softmin(x, 1)
    });
    let auto = |x: Tensor<2>| ops::log_softmax(x, 1);
    check_unary("log_softmax", full, x.clone(), auto, |x| {
        activation::log_softmax(x, 1)
    });
    let auto = |x: Tensor<2>| ops::softplus(x, 1.0);
    check_unary("softplus", full, x.clone(), auto, |x| {
        activation::softplus(x, 1.0)
    });
    check_unary("sum", full, x.clone(), ops::sum, |x| x.sum());
    check_unary(
        "sum_dim",
        full,
        x.clone(),
        |x| ops::sum_dim(x, 0),
        |x| x.sum_dim(0),
    );
    check_unary(
        "cumsum",
        full,
        x.clone(),
        |x| ops::cumsum(x, 1),
        |x| x.cumsum(1),
    );
    check_unary("mean", full, x.clone(), ops::mean, |x| x.mean());
    check_unary(
        "mean_dim",
        full,
        x.clone(),
        |x| ops::mean_dim(x, 1),
        |x| x.mean_dim(1),
    );
    check_unary("prod", full, x.clone(), ops::prod, |x| x.prod());
    check_unary(
        "prod_dim",
        full,
        x.clone(),
        |x| ops::prod_dim(x, 1),
        |x| x.prod_dim(1),
    );
    check_unary(
        "cumprod",
        full,
        x.clone(),
        |x| ops::cumprod(x, 1),
        |x| x.cumprod(1),
    );
    check_unary("norm", full, x.clone(), ops::norm, |x| {
        x.clone().mul(x).sum().sqrt()
    });
    check_unary("square", full, x.clone(), ops::square, |x| x.square());
    let auto = |x: Tensor<2>| ops::powi_scalar(x, 3);
    check_unary("powi_scalar", full, x.clone(), auto, |x| x.powi_scalar(3));
    check_unary("var", full, x.clone(), |x| ops::var(x, 1), |x| x.var(1));
    type Norm = fn(Tensor<2>) -> Tensor<2>;
    let norms: [(f32, Norm); 4] = [
        (1.0, |x| x.abs().sum_dim(1)),
        (2.0, |x| x.clone().mul(x).sum_dim(1).sqrt()),
        (3.0, |x| {
            x.abs().powf_scalar(3.0).sum_dim(1).powf_scalar(1.0 / 3.0)
        }),
        (f32::INFINITY, |x| x.abs().max_dim(1)),
    ];
    for (p, manual) in norms {
        let auto = |x: Tensor<2>| ops::vector_norm(x, p, 1);
        check_unary("vector_norm", full, x.clone(), auto, manual);
    }
    let other = values([5, 7], 6, &device);
    let auto = |x: Tensor<2>| ops::cosine_similarity(x, other.clone(), 1, 1e-8);
    check_unary("cosine_similarity", full, x.clone(), auto, |x| {
        let norm = |x: &Tensor<2>| x.clone().mul(x.clone()).sum_dim(1).sqrt();
        let norms = norm(&x).mul(norm(&other));
        x.mul(other.clone()).sum_dim(1).div(norms)
    });

    let layer = LayerNormConfig::new(7).init(&device);
    check_layer("layer_norm", full, &layer, x, nn::layer_norm, |l, x| {
        l.forward(x)
    });
    let x = values([2, 4, 5], 2, &device);
    let layer = GroupNormConfig::new(2, 4).init(&device);
    check_layer(
        "group_norm",
        full,
        &layer,
        x.clone(),
        nn::group_norm,
        |l, x| l.forward(x),
    );
    let layer = InstanceNormConfig::new(4).init(&device);
    check_layer(
        "instance_norm",
        full,
        &layer,
        x,
        nn::instance_norm,
        |l, x| l.forward(x),
    );

    let x = values([1, 3, 4, 5], 3, &device);
    let options = InterpolateOptions::new(InterpolateMode::Bilinear)
        .with_output_size([7, 9])
        .with_align_corners(false);
    let auto = |x: Tensor<4>| ops::interpolate(x, options.clone());
    check_unary("interpolate", full, x, auto, |x| {
        module::interpolate(x, options.clone())
    });
}

#[test]
fn check_22_losses_run_in_f32_and_one_is_an_error() {
    let device = device();
    let full = OpClass::Full;
    let x = values([6, 4], 1, &device).mul_scalar(5.0);
    let target = values([6, 4], 2, &device).abs();
    let classes = Tensor::<1, Int>::from_ints([0, 3, 1, 1, 2, 0], &device);

    let auto = |x: Tensor<2>| ops::cross_entropy(x, classes.clone());
    check_unary("cross_entropy", full, x.clone(), auto, |x| {
        let log = activation::log_softmax(x, 1);
        log.gather(1, classes.clone().unsqueeze_dim(1)).mean().neg()
    });
    let loss = CrossEntropyLossConfig::new().init(&device);
    let auto = |x: Tensor<2>| nn::cross_entropy(&loss, x, classes.clone());
    check_unary("CrossEntropyLoss", full, x.clone(), auto, |x| {
        loss.forward(x, classes.clone())
    });
    let auto = |x: Tensor<2>| ops::mse(x, target.clone());
    check_unary("mse", full, x.clone(), auto, |x| {
        x.sub(target.clone()).square().mean()
    });
    let huber = HuberLossConfig::new(0.5).init();
    let forward = |x, target| huber.forward(x, target, Reduction::Mean);
    let auto = |x: Tensor<2>| ops::loss("huber", x, target.clone(), forward);
    check_unary("huber", full, x.clone(), auto, |x| {
        forward(x, target.clone())
    });
    let auto = |x: Tensor<2>| ops::binary_cross_entropy_with_logits(x, target.clone());
    check_unary(
        "binary_cross_entropy_with_logits",
        full,
        x.clone(),
        auto,
        |x| {
            let tail = x.clone().abs().neg().exp().log1p();
            x.clone()
                .clamp_min(0.0)
                .sub(x.mul(target.clone()))
                .add(tail)
                .mean()
        },
    );
    // The two forms of binary cross-entropy agree, to rounding.
    let logits = vec(ops::binary_cross_entropy_with_logits(
        x.clone(),
        target.clone(),
    ))[0];
    let probabilities = activation::sigmoid(x);
    let plain = vec(ops::binary_cross_entropy(
        probabilities.clone(),
        target.clone(),
    ))[0];
    assert!((logits - plain).abs() < 1e-5, "{logits} {plain}");

    let rejected = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        autocast(&Policy::f16(), || {
            ops::binary_cross_entropy(probabilities, target)
        })
    }));
    let message = *rejected.unwrap_err().downcast::<String>().unwrap();
    assert!(
        message.contains("binary_cross_entropy on probabilities is unsafe"),
        "{message}"
    );
    assert!(!current().is_enabled());
}

#[test]
fn check_22_batch_norm_keeps_the_dtype_of_its_input() {
    let device = device();
    let x = values([2, 3, 4, 5], 1, &device).mul_scalar(9.0);
    for (half, policy) in policies() {
        for x in [x.clone(), x.clone().cast(half)] {
            let auto = BatchNormConfig::new(3).init(&device);
            let manual = BatchNormConfig::new(3).init(&device);
            let dtype = FloatDType::from(x.dtype());
            let expected = manual.forward(x.clone().cast(FloatDType::F32)).cast(dtype);
            let found = autocast(&policy, || nn::batch_norm(&auto, x));
            assert_eq!(exact(found), exact(expected));
            for (found, expected) in [
                (
                    auto.running_mean.value_sync(),
                    manual.running_mean.value_sync(),
                ),
                (
                    auto.running_var.value_sync(),
                    manual.running_var.value_sync(),
                ),
            ] {
                assert_eq!(found.dtype(), DType::F32);
                assert_eq!(exact(found), exact(expected));
            }
        }
    }
    // Activations and pooling are on no list: their input decides.
    let x = x.cast(FloatDType::F16);
    autocast(&Policy::f16(), || {
        assert_eq!(activation::relu(x.clone()).dtype(), DType::F16);
        assert_eq!(cast(Op::Pool, x).dtype(), DType::F16);
    });
}

#[test]
fn check_23_mixed_operands_are_promoted() {
    let device = device();
    let wide = values([2, 3], 1, &device);
    let f16 = values([2, 3], 2, &device).cast(FloatDType::F16);
    let of = |seed, dtype| computes_in(dtype).then(|| values([2, 3], seed, &device).cast(dtype));
    let (bf16, f64) = (of(3, FloatDType::BF16), of(4, FloatDType::F64));
    let up = |x: &Tensor<2>| x.clone().cast(FloatDType::F32);
    // With and without a scope: promotion is no matter of policy.
    for policy in runnable([Policy::disabled(), Policy::f16(), Policy::bf16()]) {
        autocast(&policy, || {
            for half in std::iter::once(&f16).chain(&bf16) {
                for (a, b) in [(half, &wide), (&wide, half)] {
                    let sum = halfseg_amp::add(a.clone(), b.clone());
                    assert_eq!(exact(sum), exact(up(a).add(up(b))));
                    let difference = halfseg_amp::sub(a.clone(), b.clone());
                    assert_eq!(exact(difference), exact(up(a).sub(up(b))));
                    let product = halfseg_amp::mul(a.clone(), b.clone());
                    assert_eq!(exact(product), exact(up(a).mul(up(b))));
                    let quotient = halfseg_amp::div(a.clone(), b.clone());
                    assert_eq!(exact(quotient), exact(up(a).div(up(b))));
                    let cat = halfseg_amp::cat(vec![a.clone(), b.clone()], 1);
                    assert_eq!(exact(cat), exact(Tensor::cat(vec![up(a), up(b)], 1)));
                    let stack = halfseg_amp::stack::<2, 3>(vec![a.clone(), b.clone()], 0);
                    assert_eq!(
                        exact(stack),
                        exact(Tensor::stack::<3>(vec![up(a), up(b)], 0))
                    );
                    let angle = halfseg_amp::atan2(a.clone(), b.clone());
                    assert_eq!(exact(angle), exact(up(a).atan2(up(b))));
                    let cross = halfseg_amp::cross(a.clone(), b.clone(), 1);
                    assert_eq!(exact(cross), exact(up(a).cross(up(b), 1)));
                    let row = |x: &Tensor<2>| x.clone().slice([0..1, 0..3]).reshape([3]);
                    let dot = halfseg_amp::dot(row(a), row(b));
                    assert_eq!(exact(dot), exact(row(&up(a)).dot(row(&up(b)))));
                    let places = Tensor::<2, Int>::from_ints([[0, 1, 2], [2, 2, 1]], &device);
                    let update = IndexingUpdateOp::Add;
                    let add = halfseg_amp::scatter(a.clone(), 1, places.clone(), b.clone(), update);
                    assert_eq!(exact(add), exact(up(a).scatter(1, places, up(b), update)));
                    let map = |x: &Tensor<2>| x.clone().reshape([1, 1, 2, 3]);
                    let grid = |x: &Tensor<2>| x.clone().reshape([1, 3, 1, 2]);
                    let options = GridSampleOptions::default;
                    let sample = halfseg_amp::grid_sample_2d(map(a), grid(b), options());
                    let expected = map(&up(a)).grid_sample_2d(grid(&up(b)), options());
                    assert_eq!(exact(sample), exact(expected));
                }
            }
            assert_eq!(
                halfseg_amp::add(f16.clone(), f16.clone()).dtype(),
                DType::F16
            );
            // Of two halves with different trade-offs only f32 holds both.
            if let Some(bf16) = &bf16 {
                assert_eq!(
                    halfseg_amp::add(f16.clone(), bf16.clone()).dtype(),
                    DType::F32
                );
            }
            // Casts leave f64 alone.
            if let Some(f64) = &f64 {
                assert_eq!(
                    halfseg_amp::mul(f64.clone(), f16.clone()).dtype(),
                    DType::F64
                );
                assert_eq!(cast(Op::Conv2d, f64.clone()).dtype(), DType::F64);
                assert_eq!(cast(Op::Softmax, f64.clone()).dtype(), DType::F64);
                let product = ops::matmul(f64.clone(), f16.clone().transpose());
                assert_eq!(product.dtype(), DType::F64);
            }
        });
    }
    // Integers are another type: `cast` does not take them, and losses pass them on.
    let classes = Tensor::<1, Int>::from_ints([1, 2], &device);
    let dtype = classes.dtype();
    let loss = autocast(&Policy::f16(), || {
        ops::cross_entropy(wide.clone(), classes.clone())
    });
    assert_eq!((classes.dtype(), loss.dtype()), (dtype, DType::F32));

    // A disabled scope inside an f16 scope meets f16 inputs with f32 weights.
    let layer = LinearConfig::new(3, 2).init(&device);
    let expected = layer.forward(up(&f16));
    let found = autocast(&Policy::disabled(), || nn::linear(&layer, f16.clone()));
    assert_eq!(exact(found), exact(expected));
}

#[test]
fn check_24_scopes_nest_unwind_and_stay_in_their_thread() {
    autocast(&Policy::f16(), || {
        assert_eq!(current(), Policy::f16());
        autocast(&Policy::disabled(), || {
            assert_eq!(current(), Policy::disabled());
            autocast(&Policy::bf16(), || assert_eq!(current(), Policy::bf16()));
            assert_eq!(current(), Policy::disabled());
        });
        assert_eq!(current(), Policy::f16());

        let panicked = std::panic::catch_unwind(|| {
            autocast(&Policy::disabled(), || {
                autocast(&Policy::bf16(), || panic!("on purpose"))
            })
        });
        assert!(panicked.is_err());
        assert_eq!(current(), Policy::f16());

        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(current(), Policy::disabled());
                autocast(&Policy::bf16(), || assert_eq!(current(), Policy::bf16()));
            });
        });
        assert_eq!(current(), Policy::f16());
    });
    assert_eq!(current(), Policy::disabled());
}

#[test]
fn check_25_weights_are_cast_once_per_step() {
    let device = device();
    let x = values([2, 4], 1, &device);
    let mut optimizer = SgdConfig::new().init();
    let mut scaler = GradScaler::mmcv_static();
    let layer = LinearConfig::new(4, 4).with_bias(false).init(&device);
    let thrice = |layer: &Linear| {
        let y = nn::linear(layer, nn::linear(layer, nn::linear(layer, x.clone())));
        ops::sum(y)
    };
    // The same network with the casts made by hand, the weight's once.
    let control = |layer: &Linear| {
        let weight = layer.weight.val().cast(FloatDType::F16);
        let x = x.clone().cast(FloatDType::F16);
        x.matmul(weight.clone())
            .matmul(weight.clone())
            .matmul(weight)
            .cast(FloatDType::F32)
            .sum()
    };
    // One scope around several steps: the optimizer step alone must renew the cast.
    let layer = autocast(&Policy::f16(), || {
        let mut layer = layer;
        for _ in 0..3 {
            scaler.begin(&layer);
            let (loss, report) = cast_report(|| thrice(&layer));
            // The weight, the input, and the output on its way into the sum.
            assert_eq!((report.casts, report.cache_hits), (3, 2));
            assert_eq!(report.bytes, 2 * 16 + 2 * 8 + 4 * 8);
            // The value is that of the newest weight.
            assert_eq!(exact(loss.clone()), exact(control(&layer)));

            let grads = control(&layer).mul_scalar(512.0).backward();
            let expected = layer.weight.val().grad(&grads).unwrap().div_scalar(512.0);
            let grads = scaler.scale(loss).backward(&layer);
            let grads = scaler.unscale(grads);
            // All three uses reach the parameter.
            let mut found = None;
            let (updated, outcome) = scaler.step_with(layer, grads, |layer, grads| {
                found = grads.get::<2>(layer.weight.id);
                optimizer.step(0.1, layer, grads)
            });
            assert!(outcome.stepped());
            assert_eq!(exact(found.unwrap()), exact(expected));
            layer = updated;
        }
        layer
    });

    // A cast without gradients and one with gradients, in either order.
    autocast(&Policy::f16(), || {
        for first_without in [true, false] {
            let frozen = layer.clone().no_grad();
            if first_without {
                let weight = cast_param(Op::Linear, &frozen.weight);
                assert!(!weight.is_tracked());
            }
            let (loss, report) = cast_report(|| thrice(&layer));
            assert_eq!(report.cache_hits, 2);
            let weight = cast_param(Op::Linear, &frozen.weight);
            assert!(!weight.is_tracked());
            let weight = cast_param(Op::Linear, &layer.valid().weight);
            assert!(!weight.is_autodiff());
            let grads = loss.backward();
            assert!(layer.weight.val().grad(&grads).is_some());
            halfseg_amp::invalidate_casts();
        }
    });

    // A new scope is a new life: nothing is kept outside.
    let (_, report) = cast_report(|| autocast(&Policy::f16(), || thrice(&layer)));
    assert_eq!((report.casts, report.cache_hits), (3, 2));
}

#[test]
fn casts_go_with_their_own_graph_whichever_thread_consumes_it() {
    let device = device();
    let (mine, other) = (Weights::new([1.0], &device), Weights::new([2.0], &device));
    let loss = |model: &Weights| {
        cast_param(Op::Linear, &model.weight)
            .cast(FloatDType::F32)
            .sum()
    };
    // A whole step of a model in a thread of its own.
    let step = |model: Weights, loss: Tensor<1>| {
        std::thread::scope(|scope| {
            let step = scope.spawn(|| {
                let mut scaler = GradScaler::mmcv_static();
                scaler.begin(&model);
                let grads = scaler.scale(loss).backward(&model);
                let grads = scaler.unscale(grads);
                scaler.step_with(model, grads, |model, _| model).0
            });
            step.join().expect("the step succeeds")
        })
    };
    autocast(&Policy::f16(), || {
        let (value, report) = cast_report(|| loss(&mine));
        assert_eq!((report.casts, report.cache_hits), (1, 0));
        // A step of another model leaves the cast alone, here and in its thread.
        let elsewhere = autocast(&Policy::f16(), || loss(&other));
        let other = step(other, elsewhere);
        let (again, report) = cast_report(|| loss(&mine));
        assert_eq!((report.casts, report.cache_hits), (0, 1));
        // A step of this model does not, though its value stays: the graph is consumed.
        let mine = step(mine, value + again);
        let (value, report) = cast_report(|| loss(&mine));
        assert_eq!((report.casts, report.cache_hits), (1, 0));
        assert!(mine.weight.val().grad(&value.backward()).is_some());
        let (_, report) = cast_report(|| loss(&other));
        assert_eq!((report.casts, report.cache_hits), (1, 0));

        // Burn's own `backward` is not seen; then the call that forgets is the user's.
        halfseg_amp::invalidate_casts();
        let (value, report) = cast_report(|| loss(&mine));
        assert_eq!((report.casts, report.cache_hits), (1, 0));
        assert!(mine.weight.val().grad(&value.backward()).is_some());
    });
}

#[test]
fn a_plain_optimizer_step_renews_the_casts_too() {
    let device = device();
    let mut optimizer = SgdConfig::new().init();
    let model = Weights::new([1.0], &device);
    autocast(&Policy::f16(), || {
        let before = cast_param(Op::Linear, &model.weight);
        let mut grads = GradientsParams::new();
        grads.register(
            model.weight.id,
            Tensor::<1>::ones([1], &device.clone().inner()),
        );
        let model = optimizer.step(0.5, model.clone(), grads);
        let after = cast_param(Op::Linear, &model.weight);
        assert_eq!(vec(before.cast(FloatDType::F32)), [1.0]);
        assert_eq!(vec(after.cast(FloatDType::F32)), [0.5]);
    });
}

#[test]
fn reparameterized_weights_are_never_mixed_up_with_their_base() {
    let device = device();
    let base = LinearConfig::new(4, 4).with_bias(false).init(&device);
    let adapted = base.clone().apply_lora(Lora::new(2, 4.0));
    let x = values([2, 4], 1, &device);
    autocast(&Policy::f16(), || {
        let plain = nn::linear(&base, x.clone());
        assert_eq!(plain.dtype(), DType::F16);
        let weight = adapted.weight.val().cast(FloatDType::F16);
        let expected = x.clone().cast(FloatDType::F16).matmul(weight);
        let (found, report) = cast_report(|| nn::linear(&adapted, x.clone()));
        assert_eq!(report.cache_hits, 0);
        assert_eq!(exact(found), exact(expected));
    });
}

#[test]
fn check_26_parameter_gradients_are_f32() {
    for policy in runnable([Policy::f16(), Policy::bf16(), Policy::disabled()]) {
        let model = Net::new(&device());
        let mut scaler = GradScaler::mmcv_static();
        scaler.begin(&model);
        let loss = autocast(&policy, || model.loss(1));
        assert_eq!(loss.dtype(), DType::F32);
        let grads = scaler.scale(loss).backward(&model);
        // All but `spare`, which the loss does not use.
        assert_eq!(grads.len(), 6);
        let grads = scaler.unscale(grads);
        let grads = gradients(&mut scaler, model.clone(), grads);
        assert_eq!(grads.of(&model.conv.weight).dtype(), DType::F32);
        assert_eq!(
            grads.of(model.conv.bias.as_ref().unwrap()).dtype(),
            DType::F32
        );
        assert_eq!(grads.of(&model.bn.gamma).dtype(), DType::F32);
        assert_eq!(grads.of(&model.bn.beta).dtype(), DType::F32);
        assert_eq!(grads.of(&model.head.weight).dtype(), DType::F32);
        assert_eq!(
            grads.of(model.head.bias.as_ref().unwrap()).dtype(),
            DType::F32
        );
    }
}

#[test]
fn quantized_weights_are_left_to_burn() {
    use burn::module::Quantizer;
    use burn::tensor::quantization::{Calibration, QuantScheme, QuantValue};
    let device = plain_device();
    let layer = LinearConfig::new(32, 8).with_bias(false).init(&device);
    let scheme = QuantScheme::default().with_value(QuantValue::Q8S);
    let mut quantizer = Quantizer::new(Calibration::MinMax, scheme);
    let quantized = layer.quantize_weights(&mut quantizer);
    assert!(matches!(quantized.weight.dtype(), DType::QFloat(_)));
    let x = values([3, 32], 1, &device);
    let expected = exact(quantized.forward(x.clone()));
    assert_eq!(exact(nn::linear(&quantized, x.clone())), expected);
    for (half, policy) in policies() {
        let found = autocast(&policy, || nn::linear(&quantized, x.clone()));
        assert_eq!(exact(found), expected);
        // What comes in half precision is widened.
        let low = x.clone().cast(half);
        let found = autocast(&policy, || nn::linear(&quantized, low.clone()));
        assert_eq!(
            exact(found),
            exact(quantized.forward(low.cast(FloatDType::F32)))
        );
    }
    let policy = Policy::bf16().with_param(Precision::Bf16);
    let cast = policy.cast_params(quantized);
    assert!(matches!(cast.weight.dtype(), DType::QFloat(_)));
}
