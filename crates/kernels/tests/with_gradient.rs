//! Operations with gradients of their own, beside Burn's.

mod guard_pages;

use burn::tensor::{Device, Tensor};
use halfseg_kernels::{AnyTensor, takes_gradients, with_gradient};

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// `a * b`, of which only what is asked for is computed with tensors.
fn product(a: Tensor<1>, b: Tensor<2>) -> Tensor<2> {
    let (x, y) = (a.clone().inner().unsqueeze::<2>(), b.clone().inner());
    let output = x.clone() * y.clone();
    with_gradient(vec![a.into(), b.into()], output, move |gradient| {
        let da = (gradient.clone() * y.clone())
            .sum_dim(0)
            .squeeze_dim::<1>(0);
        vec![
            Some(AnyTensor::from(da)),
            Some(AnyTensor::from(gradient * x.clone())),
        ]
    })
}

#[test]
fn gradients_of_all_ranks_reach_leaves_and_what_came_before() {
    let device = Device::flex().autodiff();
    assert!(takes_gradients(&device));
    let a = Tensor::<1>::from_floats([2.0, -3.0], &device).require_grad();
    let b = Tensor::<2>::from_floats([[1.0, 4.0], [0.5, 2.0]], &device).require_grad();
    // `a` has a second use, `b` is not the input itself.
    let y = product(a.clone(), b.clone() * 2.0) + a.clone().unsqueeze::<2>();
    assert_eq!(values(y.clone().inner()), [6.0, -27.0, 4.0, -15.0]);
    let grads = (y * Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device))
        .sum()
        .backward();
    // 2 b times the weights, summed over rows, and the weights themselves.
    let expected = [1.0 * 2.0 + 3.0 * 1.0 + 4.0, 2.0 * 8.0 + 4.0 * 4.0 + 6.0];
    assert_eq!(values(a.grad(&grads).unwrap()), expected);
    assert_eq!(values(b.grad(&grads).unwrap()), [4.0, -12.0, 12.0, -24.0]);
}

#[test]
fn constants_get_no_gradient_and_make_no_graph() {
    let device = Device::flex().autodiff();
    let a = Tensor::<1>::from_floats([2.0, -3.0], &device);
    let b = Tensor::<2>::from_floats([[1.0, 4.0]], &device);
    assert!(!product(a.clone(), b.clone()).is_tracked());
    let b = b.require_grad();
    for a in [a.clone(), a.inner()] {
        let y = product(a, b.clone());
        assert!(y.is_tracked());
        let grads = y.sum().backward();
        assert_eq!(values(b.grad(&grads).unwrap()), [2.0, -3.0]);
    }
}

#[test]
fn a_gradient_may_come_from_a_backward_pass_of_its_own() {
    let device = Device::flex().autodiff();
    let x = Tensor::<1>::from_floats([0.5, 2.0], &device).require_grad();
    let inner = x.clone().inner();
    let cubes = with_gradient(
        vec![x.clone().into()],
        inner.clone() * inner.clone() * inner.clone(),
        move |gradient| {
            let leaf = Tensor::from_inner(inner.clone()).require_grad();
            let cubes = leaf.clone() * leaf.clone() * leaf.clone();
            let grads = (cubes * Tensor::from_inner(gradient)).sum().backward();
            vec![leaf.grad(&grads).map(AnyTensor::from)]
        },
    );
    let grads = (cubes * x.clone()).sum().backward();
    // The derivative of x^4.
    assert_eq!(values(x.grad(&grads).unwrap()), [0.5, 32.0]);
}

#[test]
fn devices_without_autodiff_or_with_burns_checkpointing_are_refused() {
    assert!(!takes_gradients(&Device::flex()));
    let device = Device::flex().autodiff().gradient_checkpointing();
    assert!(!takes_gradients(&device));
}

#[test]
#[should_panic(expected = "as many gradients")]
fn a_wrong_number_of_gradients_is_a_bug() {
    let device = Device::flex().autodiff();
    let x = Tensor::<1>::zeros([1], &device).require_grad();
    let output = x.clone().inner();
    let y = with_gradient(vec![x.into()], output, |_| Vec::new());
    y.backward();
}
