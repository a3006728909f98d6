//! Losses and gradients that are scaled.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, FloatDType, Gradients, Tensor};

use super::forward::ForwardFlags;
use super::measure::{measure_large, read_back, scale_all};
use super::numbers::{Numbers, plain};
use super::round::Round;
use super::slot::{Grad, Slot};
use super::unscaled::UnscaledGrads;
use crate::cache::forget_consumed;
use crate::paths::Place;
use crate::statistics::flush;

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
            place: Place,
            found: Vec<Grad>,
            forward: Vec<(String, Box<dyn Slot>)>,
        }
        impl ModuleVisitor for Visitor<'_> {
            fn enter_module(&mut self, name: &str, container: &str) {
                self.place.enter(name, container);
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.place.leave();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if self.round.statistics.contains(&param.id) {
                    let value = param.base().without_autodiff();
                    let path = self.place.path().to_owned();
                    self.forward.push((path, Box::new(value)));
                }
                if !param.is_require_grad() {
                    return;
                }
                let Some(value) = param.base().grad_remove(self.grads) else {
                    return;
                };
                let path = self.place.path().to_owned();
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
        let mut visitor = Visitor {
            grads: &mut self.grads,
            round: &self.round,
            place: Place::default(),
            found: Vec::new(),
            forward: Vec::new(),
        };
        model.visit(&mut visitor);
        let Visitor {
            found, mut forward, ..
        } = visitor;
        let mut losses = Vec::new();
        if self.round.checked {
            forward.push((LOSS.to_owned(), Box::new(self.raw.clone())));
            losses.push(self.raw.clone().cast(FloatDType::F32));
        }
        let forward = match forward.is_empty() {
            true => Vec::new(),
            false => vec![ForwardFlags::of(forward, &self.raw.device())],
        };
        ScaledGrads {
            grads: found,
            forward,
            losses,
            numbers: Vec::new(),
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
    forward: Vec<ForwardFlags>,
    /// The losses before scaling, in f32, on the device of the flags.
    losses: Vec<Tensor<1>>,
    /// What the program wants read with them.
    numbers: Vec<Tensor<1>>,
    round: Round,
}

impl ScaledGrads {
    /// Has numbers read in the transfer that tells whether the gradients are finite, so that a step waits
    /// for its device once: an accuracy, or the parts of a loss. The loss itself comes without being asked
    /// for, in the [outcome](crate::StepOutcome) of the step.
    ///
    /// ```
    /// # use burn::nn::LinearConfig;
    /// # use burn::optim::SgdConfig;
    /// # use burn::tensor::{Device, Tensor};
    /// # use halfseg_amp::{DynamicScale, GradScaler, Policy, autocast, nn, ops};
    /// # let device = Device::flex().autodiff();
    /// # let model = LinearConfig::new(8, 4).init(&device);
    /// # let x = Tensor::<2>::ones([2, 8], &device);
    /// # let mut optimizer = SgdConfig::new().init();
    /// let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    /// scaler.begin(&model);
    /// let y = autocast(&Policy::f16(), || nn::linear(&model, x));
    /// let largest = y.clone().max();
    /// let grads = scaler.scale(ops::mean(y)).backward(&model).with_numbers(largest);
    /// let mut grads = scaler.unscale(grads);
    /// let numbers = grads.take_numbers();
    /// let (model, outcome) = scaler.step(&mut optimizer, 0.1, model, grads);
    /// println!("{outcome}, largest output {}", numbers.read()[0]);
    /// # let _ = model;
    /// ```
    ///
    /// # Shapes
    /// `numbers`: `[count]`, read in f32
    pub fn with_numbers(mut self, numbers: Tensor<1>) -> Self {
        self.numbers.push(plain(numbers));
        self
    }

    /// What was given to [`with_numbers`](Self::with_numbers), for gradients that are not unscaled: those
    /// that another device makes the step with.
    pub fn take_numbers(&mut self) -> Numbers {
        Numbers::new(std::mem::take(&mut self.numbers))
    }

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
        let here = |number: Tensor<1>| match &device {
            Some(device) => number.to_device(device),
            None => number,
        };
        let flags = other.forward.into_iter().map(|flags| ForwardFlags {
            finite: here(flags.finite),
            ..flags
        });
        self.forward.extend(flags);
        self.losses.extend(other.losses.into_iter().map(here));
        self.numbers.extend(other.numbers);
        self
    }

    /// The gradients of several devices that each computed a part of one step with a copy of the
    /// network. Every device has to call this. `gradients` gets all gradients, a row each, and gives the sums of
    /// the rows that all devices give, as an all-reduce does; `flags` does so with one row that holds the
    /// flags and losses of the forward pass, which together say afterwards whether that of any device
    /// overflowed and what the loss is. What was given to [`with_numbers`](Self::with_numbers) stays what this
    /// device gave.
    ///
    /// # Shapes
    /// Rows: f32 `[values]`, without autodiff, to the same
    ///
    /// # Panics
    /// If `gradients` gives another number of rows.
    pub fn summed(
        mut self,
        gradients: impl FnOnce(Vec<Tensor<1>>) -> Vec<Tensor<1>>,
        flags: impl FnOnce(Tensor<1>) -> Tensor<1>,
    ) -> ScaledGrads {
        let mut rows = Vec::with_capacity(self.grads.len());
        let parts = std::mem::take(&mut self.grads).into_iter().map(|grad| {
            let (row, from_row) = grad.value.into_row();
            rows.push(row);
            (grad.id, grad.path, from_row)
        });
        let parts: Vec<_> = parts.collect();
        let sums = gradients(rows);
        assert_eq!(sums.len(), parts.len(), "a sum for each gradient");
        let summed = parts.into_iter().zip(sums);
        let summed = summed.map(|((id, path, from_row), sum)| Grad {
            id,
            path,
            value: from_row(sum),
        });
        self.grads = summed.collect();
        if !self.forward.is_empty() {
            let finite = self.forward.iter().map(|flags| flags.finite.clone());
            let bad = Tensor::cat(finite.collect(), 0).sub_scalar(1.0).neg();
            let (count, losses) = (bad.dims()[0], self.losses.len());
            let row = flags(Tensor::cat([vec![bad], self.losses].concat(), 0));
            let finite = row.clone().narrow(0, 0, count).lower_scalar(0.5);
            let finite = finite.float().cast(FloatDType::F32);
            let mut start = 0;
            for flags in &mut self.forward {
                flags.finite = finite.clone().narrow(0, start, flags.names.len());
                start += flags.names.len();
            }
            let losses = (count..count + losses).map(|place| row.clone().narrow(0, place, 1));
            self.losses = losses.collect();
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
            loss: None,
            numbers: Numbers::new(self.numbers),
            squares: None,
            norm: None,
            clipped: false,
        };
        if !checked {
            return grads;
        }
        let device = match (self.forward.first(), grads.grads.first()) {
            (Some(flags), _) => flags.finite.device(),
            (None, Some(grad)) => grad.value.device(),
            (None, None) => return grads,
        };
        // The reciprocal in f64 first, as PyTorch does, so that odd scales round the same.
        let inverse = (1.0 / f64::from(scale)) as f32;
        let known = scale_all(&mut grads.grads, inverse);

        let names: Vec<_> = self.forward.iter().flat_map(|flags| &flags.names).collect();
        let flags = self.forward.iter().map(|flags| flags.finite.clone());
        let losses = self.losses.len();
        // After the multiplication: by the inverse of a scale below 1 a gradient may overflow.
        let measured = known.numbers(&grads.grads, &device);
        let asked = grads.numbers.waiting(&device);
        let known_here = asked.into_iter().chain(flags).chain(self.losses);
        let brought = read_back(known_here.chain(measured).collect());
        let brought = grads.numbers.take_from(&brought);
        let (forward, brought) = brought.split_at(names.len());
        let (losses, measured) = brought.split_at(losses);
        grads.loss = (!losses.is_empty()).then(|| losses.iter().sum());
        for (name, finite) in names.into_iter().zip(forward) {
            if *finite == 0.0 && !grads.non_finite_forward.contains(name) {
                grads.non_finite_forward.push(name.clone());
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
        grads.measured(squares);
        grads
    }
}
