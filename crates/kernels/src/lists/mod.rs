//! What a training step does to all parameters of a network, many of them in one kernel: a network
//! has hundreds, most of them small, and starting kernels for each takes longer than they run.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
mod list;
#[cfg(feature = "cube")]
mod ops;

use burn::tensor::{DType, Device, Tensor};

use crate::{AnyTensor, SgdStep};

/// Whether [`scale_list`], [`measure_list`] and [`sgd_step_list`] take tensors of `dtype` on `device`:
/// f32, f16 and bf16 on GPUs, without autodiff.
pub fn handles_lists(device: &Device, dtype: DType) -> bool {
    #[cfg(feature = "cube")]
    return crate::gpu::launch::handles(device, dtype) && !device.is_autodiff();
    #[cfg(not(feature = "cube"))]
    {
        let _ = (device, dtype);
        false
    }
}

/// Multiplies all tensors by `factor`, in place where nothing else holds their memory, and reports on
/// the products: f32 `[n, 2]`, for each tensor 1 where all its values are finite, 0 elsewhere, and the
/// sum of their squares. Arithmetic is f32; products are rounded to the tensor's dtype before they are
/// looked at. A sum that f32 does not hold is infinite although all values are finite.
///
/// As many tensors as the device binds to a kernel, 32 at most, share one.
///
/// # Panics
/// If the list or one of its tensors is empty, or [`handles_lists`] says no to one. All tensors have to be
/// on one device.
pub fn scale_list(tensors: Vec<AnyTensor>, factor: f32) -> (Vec<AnyTensor>, Tensor<2>) {
    check(tensors.len());
    #[cfg(feature = "cube")]
    return ops::scale(tensors, factor);
    #[cfg(not(feature = "cube"))]
    {
        let _ = factor;
        panic!("{NOT_HANDLED}")
    }
}

/// The report of [`scale_list`] on tensors as they are: f32 `[n, 2]`.
///
/// # Panics
/// As [`scale_list`].
pub fn measure_list(tensors: Vec<AnyTensor>) -> Tensor<2> {
    check(tensors.len());
    #[cfg(feature = "cube")]
    return ops::measure(tensors);
    #[cfg(not(feature = "cube"))]
    panic!("{NOT_HANDLED}")
}

/// Whether all values of a tensor without autodiff are finite; waits for the device.
///
/// On GPUs as [`measure_list`] sees it: for sums of Burn's its tuner would compile many kernels.
///
/// # Panics
/// If the tensor cannot be read, or on GPUs is empty.
pub fn all_finite<const D: usize>(tensor: Tensor<D>) -> bool {
    if handles_lists(&tensor.device(), tensor.dtype()) {
        let report = measure_list(vec![tensor.into()]);
        return report.slice([0..1, 0..1]).into_scalar::<f32>() == 1.0;
    }
    // Zero times a finite value is zero.
    tensor.mul_scalar(0.0).sum().into_scalar::<f32>() == 0.0
}

/// The f32 tensors in another dtype, those of four dimensions pixel by pixel in memory.
///
/// # Panics
/// As [`scale_list`], and if a tensor is not f32.
#[cfg(feature = "cube")]
pub(crate) fn round_list(tensors: Vec<AnyTensor>, dtype: DType) -> Vec<AnyTensor> {
    check(tensors.len());
    ops::round(tensors, dtype)
}

/// A parameter before a step: see [`sgd_step_list`].
#[derive(Clone, Debug)]
pub struct SgdParameter {
    /// The values, f32.
    pub value: AnyTensor,
    /// Their gradient, f32.
    pub gradient: AnyTensor,
    /// The velocity that an earlier step left, f32.
    pub velocity: Option<AnyTensor>,
    /// The numbers of its group.
    pub step: SgdStep,
}

/// [`sgd_step`](crate::sgd_step) for many parameters, in place where nothing else holds their memory.
/// Returns the moved value and the velocity of each, in order. Equal to the step of each by itself, up to
/// the contraction of a product and a sum that a GPU's compiler may make.
///
/// # Panics
/// If the list or one of its tensors is empty, the shapes of a parameter's tensors differ, or
/// [`handles_lists`] says no to one. All tensors have to be f32 and on one device.
pub fn sgd_step_list(parameters: Vec<SgdParameter>) -> Vec<[AnyTensor; 2]> {
    check(parameters.len());
    #[cfg(feature = "cube")]
    return each_kind(parameters);
    #[cfg(not(feature = "cube"))]
    panic!("{NOT_HANDLED}")
}

/// Parameters that have a velocity in one list, those that have none in another.
#[cfg(feature = "cube")]
fn each_kind(parameters: Vec<SgdParameter>) -> Vec<[AnyTensor; 2]> {
    let mut results: Vec<Option<[AnyTensor; 2]>> = vec![None; parameters.len()];
    let (old, new): (Vec<_>, Vec<_>) = parameters
        .into_iter()
        .enumerate()
        .partition(|(_, parameter)| parameter.velocity.is_some());
    for list in [old, new].into_iter().filter(|list| !list.is_empty()) {
        let mut places = Vec::new();
        let [mut values, mut velocities, mut gradients] = [(); 3].map(|()| Vec::new());
        let mut steps = Vec::new();
        for (place, parameter) in list {
            places.push(place);
            values.push(parameter.value);
            steps.push(parameter.step);
            match parameter.velocity {
                Some(velocity) => {
                    velocities.push(velocity);
                    gradients.push(parameter.gradient);
                }
                None => velocities.push(parameter.gradient),
            }
        }
        let moved = ops::descend(values, velocities, gradients, steps);
        for (place, moved) in places.into_iter().zip(moved) {
            results[place] = Some(moved);
        }
    }
    results.into_iter().flatten().collect()
}

fn check(count: usize) {
    assert!(count > 0, "a list of tensors has at least one");
}

#[cfg(not(feature = "cube"))]
const NOT_HANDLED: &str = "`handles_lists` is false everywhere in this build";
