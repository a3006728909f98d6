//! Gradients in the memory of this machine: one pass on all threads does what takes Burn's operations
//! several on one.

use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;

/// Values of a task: few enough to share small tensors, enough to be worth a task. Sums of squares are
/// taken per task and added in order, so they do not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// Takes the values out of a tensor, which is empty afterwards, if they are f32 in the memory of this
/// machine.
pub(crate) fn take<const D: usize>(x: &mut Tensor<D>) -> Option<FlexTensor> {
    let device = x.device();
    if x.dtype() != DType::F32 || device != Device::flex() || device.is_autodiff() {
        return None;
    }
    let nothing = Tensor::empty([0; D], &device);
    let values = std::mem::replace(x, nothing).try_into_primitive::<Flex>();
    Some(values.expect("the tensor is on Flex"))
}

/// Multiplies f32 gradients by `factor`, in place where nothing else holds their memory, and gives the
/// sum of squares of each. A factor of 1 only reads, whoever holds the memory.
///
/// The sums are f64, which no f32 gradient leaves: a sum is finite just when all its values are.
///
/// # Panics
///
/// If a gradient is not f32.
pub(crate) fn scale(gradients: &mut [FlexTensor], factor: f32) -> Vec<f64> {
    for gradient in gradients.iter_mut().filter(|gradient| !is_whole(gradient)) {
        // A view of other memory, which the optimizer would have to copy as well.
        *gradient = FlexTensor::from_data(gradient.clone().into_data());
    }
    let parts: Vec<(usize, f64)> = if factor == 1.0 {
        let values = gradients.iter().map(|gradient| gradient.storage::<f32>());
        chunks(values.map(|values| values.chunks(CHUNK)))
            .into_par_iter()
            .map(|(place, chunk)| (place, sum_squares(chunk)))
            .collect()
    } else {
        let values = gradients
            .iter_mut()
            .map(|gradient| gradient.storage_mut::<f32>());
        chunks(values.map(|values| values.chunks_mut(CHUNK)))
            .into_par_iter()
            .map(|(place, chunk)| (place, scale_chunk(chunk, factor)))
            .collect()
    };
    let mut sums = vec![0.0; gradients.len()];
    for (place, sum) in parts {
        sums[place] += sum;
    }
    sums
}

/// Whether the values of a tensor are all of its memory, in order.
fn is_whole(x: &FlexTensor) -> bool {
    let layout = x.layout();
    layout.is_contiguous()
        && layout.start_offset() == 0
        && x.bytes().len() == layout.num_elements() * size_of::<f32>()
}

/// The parts of several tensors, each with the place of its tensor.
fn chunks<T>(tensors: impl Iterator<Item = impl Iterator<Item = T>>) -> Vec<(usize, T)> {
    tensors
        .enumerate()
        .flat_map(|(place, chunks)| chunks.map(move |chunk| (place, chunk)))
        .collect()
}

/// Values of which the processor takes several side by side, each into a sum of its own.
const GROUP: usize = 16;

fn scale_chunk(values: &mut [f32], factor: f32) -> f64 {
    for value in values.iter_mut() {
        *value *= factor;
    }
    sum_squares(values)
}

fn sum_squares(values: &[f32]) -> f64 {
    let (groups, rest) = values.as_chunks::<GROUP>();
    let mut sums = [0.0; GROUP];
    for group in groups {
        for (sum, value) in sums.iter_mut().zip(group) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    let rest = rest.iter().map(|value| f64::from(*value).powi(2));
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(values: &[f32]) -> FlexTensor {
        let mut x = Tensor::<1>::from_floats(values, &Device::flex());
        take(&mut x).expect("the values are f32 on Flex")
    }

    #[test]
    fn memory_that_nothing_else_holds_is_changed_in_place() {
        for factor in [1.0, 2.0] {
            let mut gradients = [gradient(&[1.0, -2.0, 3.0]), gradient(&[0.5])];
            let before = gradients.each_ref().map(|x| x.bytes().as_ptr());
            assert_eq!(scale(&mut gradients.clone(), 1.0), [14.0, 0.25]);
            let sums = scale(&mut gradients, factor);
            let squared = f64::from(factor).powi(2);
            assert_eq!(sums, [14.0 * squared, 0.25 * squared]);
            assert_eq!(gradients.each_ref().map(|x| x.bytes().as_ptr()), before);
            assert_eq!(gradients[0].storage::<f32>()[1], -2.0 * factor);
        }
    }

    #[test]
    fn memory_that_something_else_holds_is_left_and_only_read_where_nothing_changes() {
        let held = gradient(&[1.0, -2.0]);
        let mut gradients = [held.clone()];
        scale(&mut gradients, 1.0);
        assert_eq!(gradients[0].bytes().as_ptr(), held.bytes().as_ptr());
        scale(&mut gradients, 3.0);
        assert_eq!(gradients[0].storage::<f32>(), [3.0, -6.0]);
        assert_eq!(held.storage::<f32>(), [1.0, -2.0]);
    }
}
