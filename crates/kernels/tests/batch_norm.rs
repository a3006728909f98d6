//! The differentiable normalisation against a plain f64 reference, on the CPU.

mod norm_case;

use burn::tensor::{DType, Device, Tensor};
use halfseg_kernels::{Activation, batch_norm_train};
use norm_case::{Case, EPSILON, norm, values};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Sums are f64.
const MEAN_FLOOR: f64 = 0.1;
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn output_statistics_and_all_gradients_equal_the_f64_reference() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..25 {
        let shape = [
            rng.random_range(1..=3),
            rng.random_range(1..=9),
            rng.random_range(1..=17),
            rng.random_range(2..=17),
        ];
        for dtype in DTYPES {
            for (skip, relu) in [(false, false), (false, true), (true, false), (true, true)] {
                let case = Case::draw(&mut rng, shape, dtype, skip, relu);
                case.check(&Device::flex().autodiff(), MEAN_FLOOR);
            }
        }
    }
}

#[test]
fn planes_longer_than_a_block_equal_the_reference() {
    let mut rng = StdRng::seed_from_u64(8);
    for dtype in DTYPES {
        for skip in [false, true] {
            let case = Case::draw(&mut rng, [2, 5, 37, 53], dtype, skip, true);
            case.check(&Device::flex().autodiff(), MEAN_FLOOR);
        }
    }
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let mut rng = StdRng::seed_from_u64(9);
    for skip in [false, true] {
        let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F16, skip, true);
        case.check(
            &Device::flex().autodiff().gradient_checkpointing(),
            MEAN_FLOOR,
        );
    }
}

#[test]
fn a_recomputed_input_gives_the_same_gradients() {
    let mut rng = StdRng::seed_from_u64(10);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F32, true, true);
    let run = |device: Device| {
        let leaf = case.map(&case.x, &device).require_grad();
        // Elementwise, so that checkpointing computes it twice; its gradient has two parents.
        let x = leaf.clone() * 2.0 + leaf.clone().exp();
        let parameter = |values: &[f32]| Tensor::<1>::from_floats(values, &device).require_grad();
        let (gamma, beta) = (parameter(&case.gamma), parameter(&case.beta));
        let skip = Some(leaf.clone().tanh());
        let y = batch_norm_train(x, gamma, beta, EPSILON, skip, Activation::Relu).output;
        let y = y.clone() * y.tanh();
        values(leaf.grad(&y.sum().backward()).unwrap())
    };
    let plain = run(Device::flex().autodiff());
    assert_eq!(
        plain,
        run(Device::flex().autodiff().gradient_checkpointing())
    );
    assert!(norm(plain.into_iter()) > 1.0);
}

#[test]
fn a_mean_of_a_thousand_deviations_costs_no_accuracy() {
    let mut rng = StdRng::seed_from_u64(11);
    for relu in [false, true] {
        let mut case = Case::draw(&mut rng, [2, 4, 33, 65], DType::F32, false, relu);
        for x in &mut case.x {
            *x = 1000.3 + rng.random_range(-1.7f32..1.7);
        }
        case.check(&Device::flex().autodiff(), MEAN_FLOOR);
    }
}

#[test]
fn f16_deviations_above_255_do_not_overflow() {
    let mut rng = StdRng::seed_from_u64(12);
    for skip in [false, true] {
        let case = Case::with_wide_deviations(&mut rng, skip);
        case.check(&Device::flex().autodiff(), MEAN_FLOOR);
    }
}

#[test]
fn gradients_reach_whichever_inputs_want_them() {
    let mut rng = StdRng::seed_from_u64(13);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::BF16, true, true);
    let all = case.run(&Device::flex().autodiff());
    for device in [
        Device::flex().autodiff(),
        Device::flex().autodiff().gradient_checkpointing(),
    ] {
        for wanted in 0..16 {
            case.check_wanted(wanted, &device, &all);
        }
    }
}

#[test]
fn a_device_without_autodiff_gives_the_same_output() {
    let mut rng = StdRng::seed_from_u64(14);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F16, true, true);
    let expected = case.run(&Device::flex().autodiff());
    let device = Device::flex();
    let result = batch_norm_train(
        case.map(&case.x, &device),
        Tensor::from_floats(case.gamma.as_slice(), &device),
        Tensor::from_floats(case.beta.as_slice(), &device),
        EPSILON,
        Some(case.map(case.skip.as_ref().unwrap(), &device)),
        Activation::Relu,
    );
    assert_eq!(values(result.output), expected.output);
    assert_eq!(values(result.mean), expected.mean);
    assert_eq!(values(result.variance), expected.variance);
}

#[test]
fn a_strided_map_and_gradient_are_read_in_order() {
    let mut rng = StdRng::seed_from_u64(15);
    let case = Case::draw(&mut rng, [2, 3, 5, 7], DType::F32, false, true);
    let expected = case.reference();
    let device = Device::flex().autodiff();
    // Columns before rows in memory.
    let x = case.map(&case.x, &device).swap_dims(2, 3);
    let x = Tensor::<4>::from_data(x.into_data(), &device).require_grad();
    let gamma = Tensor::from_floats(case.gamma.as_slice(), &device);
    let beta = Tensor::from_floats(case.beta.as_slice(), &device);
    let view = x.clone().swap_dims(2, 3);
    let y = batch_norm_train(view, gamma, beta, EPSILON, None, Activation::Relu).output;
    let weights = case.map(&case.gradient, &device).swap_dims(2, 3);
    let grads = (y.clone().swap_dims(2, 3) * weights).sum().backward();
    let gradient = values(x.grad(&grads).unwrap().swap_dims(2, 3));
    for (found, expected) in [(values(y), expected.output), (gradient, expected.x)] {
        let error = norm(found.iter().zip(&expected).map(|(f, e)| f - e));
        assert!(error <= 1e-5 * norm(expected.iter().copied()));
    }
}

#[test]
fn nan_and_infinity_reach_the_output_through_a_relu() {
    for bad in [f32::NAN, f32::INFINITY] {
        for dtype in DTYPES {
            let mut rng = StdRng::seed_from_u64(16);
            let mut case = Case::draw(&mut rng, [1, 2, 4, 5], dtype, false, true);
            case.x[3] = bad;
            let found = case.run(&Device::flex().autodiff());
            let [first, second] = [&found.output[..20], &found.output[20..]];
            assert!(first.iter().all(|y| y.is_nan()), "{dtype:?} {bad}");
            assert!(second.iter().all(|y| y.is_finite()), "{dtype:?} {bad}");
            assert!(
                found.x[..20].iter().all(|g| !g.is_finite()),
                "{dtype:?} {bad}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "gamma of a batch normalisation must be F32 [3]")]
fn a_scale_in_half_precision_is_refused() {
    let device = Device::flex();
    let x = Tensor::<4>::ones([1, 3, 2, 2], &device);
    let gamma = Tensor::<1>::ones([3], &device);
    let beta = gamma.clone();
    batch_norm_train(
        x,
        gamma.cast(DType::F16),
        beta,
        EPSILON,
        None,
        Activation::None,
    );
}
