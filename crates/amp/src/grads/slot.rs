//! A gradient of any rank.

use std::any::Any;

#[cfg(feature = "flex")]
use burn::backend::{Flex, flex::FlexTensor};
use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Device, FloatDType, Tensor};
#[cfg(feature = "cube")]
use halfseg_kernels::{AnyTensor, handles_lists};

/// The gradient of a parameter.
pub(crate) struct Grad {
    pub id: ParamId,
    pub path: String,
    pub value: Box<dyn Slot>,
}

pub(crate) type FromRow = Box<dyn FnOnce(Tensor<1>) -> Box<dyn Slot>>;

/// The values of a gradient, whatever their rank.
pub(crate) trait Slot: Send {
    /// Whether all values are finite, as a 1 or a 0 on `device`.
    fn finite(&self, device: &Device) -> Tensor<1>;
    /// The sum of squares of the values times `factor`, in f32, on `device`.
    fn sum_squares(&self, factor: f32, device: &Device) -> Tensor<1>;
    /// The number of values.
    fn elements(&self) -> usize;
    /// How many values are not zero.
    fn non_zero(&self, device: &Device) -> Tensor<1>;
    /// How many values, times `scale`, become zero, subnormal and infinite in `precision`.
    fn losses(&self, precision: FloatDType, scale: f32, device: &Device) -> Tensor<1>;
    fn scale(&mut self, factor: f32);
    /// Brings each value into `-max..=max`.
    fn clamp(&mut self, max: f32);
    fn add(self: Box<Self>, other: Box<dyn Slot>) -> Box<dyn Slot>;
    /// All values in one row, and what makes a gradient of this shape of such a row.
    fn into_row(self: Box<Self>) -> (Tensor<1>, FromRow);
    fn register(self: Box<Self>, id: ParamId, grads: &mut GradientsParams);
    fn device(&self) -> Device;
    /// Takes the values out, if they are f32 in the memory of this machine. They go back with
    /// [`put`](Self::put).
    #[cfg(feature = "flex")]
    fn take(&mut self) -> Option<FlexTensor>;
    #[cfg(feature = "flex")]
    fn put(&mut self, values: FlexTensor);
    /// Takes the values out, if kernels for lists of tensors on `device` take them. They go back with
    /// [`put_listed`](Self::put_listed).
    #[cfg(feature = "cube")]
    fn take_listed(&mut self, device: &Device) -> Option<AnyTensor>;
    #[cfg(feature = "cube")]
    fn put_listed(&mut self, values: AnyTensor);
    fn as_any(&self) -> &dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<const D: usize> Slot for Tensor<D> {
    fn finite(&self, device: &Device) -> Tensor<1> {
        self.clone()
            .is_finite()
            .all()
            .float()
            .cast(FloatDType::F32)
            .to_device(device)
    }

    fn sum_squares(&self, factor: f32, device: &Device) -> Tensor<1> {
        let mut values = self.clone();
        if factor != 1.0 {
            values = values.mul_scalar(factor);
        }
        let count = self.elements();
        sum_in_runs(values.clone().mul(values).reshape([count]))
            .cast(FloatDType::F32)
            .to_device(device)
    }

    fn elements(&self) -> usize {
        self.shape().num_elements()
    }

    fn non_zero(&self, device: &Device) -> Tensor<1> {
        count(self.clone().not_equal_scalar(0.0), device)
    }

    fn losses(&self, precision: FloatDType, scale: f32, device: &Device) -> Tensor<1> {
        // By comparing with where values round to what, to nearest and ties to even: not every device casts
        // to every precision.
        let format = DType::from(precision).finfo().expect("a float");
        let half_step = format.min_positive * format.epsilon / 2.0;
        let infinite = format.max / (2.0 - format.epsilon) * (2.0 - format.epsilon / 2.0);
        let size = self.clone().mul_scalar(scale).abs();
        let non_zero = self.clone().not_equal_scalar(0.0);
        let zero = size.clone().lower_equal_scalar(half_step as f32);
        let flushed = non_zero.bool_and(zero.clone());
        let subnormal = size
            .clone()
            .lower_scalar((format.min_positive - half_step) as f32)
            .bool_and(zero.bool_not());
        let overflowed = size
            .greater_equal_scalar(infinite as f32)
            .bool_and(self.clone().is_finite());
        let counts = [flushed, subnormal, overflowed].map(|mask| count(mask, device));
        Tensor::cat(counts.to_vec(), 0)
    }

    fn scale(&mut self, factor: f32) {
        let nothing = Tensor::empty([0; D], &Tensor::device(self));
        *self = std::mem::replace(self, nothing).mul_scalar(factor);
    }

    fn clamp(&mut self, max: f32) {
        let nothing = Tensor::empty([0; D], &Tensor::device(self));
        *self = Tensor::clamp(std::mem::replace(self, nothing), -max, max);
    }

    fn add(self: Box<Self>, other: Box<dyn Slot>) -> Box<dyn Slot> {
        let other = other.into_any().downcast::<Tensor<D>>();
        let other = other.expect("a parameter keeps its rank");
        let other = other.to_device(&Tensor::device(&self));
        Box::new(Tensor::add(*self, other))
    }

    fn into_row(self: Box<Self>) -> (Tensor<1>, FromRow) {
        let shape = self.shape();
        let row = self.reshape([shape.num_elements()]);
        let from_row =
            move |row: Tensor<1>| -> Box<dyn Slot> { Box::new(row.reshape::<D, _>(shape)) };
        (row, Box::new(from_row))
    }

    fn register(self: Box<Self>, id: ParamId, grads: &mut GradientsParams) {
        grads.register(id, *self);
    }

    fn device(&self) -> Device {
        Tensor::device(self)
    }

    #[cfg(feature = "flex")]
    fn take(&mut self) -> Option<FlexTensor> {
        super::host::take(self)
    }

    #[cfg(feature = "flex")]
    fn put(&mut self, values: FlexTensor) {
        *self = Tensor::from_primitive::<Flex>(values);
    }

    #[cfg(feature = "cube")]
    fn take_listed(&mut self, device: &Device) -> Option<AnyTensor> {
        let takes = Tensor::device(self) == *device
            && handles_lists(device, self.dtype())
            && self.shape().num_elements() > 0;
        takes.then(|| AnyTensor::from(std::mem::replace(self, Tensor::empty([0; D], device))))
    }

    #[cfg(feature = "cube")]
    fn put_listed(&mut self, values: AnyTensor) {
        *self = values.into_tensor();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// How often `mask` is true, on `device`. Exact up to 2^24, the integers of f32.
fn count<const D: usize>(mask: Tensor<D, Bool>, device: &Device) -> Tensor<1> {
    mask.float().cast(FloatDType::F32).sum().to_device(device)
}

/// The sum of a row, of which runs are added up first: devices differ in how many values they add to one sum one after
/// the other, each time rounding it.
fn sum_in_runs(row: Tensor<1>) -> Tensor<1> {
    const RUN: usize = 256;
    let [length] = row.dims();
    let (runs, rest) = (length / RUN, length % RUN);
    if runs < 2 {
        return row.sum();
    }
    let whole = row.clone().slice(0..runs * RUN).reshape([runs, RUN]);
    let sum = whole.sum_dim(1).sum();
    match rest {
        0 => sum,
        _ => sum + row.slice(runs * RUN..length).sum(),
    }
}
