//! The differentiable normalisation against a plain f64 reference, on the CPU.

mod guard_pages;
mod norm_case;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device, Tensor};
use halfseg_kernels::{Activation, BatchParts, batch_norm_train};
use norm_case::{Case, EPSILON, Results, norm, rounding, values};
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
fn running_statistics_move_as_pytorchs_do() {
    let mut rng = StdRng::seed_from_u64(13);
    for device in [Device::flex(), Device::flex().autodiff()] {
        for skip in [false, true] {
            let case = Case::draw(&mut rng, [2, 5, 7, 3], DType::BF16, skip, true);
            case.check_moving(&device);
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
fn parts_that_are_alike_give_what_one_gives() {
    let mut rng = StdRng::seed_from_u64(17);
    for dtype in DTYPES {
        for (skip, relu) in [(false, false), (false, true), (true, false), (true, true)] {
            let case = Case::draw(&mut rng, [2, 8, 9, 6], dtype, skip, relu);
            case.check_parts_that_are_alike(&Device::flex().autodiff());
        }
    }
}

/// One of two parts, on a thread of its own.
struct Half {
    rank: usize,
    to: Sender<Vec<f32>>,
    from: Mutex<Receiver<Vec<f32>>>,
}

impl Half {
    fn both() -> [Arc<Self>; 2] {
        let ((to_second, from_first), (to_first, from_second)) = (channel(), channel());
        let half = |rank, to, from| {
            let from = Mutex::new(from);
            Arc::new(Self { rank, to, from })
        };
        [
            half(0, to_second, from_second),
            half(1, to_first, from_first),
        ]
    }
}

impl BatchParts for Half {
    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        let data = own.clone().into_data();
        self.to.send(data.try_to_vec().unwrap()).unwrap();
        let other = self.from.lock().unwrap().recv().unwrap();
        let other = Tensor::from_floats(other.as_slice(), &own.device());
        match self.rank {
            0 => vec![own, other],
            _ => vec![other, own],
        }
    }

    fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        let both = self.gather(own).into_iter();
        both.reduce(|a, b| a + b).unwrap()
    }
}

#[test]
fn two_parts_that_differ_give_what_the_whole_batch_gives() {
    let mut rng = StdRng::seed_from_u64(18);
    for dtype in DTYPES {
        for (skip, relu) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut whole = Case::draw(&mut rng, [4, 5, 7, 6], dtype, skip, relu);
            // Means that are far apart.
            let half = whole.x.len() / 2;
            whole.x[..half].iter_mut().for_each(|x| *x += 8.0);
            whole.x = norm_case::rounded(whole.x, dtype);
            let part = |rank: usize| {
                let own = |values: &[f32]| values[rank * half..][..half].to_vec();
                Case {
                    shape: [2, 5, 7, 6],
                    x: own(&whole.x),
                    skip: whole.skip.as_deref().map(own),
                    gradient: own(&whole.gradient),
                    ..whole.clone()
                }
            };
            let found = std::thread::scope(|threads| {
                let run = |half: Arc<Half>| {
                    let part = part(half.rank);
                    threads.spawn(move || part.run_shared(&Device::flex().autodiff(), half))
                };
                Half::both().map(run).map(|thread| thread.join().unwrap())
            });
            let [first, second] = &found;
            assert_eq!(
                [&first.mean, &first.variance],
                [&second.mean, &second.variance]
            );
            let joined =
                |field: fn(&Results) -> &Vec<f64>| [&field(first)[..], field(second)].concat();
            // The parameters' gradients are those of each part.
            let added = |field: fn(&Results) -> &Vec<f64>| {
                let pairs = field(first).iter().zip(field(second));
                pairs.map(|(a, b)| a + b).collect()
            };
            let joined = Results {
                output: joined(|r| &r.output),
                x: joined(|r| &r.x),
                skip: joined(|r| &r.skip),
                gamma: added(|r| &r.gamma),
                beta: added(|r| &r.beta),
                mean: first.mean.clone(),
                variance: first.variance.clone(),
            };
            let expected = whole.run(&Device::flex().autodiff());
            joined.check_close(&expected, 5e-6 + rounding(dtype), &format!("{whole:?}"));
        }
    }
}

#[test]
#[should_panic(expected = "gradient checkpointing")]
fn parts_are_refused_where_no_gradient_can_be_recorded() {
    let case = Case::draw(
        &mut StdRng::seed_from_u64(19),
        [1, 2, 3, 3],
        DType::F32,
        false,
        true,
    );
    let device = Device::flex().autodiff().gradient_checkpointing();
    let [first, _] = Half::both();
    case.run_shared(&device, first);
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
