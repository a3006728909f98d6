//! Gradients scaled, checked and measured, all at once where their device allows it.

use burn::tensor::{Device, Tensor};
#[cfg(feature = "cube")]
use halfseg_kernels::{measure_list, scale_list};

use super::slot::Grad;
use crate::report::count_readback;

/// What is known of the values of gradients, without having waited for their device.
pub(crate) struct Known {
    /// Sums of squares of those that are in the memory of this machine: finite just when all values are.
    host: Vec<Option<f64>>,
    /// Those that `report` is on: two numbers a gradient, 1 if all its values are finite or else 0, and the
    /// sum of their squares in f32.
    listed: Vec<usize>,
    report: Option<Tensor<1>>,
}

impl Known {
    /// The numbers on `device` that [`resolve`](Self::resolve) wants, in order: what is not known yet of
    /// `grads`, in one tensor or two for each gradient, and then the report.
    pub fn numbers(&self, grads: &[Grad], device: &Device) -> Vec<Tensor<1>> {
        let others = self.others().flat_map(|place| {
            let value = &grads[place].value;
            [value.finite(device), value.sum_squares(1.0, device)]
        });
        let report = self
            .report
            .iter()
            .map(|report| report.clone().to_device(device));
        others.chain(report).collect()
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let unknown = |place: &usize| self.host[*place].is_none() && !self.listed.contains(place);
        (0..self.host.len()).filter(unknown)
    }

    /// For each gradient whether it is finite, and the sum of its squares.
    pub fn resolve(self, numbers: &[f32]) -> Vec<(bool, f64)> {
        let places: Vec<usize> = self.others().chain(self.listed.iter().copied()).collect();
        let known = self.host.into_iter().map(|sum| sum.unwrap_or_default());
        let mut found: Vec<_> = known.map(|sum| (sum.is_finite(), sum)).collect();
        for (place, pair) in places.into_iter().zip(numbers.chunks_exact(2)) {
            found[place] = (pair[0] != 0.0, f64::from(pair[1]));
        }
        found
    }
}

/// Multiplies gradients by `factor`, with one pass over those that are in the memory of this machine and
/// with some kernels for all those on the GPU of the first; the others take one operation each.
pub(crate) fn scale_all(grads: &mut [Grad], factor: f32) -> Known {
    let known = Known {
        host: scale_on_host(grads, factor),
        listed: Vec::new(),
        report: None,
    };
    #[cfg(feature = "cube")]
    let known = scale_listed(grads, factor, known);
    if factor != 1.0 {
        let others: Vec<_> = known.others().collect();
        for place in others {
            grads[place].value.scale(factor);
        }
    }
    known
}

#[cfg(feature = "cube")]
fn scale_listed(grads: &mut [Grad], factor: f32, mut known: Known) -> Known {
    let Some(device) = grads.first().map(|grad| grad.value.device()) else {
        return known;
    };
    let mut values = Vec::new();
    for (place, grad) in grads.iter_mut().enumerate() {
        if let Some(value) = grad.value.take_listed(&device) {
            known.listed.push(place);
            values.push(value);
        }
    }
    if values.is_empty() {
        return known;
    }
    let (values, report) = match factor {
        1.0 => (values.clone(), measure_list(values)),
        _ => scale_list(values, factor),
    };
    for (place, value) in known.listed.iter().zip(values) {
        grads[*place].value.put_listed(value);
    }
    known.report = Some(report.reshape([2 * known.listed.len()]));
    known
}

#[cfg(feature = "flex")]
fn scale_on_host(grads: &mut [Grad], factor: f32) -> Vec<Option<f64>> {
    let mut sums = vec![None; grads.len()];
    let (places, mut values): (Vec<_>, Vec<_>) = grads
        .iter_mut()
        .enumerate()
        .filter_map(|(place, grad)| Some((place, grad.value.take()?)))
        .unzip();
    let found = super::host::scale(&mut values, factor);
    for ((place, values), sum) in places.into_iter().zip(values).zip(found) {
        grads[place].value.put(values);
        sums[place] = Some(sum);
    }
    sums
}

#[cfg(not(feature = "flex"))]
fn scale_on_host(grads: &mut [Grad], _: f32) -> Vec<Option<f64>> {
    vec![None; grads.len()]
}

/// Waits for the device and reads numbers, in one transfer. Nothing else in this crate reads while a
/// step is taken.
pub(crate) fn read_back(numbers: Vec<Tensor<1>>) -> Vec<f32> {
    if numbers.is_empty() {
        return Vec::new();
    }
    count_readback();
    let numbers = Tensor::cat(numbers, 0).into_data();
    numbers.try_into_vec().expect("the numbers are f32")
}

/// Measures gradients again whose squares were too large for the f32 of their device: the sums of
/// squares, which are infinite for them. That takes a second transfer.
pub(crate) fn measure_large(grads: &[Grad], squares: &mut [f64]) {
    // The largest f32 becomes 2.7e11, and the smallest whose squares sum up to infinity 1e-8 or so.
    let factor = 2f32.powi(-90);
    let large = grads.iter().zip(squares);
    let large: Vec<_> = large.filter(|(_, square)| !square.is_finite()).collect();
    let Some(device) = large.first().map(|(grad, _)| grad.value.device()) else {
        return;
    };
    let (grads, squares): (Vec<_>, Vec<_>) = large.into_iter().unzip();
    let measured = grads
        .into_iter()
        .map(|grad| grad.value.sum_squares(factor, &device));
    let measured = read_back(measured.collect());
    for (square, measured) in squares.into_iter().zip(measured) {
        *square = f64::from(measured) / f64::from(factor).powi(2);
    }
}

/// The global norm from the sums of squares. In f64, which the norm of no f32 gradients leaves.
pub(crate) fn total_norm<'a>(squares: impl IntoIterator<Item = &'a f64>) -> f64 {
    squares.into_iter().sum::<f64>().sqrt()
}
