//! Gradients whose type says whether they are still scaled.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

#[cfg(feature = "flex")]
use burn::backend::{Flex, flex::FlexTensor};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Device, FloatDType, Gradients, Tensor};
#[cfg(feature = "cube")]
use halfseg_kernels::{AnyTensor, handles_lists, measure_list, scale_list};

use crate::Precision;
use crate::cache::forget_consumed;
use crate::paths::paths_by_id;
use crate::statistics::flush;
use crate::underflow::{Losses, UnderflowReport, UnderflowRow};

/// A gradient of any rank.
trait Slot: Send {
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
    fn add(self: Box<Self>, other: Box<dyn Slot>) -> Box<dyn Slot>;
    /// What `change` makes of all values in one row.
    fn map(self: Box<Self>, change: &mut dyn FnMut(Tensor<1>) -> Tensor<1>) -> Box<dyn Slot>;
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
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<const D: usize> Slot for Tensor<D> {
    fn finite(&self, device: &Device) -> Tensor<1> {
        finite_flag(self.clone(), device)
    }

    fn sum_squares(&self, factor: f32, device: &Device) -> Tensor<1> {
        let mut values = self.clone();
        if factor != 1.0 {
            values = values.mul_scalar(factor);
        }
        values
            .clone()
            .mul(values)
            .sum()
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
        let low = self
            .clone()
            .mul_scalar(scale)
            .cast(precision)
            .cast(FloatDType::F32)
            .abs();
        let smallest = DType::from(precision)
            .finfo()
            .expect("a float")
            .min_positive;
        let zero = low.clone().equal_scalar(0.0);
        let flushed = self.clone().not_equal_scalar(0.0).bool_and(zero.clone());
        let subnormal = low
            .clone()
            .lower_scalar(smallest as f32)
            .bool_and(zero.bool_not());
        let overflowed = low.is_inf().bool_and(self.clone().is_finite());
        let counts = [flushed, subnormal, overflowed].map(|mask| count(mask, device));
        Tensor::cat(counts.to_vec(), 0)
    }

    fn scale(&mut self, factor: f32) {
        let nothing = Tensor::empty([0; D], &Tensor::device(self));
        *self = std::mem::replace(self, nothing).mul_scalar(factor);
    }

    fn add(self: Box<Self>, other: Box<dyn Slot>) -> Box<dyn Slot> {
        let other = other.into_any().downcast::<Tensor<D>>();
        let other = other.expect("a parameter keeps its rank");
        let other = other.to_device(&Tensor::device(&self));
        Box::new(Tensor::add(*self, other))
    }

    fn map(self: Box<Self>, change: &mut dyn FnMut(Tensor<1>) -> Tensor<1>) -> Box<dyn Slot> {
        let shape = self.shape();
        let row = self.reshape([shape.num_elements()]);
        Box::new(change(row).reshape::<D, _>(shape))
    }

    fn register(self: Box<Self>, id: ParamId, grads: &mut GradientsParams) {
        grads.register(id, *self);
    }

    fn device(&self) -> Device {
        Tensor::device(self)
    }

    #[cfg(feature = "flex")]
    fn take(&mut self) -> Option<FlexTensor> {
        crate::host::take(self)
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

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn finite_flag<const D: usize>(x: Tensor<D>, device: &Device) -> Tensor<1> {
    x.is_finite()
        .all()
        .float()
        .cast(FloatDType::F32)
        .to_device(device)
}

/// How often `mask` is true, on `device`. Exact up to 2^24, the integers of f32.
fn count<const D: usize>(mask: Tensor<D, Bool>, device: &Device) -> Tensor<1> {
    mask.float().cast(FloatDType::F32).sum().to_device(device)
}

struct Grad {
    id: ParamId,
    path: String,
    value: Box<dyn Slot>,
}

/// What is known of the values of gradients, without having waited for their device.
struct Known {
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
    fn numbers(&self, grads: &[Grad], device: &Device) -> Vec<Tensor<1>> {
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
    fn resolve(self, numbers: &[f32]) -> Vec<(bool, f64)> {
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
fn scale_all(grads: &mut [Grad], factor: f32) -> Known {
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
    let found = crate::host::scale(&mut values, factor);
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
fn read_back(numbers: Vec<Tensor<1>>) -> Vec<f32> {
    if numbers.is_empty() {
        return Vec::new();
    }
    #[cfg(test)]
    tests::READBACKS.set(tests::READBACKS.get() + 1);
    let numbers = Tensor::cat(numbers, 0).into_data();
    numbers.try_into_vec().expect("the numbers are f32")
}

/// A flag on the device that says whether something computed in the forward pass is finite.
#[derive(Clone)]
struct ForwardFlag {
    name: String,
    finite: Tensor<1>,
}

/// The part of a scaler that its losses and gradients carry along.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Round {
    /// Tells the steps of all scalers apart.
    pub id: u64,
    pub scale: f32,
    /// Whether gradients are checked at all.
    pub checked: bool,
    /// The running statistics that the forward pass may have changed.
    pub statistics: Arc<Vec<ParamId>>,
}

/// A loss times the scale, from [`GradScaler::scale`](crate::GradScaler::scale).
#[must_use = "call `backward`"]
pub struct ScaledLoss {
    loss: Tensor<1>,
    raw: Tensor<1>,
    round: Round,
}

impl ScaledLoss {
    pub(crate) fn new(loss: Tensor<1>, round: Round) -> Self {
        // In f32: 1.0 in f16 times 65536 would already be infinite.
        let loss = match loss.dtype() {
            DType::F64 => loss,
            _ => loss.cast(FloatDType::F32),
        };
        let raw = loss.clone().detach().without_autodiff();
        let loss = if round.scale == 1.0 {
            loss
        } else {
            loss.mul_scalar(round.scale)
        };
        Self { loss, raw, round }
    }

    /// The loss as it was before scaling, without gradients.
    pub fn unscaled(&self) -> Tensor<1> {
        self.raw.clone()
    }

    /// The loss times the scale, which gradients are taken of.
    pub fn value(&self) -> Tensor<1> {
        self.loss.clone()
    }

    /// Runs the backward pass, and keeps the gradients of `model`.
    ///
    /// # Panics
    ///
    /// As [`Tensor::backward`], and if a parameter is f16 or bf16: keep master weights in f32.
    pub fn backward<M: Module>(self, model: &M) -> ScaledGrads {
        self.backward_graph().take(model)
    }

    /// Runs the backward pass, for gradients of several models or parts of a model.
    ///
    /// # Panics
    ///
    /// As [`Tensor::backward`].
    pub fn backward_graph(self) -> ScaledGraph {
        let grads = self.loss.backward();
        // The backward pass consumed the graph that the casts of weights are part of.
        forget_consumed(&grads);
        ScaledGraph {
            grads,
            raw: self.raw,
            round: self.round,
        }
    }
}

/// All gradients of a backward pass, from which those of each model are
/// [taken](ScaledGraph::take).
#[must_use = "take the gradients of a model"]
pub struct ScaledGraph {
    grads: Gradients,
    raw: Tensor<1>,
    round: Round,
}

impl ScaledGraph {
    /// Takes the gradients of the parameters of `model`.
    ///
    /// # Panics
    ///
    /// If a parameter is f16 or bf16: keep master weights in f32.
    pub fn take<M: Module>(&mut self, model: &M) -> ScaledGrads {
        struct Visitor<'a> {
            grads: &'a mut Gradients,
            round: &'a Round,
            device: Device,
            paths: HashMap<ParamId, String>,
            found: Vec<Grad>,
            forward: Vec<ForwardFlag>,
        }
        impl ModuleVisitor for Visitor<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if self.round.statistics.contains(&param.id) {
                    let finite = finite_flag(param.base().without_autodiff(), &self.device);
                    self.forward.push(ForwardFlag {
                        name: self.paths[&param.id].clone(),
                        finite,
                    });
                }
                if !param.is_require_grad() {
                    return;
                }
                let Some(value) = param.base().grad_remove(self.grads) else {
                    return;
                };
                let path = self.paths[&param.id].clone();
                assert!(
                    matches!(value.dtype(), DType::F32 | DType::F64 | DType::Flex32),
                    "the gradient of {path} is {:?}: the scaler needs f32 master weights, which \
                     autocast casts for each operation",
                    value.dtype()
                );
                self.found.push(Grad {
                    id: param.id,
                    path,
                    value: Box::new(value),
                });
            }
        }
        // Statistics of this forward pass may still wait per thread.
        if !self.round.statistics.is_empty() {
            flush(model);
        }
        let device = self.raw.device();
        let mut visitor = Visitor {
            grads: &mut self.grads,
            round: &self.round,
            device: device.clone(),
            paths: paths_by_id(model),
            found: Vec::new(),
            forward: Vec::new(),
        };
        model.visit(&mut visitor);
        let Visitor {
            found, mut forward, ..
        } = visitor;
        if self.round.checked {
            let finite = finite_flag(self.raw.clone(), &device);
            forward.push(ForwardFlag {
                name: LOSS.to_owned(),
                finite,
            });
        }
        ScaledGrads {
            grads: found,
            forward,
            round: self.round.clone(),
        }
    }
}

/// The name of the loss among the results of the forward pass.
const LOSS: &str = "loss";

/// Gradients times the scale. They can be [accumulated](Self::accumulate), [summed](Self::summed) over
/// devices and [unscaled](crate::GradScaler::unscale), nothing else.
///
/// Clipping needs unscaled gradients:
///
/// ```
/// fn clip(grads: halfseg_amp::UnscaledGrads) {
///     let _ = grads.clip_norm(1.0);
/// }
/// ```
///
/// ```compile_fail,E0599
/// fn clip(grads: halfseg_amp::ScaledGrads) {
///     let _ = grads.clip_norm(1.0);
/// }
/// ```
///
/// and so does a step:
///
/// ```
/// use burn::{module::Module, optim::ModuleOptimizer};
/// use halfseg_amp::{GradScaler, UnscaledGrads};
///
/// fn step(s: &mut GradScaler, o: &mut ModuleOptimizer, m: impl Module, grads: UnscaledGrads) {
///     let _ = s.step(o, 0.1, m, grads);
/// }
/// ```
///
/// ```compile_fail,E0308
/// use burn::{module::Module, optim::ModuleOptimizer};
/// use halfseg_amp::{GradScaler, ScaledGrads};
///
/// fn step(s: &mut GradScaler, o: &mut ModuleOptimizer, m: impl Module, grads: ScaledGrads) {
///     let _ = s.step(o, 0.1, m, grads);
/// }
/// ```
#[must_use = "unscale the gradients"]
pub struct ScaledGrads {
    grads: Vec<Grad>,
    forward: Vec<ForwardFlag>,
    round: Round,
}

impl ScaledGrads {
    /// Adds the gradients of another micro-batch of the same step.
    ///
    /// As in plain Burn, divide each micro-batch's loss by their number if the sum is to be a mean.
    /// Gradients that are on another device are brought to the one of the first.
    ///
    /// # Panics
    ///
    /// If `other` is from another step or scaler.
    pub fn accumulate(mut self, other: ScaledGrads) -> ScaledGrads {
        assert_eq!(
            self.round.id, other.round.id,
            "gradients of different steps cannot be accumulated: their scales may differ"
        );
        let places: HashMap<_, _> = self
            .grads
            .iter()
            .enumerate()
            .map(|(place, grad)| (grad.id, place))
            .collect();
        let mut sums: Vec<Option<Box<dyn Slot>>> = self.grads.iter().map(|_| None).collect();
        let mut fresh = Vec::new();
        for grad in other.grads {
            match places.get(&grad.id) {
                Some(place) => sums[*place] = Some(grad.value),
                None => fresh.push(grad),
            }
        }
        self.grads = self
            .grads
            .into_iter()
            .zip(sums)
            .map(|(grad, sum)| match sum {
                Some(sum) => Grad {
                    value: grad.value.add(sum),
                    ..grad
                },
                None => grad,
            })
            .chain(fresh)
            .collect();
        let device = self.forward.first().map(|flag| flag.finite.device());
        self.forward
            .extend(other.forward.into_iter().map(|flag| ForwardFlag {
                finite: match &device {
                    Some(device) => flag.finite.to_device(device),
                    None => flag.finite,
                },
                ..flag
            }));
        self
    }

    /// The gradients of several devices that each computed a part of one step with a copy of the
    /// network. `sum` gives, for a row of values of this device, the sum of the rows that all devices
    /// give in the same call, as an all-reduce does. Every device has to call this; it calls `sum` in
    /// the same order on each, once for a gradient and once for the flags of the forward pass, which
    /// together say afterwards whether that of any device overflowed.
    ///
    /// # Shapes
    /// `sum`: f32 `[values]`, without autodiff, to the same
    pub fn summed(mut self, mut sum: impl FnMut(Tensor<1>) -> Tensor<1>) -> ScaledGrads {
        for grad in std::mem::take(&mut self.grads) {
            let value = grad.value.map(&mut sum);
            self.grads.push(Grad { value, ..grad });
        }
        if !self.forward.is_empty() {
            let flags = self.forward.iter().map(|flag| flag.finite.clone());
            let bad = Tensor::cat(flags.collect(), 0).sub_scalar(1.0).neg();
            let finite = sum(bad).lower_scalar(0.5).float().cast(FloatDType::F32);
            for (place, flag) in self.forward.iter_mut().enumerate() {
                flag.finite = finite.clone().narrow(0, place, 1);
            }
        }
        self
    }

    /// The number of parameters that have a gradient.
    pub fn len(&self) -> usize {
        self.grads.len()
    }

    /// Whether no parameter has a gradient.
    pub fn is_empty(&self) -> bool {
        self.grads.is_empty()
    }

    /// The scale of the gradients.
    pub fn scale(&self) -> f32 {
        self.round.scale
    }

    pub(crate) fn round(&self) -> &Round {
        &self.round
    }

    /// Divides by the scale, and reads back with one transfer what the decisions need.
    pub(crate) fn unscale(self) -> UnscaledGrads {
        let Round { scale, checked, .. } = self.round;
        let mut grads = UnscaledGrads {
            grads: self.grads,
            round: self.round,
            culprits: Vec::new(),
            non_finite_forward: Vec::new(),
            norm: None,
            clipped: false,
        };
        if !checked {
            return grads;
        }
        let device = match (self.forward.first(), grads.grads.first()) {
            (Some(flag), _) => flag.finite.device(),
            (None, Some(grad)) => grad.value.device(),
            (None, None) => return grads,
        };
        // The reciprocal in f64 first, as PyTorch does, so that odd scales round the same.
        let inverse = (1.0 / f64::from(scale)) as f32;
        let known = scale_all(&mut grads.grads, inverse);

        let flags = self.forward.iter().map(|flag| flag.finite.clone());
        // After the multiplication: by the inverse of a scale below 1 a gradient may overflow.
        let measured = known.numbers(&grads.grads, &device);
        let numbers = read_back(flags.chain(measured).collect());
        let (forward, measured) = numbers.split_at(self.forward.len());
        for (flag, finite) in self.forward.into_iter().zip(forward) {
            if *finite == 0.0 && !grads.non_finite_forward.contains(&flag.name) {
                grads.non_finite_forward.push(flag.name);
            }
        }
        let mut squares = Vec::with_capacity(grads.grads.len());
        for (grad, (finite, square)) in grads.grads.iter().zip(known.resolve(measured)) {
            if !finite {
                grads.culprits.push(grad.path.clone());
            }
            squares.push(square);
        }
        if grads.is_finite() {
            measure_large(&grads.grads, &mut squares);
        }
        grads.norm = Some(total_norm(squares));
        grads
    }
}

/// Measures gradients again whose squares were too large for the f32 of their device: the sums of
/// squares, which are infinite for them. That takes a second transfer.
fn measure_large(grads: &[Grad], squares: &mut [f64]) {
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
fn total_norm(squares: impl IntoIterator<Item = f64>) -> f64 {
    squares.into_iter().sum::<f64>().sqrt()
}

/// Gradients divided by the scale, from [`GradScaler::unscale`](crate::GradScaler::unscale).
///
/// They cannot be unscaled again:
///
/// ```
/// use halfseg_amp::{GradScaler, ScaledGrads};
///
/// fn unscale(scaler: &mut GradScaler, grads: ScaledGrads) {
///     let _grads = scaler.unscale(grads);
/// }
/// ```
///
/// ```compile_fail,E0308
/// use halfseg_amp::{GradScaler, ScaledGrads};
///
/// fn unscale(scaler: &mut GradScaler, grads: ScaledGrads) {
///     let grads = scaler.unscale(grads);
///     let _grads = scaler.unscale(grads);
/// }
/// ```
///
/// nor can two steps be taken with them:
///
/// ```compile_fail,E0382
/// use burn::{module::Module, optim::ModuleOptimizer};
/// use halfseg_amp::{GradScaler, UnscaledGrads};
///
/// fn step(s: &mut GradScaler, o: &mut ModuleOptimizer, m: impl Module, grads: UnscaledGrads) {
///     let (m, _) = s.step(o, 0.1, m, grads);
///     let _ = s.step(o, 0.1, m, grads);
/// }
/// ```
#[must_use = "pass the gradients to `GradScaler::step`"]
pub struct UnscaledGrads {
    grads: Vec<Grad>,
    pub(crate) round: Round,
    /// The parameters whose gradients are not finite.
    pub(crate) culprits: Vec<String>,
    /// The results of the forward pass that are not finite.
    pub(crate) non_finite_forward: Vec<String>,
    norm: Option<f64>,
    clipped: bool,
}

impl UnscaledGrads {
    /// Whether every gradient is finite. A disabled scaler does not look and says yes.
    pub fn is_finite(&self) -> bool {
        self.culprits.is_empty()
    }

    /// The paths of the parameters whose gradients are not finite.
    pub fn culprits(&self) -> &[String] {
        &self.culprits
    }

    /// The l2 norm of all gradients together, before any clipping; not finite after an overflow, nor
    /// if it is no f32.
    ///
    /// Costs a readback only if the scaler is disabled.
    pub fn norm(&mut self) -> f32 {
        self.exact_norm() as f32
    }

    /// The norm, which f64 holds for all finite gradients.
    fn exact_norm(&mut self) -> f64 {
        if let Some(norm) = self.norm {
            return norm;
        }
        let known = scale_all(&mut self.grads, 1.0);
        let measured = match self.grads.first().map(|grad| grad.value.device()) {
            Some(device) => read_back(known.numbers(&self.grads, &device)),
            None => Vec::new(),
        };
        let measured = known.resolve(&measured).into_iter();
        let mut squares: Vec<f64> = measured.map(|(_, square)| square).collect();
        measure_large(&self.grads, &mut squares);
        let norm = total_norm(squares);
        self.norm = Some(norm);
        norm
    }

    /// Scales all gradients so that their global l2 norm is at most `max`.
    ///
    /// As `torch.nn.utils.clip_grad_norm_`: the factor is `max / (norm + 1e-6)`, at most 1. The norm
    /// is an f64, though: where PyTorch's becomes infinite, and the gradients zero, these are
    /// clipped. Gradients with an overflow are left alone; their step is skipped, unless the scaler
    /// is disabled.
    ///
    /// # Panics
    ///
    /// If `max` is not positive.
    pub fn clip_norm(mut self, max: f32) -> Self {
        assert!(
            max > 0.0,
            "the largest gradient norm must be positive, got {max}"
        );
        let norm = self.exact_norm();
        let factor = match norm as f32 {
            narrow if narrow.is_finite() => max / (narrow + 1e-6),
            _ => (f64::from(max) / norm) as f32,
        };
        if norm.is_finite() && factor < 1.0 {
            self.clipped = true;
            if factor >= f32::MIN_POSITIVE {
                scale_all(&mut self.grads, factor);
            } else {
                // Too small for an f32 of full precision: in two steps.
                let half = (f64::from(max) / norm).sqrt() as f32;
                scale_all(&mut self.grads, half);
                scale_all(&mut self.grads, half);
            }
        }
        self
    }

    /// What `precision` would make of each parameter's gradient at each of `scales`.
    ///
    /// Take the gradients from a step in f32, or in half precision at a scale that suits: what was
    /// already lost in the backward pass cannot be counted. Waits for the device once. Counts are
    /// exact up to 2^24 values per parameter and rounded to f32 beyond.
    ///
    /// # Panics
    ///
    /// If `precision` is [`Precision::Input`].
    pub fn underflow(&self, precision: Precision, scales: &[f32]) -> UnderflowReport {
        let dtype = precision
            .dtype()
            .expect("a report needs a precision to report on");
        let mut counts = Vec::new();
        if let Some(first) = self.grads.first() {
            let device = first.value.device();
            for grad in &self.grads {
                counts.push(grad.value.non_zero(&device));
                let losses = scales
                    .iter()
                    .map(|scale| grad.value.losses(dtype, *scale, &device));
                counts.extend(losses);
            }
            let data = read_back(counts);
            let rows = self.grads.iter().zip(data.chunks(1 + 3 * scales.len()));
            let rows = rows.map(|(grad, counts)| {
                let (non_zero, counts) = counts.split_first().expect("a chunk is not empty");
                let fraction = |count: f32| f64::from(count) / f64::from(*non_zero).max(1.0);
                UnderflowRow {
                    path: grad.path.clone(),
                    elements: grad.value.elements() as u64,
                    non_zero: *non_zero as u64,
                    at: counts
                        .chunks(3)
                        .map(|count| Losses {
                            flushed: fraction(count[0]),
                            subnormal: fraction(count[1]),
                            overflowed: fraction(count[2]),
                        })
                        .collect(),
                }
            });
            return UnderflowReport {
                precision,
                scales: scales.to_vec(),
                rows: rows.collect(),
            };
        }
        UnderflowReport {
            precision,
            scales: scales.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Whether [`clip_norm`](Self::clip_norm) changed the gradients.
    pub fn is_clipped(&self) -> bool {
        self.clipped
    }

    /// The norm, if it is known without a readback.
    pub(crate) fn known_norm(&self) -> Option<f32> {
        self.norm.map(|norm| norm as f32)
    }

    /// Whether the forward pass had overflowed already.
    pub(crate) fn forward_non_finite(&self) -> bool {
        !self.non_finite_forward.is_empty()
    }

    /// The gradients as Burn's optimizers take them.
    pub(crate) fn into_params(self) -> GradientsParams {
        let mut params = GradientsParams::new();
        for grad in self.grads {
            grad.value.register(grad.id, &mut params);
        }
        params
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use burn::nn::{BatchNorm, BatchNormConfig};
    use burn::optim::SgdConfig;

    use super::*;
    use crate::{DynamicScale, GradScaler, Policy, autocast, nn, ops};

    thread_local! {
        /// Readbacks of this thread.
        pub static READBACKS: Cell<usize> = const { Cell::new(0) };
    }

    fn readbacks<R>(body: impl FnOnce() -> R) -> (R, usize) {
        let before = READBACKS.get();
        let result = body();
        (result, READBACKS.get() - before)
    }

    #[derive(Module, Debug)]
    struct Model {
        norm: BatchNorm,
        /// In the memory of this machine.
        near: Param<Tensor<2>>,
        /// f64, which is left to Burn's operations as if it were on another device.
        far: Param<Tensor<2>>,
    }

    impl Model {
        fn new(device: &Device) -> Self {
            let far = Tensor::from_data([[1.0, 2.0]], (device, DType::F64));
            Self {
                norm: BatchNormConfig::new(2).init(device),
                near: Param::from_tensor(Tensor::from_data([[3.0, 4.0]], device)),
                far: Param::from_tensor(far),
            }
        }

        fn loss(&self, factor: f32) -> Tensor<1> {
            let x = Tensor::from_data([[1.0, 2.0], [3.0, 5.0]], &self.near.device());
            let x = nn::batch_norm(&self.norm, x).matmul(self.near.val().transpose());
            let far = self.far.val().mul_scalar(factor).sum();
            ops::mean(x) + far.cast(FloatDType::F32)
        }
    }

    #[test]
    fn a_step_waits_for_the_device_once() {
        let device = Device::flex().autodiff();
        for (factor, steps) in [(1.0, 1), (f32::INFINITY, 0)] {
            let mut optimizer = SgdConfig::new().init();
            let mut scaler = GradScaler::dynamic(DynamicScale::torch());
            let model = Model::new(&device);
            let ((_, outcome), count) = readbacks(|| {
                scaler.begin(&model);
                let loss = autocast(&Policy::f16(), || model.loss(factor));
                let first = scaler.scale(loss).backward(&model);
                let loss = autocast(&Policy::f16(), || model.loss(factor));
                let second = scaler.scale(loss).backward(&model);
                let grads = scaler.unscale(first.accumulate(second)).clip_norm(0.1);
                scaler.step(&mut optimizer, 0.1, model, grads)
            });
            assert_eq!((scaler.steps(), outcome.stepped()), (steps, steps == 1));
            assert_eq!(count, 1);
        }
    }

    #[test]
    fn a_disabled_scaler_waits_for_clipping_only() {
        let device = Device::flex().autodiff();
        for (clip, reads) in [(false, 0), (true, 1)] {
            let mut scaler = GradScaler::disabled();
            let model = Model::new(&device);
            let (_, count) = readbacks(|| {
                scaler.begin(&model);
                let grads = scaler.scale(model.loss(1.0)).backward(&model);
                let mut grads = scaler.unscale(grads);
                if clip {
                    grads = grads.clip_norm(0.1);
                }
                scaler.step(&mut SgdConfig::new().init(), 0.1, model, grads)
            });
            assert_eq!(count, reads);
        }
    }
}
