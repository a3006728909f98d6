//! The step of gradient descent against its definition.

mod guard_pages;

use burn::tensor::{Device, Distribution, Tensor};
use halfseg_kernels::{SgdStep, sgd_step};

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().try_to_vec().unwrap()
}

#[test]
fn three_steps_equal_the_composed_ones_bit_for_bit() {
    let device = Device::flex();
    let normal = Distribution::Normal(0.0, 1.0);
    for weight_decay in [0.0, 5e-4] {
        let step = SgdStep {
            lr: 0.01,
            momentum: 0.9,
            weight_decay,
        };
        // More than one task.
        let mut value = Tensor::<3>::random([7, 90, 111], normal, &device);
        let (mut expected, mut velocity, mut expected_velocity) = (value.clone(), None, None);
        for _ in 0..3 {
            let gradient = Tensor::random([7, 90, 111], normal, &device);
            let mut change = gradient.clone();
            if weight_decay != 0.0 {
                change = expected.clone().mul_scalar(weight_decay).add(change);
            }
            if let Some(velocity) = expected_velocity {
                change = Tensor::mul_scalar(velocity, step.momentum).add(change);
            }
            expected = expected - change.clone().mul_scalar(step.lr);
            expected_velocity = Some(change.clone());
            let kept = (value.clone(), values(&value));
            let [moved, change_found] = sgd_step(value, gradient, velocity, step);
            assert_eq!(
                values(&kept.0),
                kept.1,
                "a tensor that is held elsewhere stays"
            );
            assert_eq!(values(&moved), values(&expected));
            assert_eq!(values(&change_found), values(&change));
            (value, velocity) = (moved, Some(change_found));
        }
    }
}

#[test]
fn a_view_of_a_larger_tensor_is_a_parameter_too() {
    let device = Device::flex();
    let whole = Tensor::<2>::random([6, 40], Distribution::Normal(0.0, 1.0), &device);
    let (value, gradient) = (whole.clone().narrow(0, 2, 3), whole.clone().narrow(0, 3, 3));
    let step = SgdStep {
        lr: 0.5,
        momentum: 0.9,
        weight_decay: 0.0,
    };
    let [moved, velocity] = sgd_step(value.clone(), gradient.clone(), None, step);
    assert_eq!(values(&velocity), values(&gradient));
    assert_eq!(values(&moved), values(&(value - gradient.mul_scalar(0.5))));
}

#[test]
#[should_panic(expected = "one shape")]
fn other_shapes_are_refused() {
    let device = Device::flex();
    let step = SgdStep {
        lr: 0.5,
        momentum: 0.9,
        weight_decay: 0.0,
    };
    sgd_step(
        Tensor::<1>::zeros([4], &device),
        Tensor::<1>::zeros([5], &device),
        None,
        step,
    );
}
