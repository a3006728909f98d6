//! Models that cannot be edited, as one operation.

use std::any::Any;
use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, FloatDType, Int, Tensor};

use super::operands::module_in;
use crate::cast::convert;
use crate::observe::is_idle;
use crate::paths::parameter_paths;
use crate::precision::is_plain;
use crate::scope::{Forced, module_precision, target, with_forced};
use crate::statistics::{Snapshot, flush, statistics_ids};
use crate::{Op, Precision, cast_param, observe};

/// What a model takes: its float tensors are cast at the border, all else goes through.
pub trait Inputs: Clone {
    /// The inputs with each float tensor in `dtype`; f64 and quantized ones stay as they are.
    fn in_dtype(self, dtype: FloatDType) -> Self;
}

impl<const D: usize> Inputs for Tensor<D> {
    fn in_dtype(self, dtype: FloatDType) -> Self {
        convert(self, dtype)
    }
}

macro_rules! as_they_are {
    ($($inputs:ty),*) => {$(
        impl<const D: usize> Inputs for $inputs {
            fn in_dtype(self, _: FloatDType) -> Self {
                self
            }
        }
    )*};
}

as_they_are!(Tensor<D, Int>, Tensor<D, Bool>);

impl<I: Inputs> Inputs for Option<I> {
    fn in_dtype(self, dtype: FloatDType) -> Self {
        self.map(|inputs| inputs.in_dtype(dtype))
    }
}

impl<I: Inputs> Inputs for Vec<I> {
    fn in_dtype(self, dtype: FloatDType) -> Self {
        let inputs = self.into_iter().map(|inputs| inputs.in_dtype(dtype));
        inputs.collect()
    }
}

macro_rules! tuples {
    ($(($($name:ident)+))*) => {$(
        impl<$($name: Inputs),+> Inputs for ($($name,)+) {
            #[allow(non_snake_case, reason = "a value is named after its type")]
            fn in_dtype(self, dtype: FloatDType) -> Self {
                let ($($name,)+) = self;
                ($($name.in_dtype(dtype),)+)
            }
        }
    )*};
}

tuples!((A B) (A B C) (A B C D));

/// Runs a model that cannot be edited as one operation, [`Op::Model`]: its inputs and its parameters are
/// cast to the compute dtype, and all that it does is done in that. Gradients reach the f32 parameters.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
/// use burn::tensor::{DType, Device, Tensor};
/// use halfseg_amp::{Policy, autocast, nn};
///
/// // Of another crate, say.
/// #[derive(Module, Debug)]
/// struct Encoder {
///     linear: Linear,
///     norm: BatchNorm,
/// }
///
/// impl Encoder {
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> {
///         self.norm.forward(self.linear.forward(x))
///     }
/// }
///
/// let device = Device::flex().autodiff();
/// let encoder = Encoder {
///     linear: LinearConfig::new(4, 8).init(&device),
///     norm: BatchNormConfig::new(8).init(&device),
/// };
/// let x = Tensor::<2>::ones([3, 4], &device);
/// let y = autocast(&Policy::bf16(), || nn::whole(&encoder, x, |encoder, x| encoder.forward(x)));
/// assert_eq!(y.dtype(), DType::BF16);
/// ```
///
/// That is what `model.bfloat16()` is in PyTorch, with f32 master weights: norms, softmax and sums are in
/// half precision too. Take bf16. In f16 batch norm overflows where a value is 256 away from the mean, and
/// the scaler then skips every step. Running statistics stay f32, and each update is rounded to half
/// precision: with a momentum of 0.1 they were within 3 % of those of a model in f32 in bf16, and within
/// 0.5 % in f16.
///
/// A policy may give the model a precision of its own, all of it the same. Outside scopes and under a
/// disabled policy this is `forward(model, inputs)`.
///
/// # Panics
///
/// As `forward`, which panics where it makes f32 tensors of its own that meet those in half precision, as
/// burn-nn's recurrent layers do; and if the policy gives a part of the model another precision than the
/// rest.
pub fn whole<M: Module, I: Inputs, const D: usize>(
    model: &M,
    inputs: I,
    forward: impl Fn(&M, I) -> Tensor<D>,
) -> Tensor<D> {
    if is_idle() {
        return forward(model, inputs);
    }
    let run = || {
        observe(Op::Model, "model", inputs, |inputs| {
            match target(Op::Model) {
                Some(dtype) => in_dtype(model, dtype, inputs, &forward),
                None => forward(model, inputs),
            }
        })
    };
    match override_of(model) {
        Some(precision) => with_forced(Forced::Module(precision), run),
        None => run(),
    }
}

/// The precision that the policy gives to all parts of a model.
fn override_of<M: Module>(model: &M) -> Option<Precision> {
    let parameters = parameter_paths(model);
    let first = parameters.first()?;
    let common = module_precision(first.id);
    for parameter in &parameters {
        let own = module_precision(parameter.id);
        assert!(
            own == common,
            "a model that runs as a whole has one precision, but the policy gives {} to `{}` and {} to `{}`",
            named(common),
            first.path,
            named(own),
            parameter.path
        );
    }
    common
}

fn named(precision: Option<Precision>) -> String {
    precision.map_or("none of its own".to_owned(), |own| own.to_string())
}

fn in_dtype<M: Module, I: Inputs, const D: usize>(
    model: &M,
    dtype: FloatDType,
    inputs: I,
    forward: impl Fn(&M, I) -> Tensor<D>,
) -> Tensor<D> {
    let inputs = inputs.in_dtype(dtype);
    let statistics = statistics_ids(model);
    if statistics.is_empty() {
        return forward(&module_in(Op::Model, model, dtype), inputs);
    }
    let copy = with_own_statistics(model, dtype, &statistics);
    let before = Snapshot::of(&copy);
    let output = forward(&copy, inputs);
    if output.is_autodiff() {
        follow(model, &before, &copy, &statistics);
    }
    output
}

/// A copy with the parameters and running statistics of `model` in `dtype`. Gradients of its parameters
/// reach those of `model`; its statistics are its own, where those of a clone would be the model's.
fn with_own_statistics<M: Module>(
    model: &M,
    dtype: FloatDType,
    statistics: &HashSet<ParamId>,
) -> M {
    type Values = HashMap<ParamId, Box<dyn Any>>;
    struct Collect<'a>(&'a HashSet<ParamId>, Values, bool);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.0.contains(&param.id) {
                let value = cast_param(Op::Model, param);
                self.2 |= value.is_autodiff();
                self.1.insert(param.id, Box::new(value));
            }
        }
    }
    struct Replace(FloatDType, Values);
    impl ModuleMapper for Replace {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = self.1.get(&param.id);
            let value = match value.and_then(|value| value.downcast_ref::<Tensor<D>>()) {
                Some(value) => value.clone(),
                None => param.base(),
            };
            let value = match is_plain(value.dtype()) {
                true => convert(value, self.0),
                false => value,
            };
            Param::initialized(param.id, value)
        }
    }
    let mut collect = Collect(statistics, Values::new(), false);
    model.visit(&mut collect);
    // `valid` shares no statistics with the model, and no graph either: its parameters are replaced.
    let copy = match collect.2 {
        true => model.valid().train(),
        false => model.valid(),
    };
    copy.map(&mut Replace(dtype, collect.1))
}

/// Moves the running statistics of `model` as far as those of `copy` have moved since `before`.
fn follow<M: Module>(model: &M, before: &Snapshot, copy: &M, statistics: &HashSet<ParamId>) {
    struct Moved<'a> {
        statistics: &'a HashSet<ParamId>,
        before: &'a Snapshot,
        by: HashMap<ParamId, Box<dyn Any>>,
    }
    impl ModuleVisitor for Moved<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(before) = self.before.get::<D>(param.id)
                && self.statistics.contains(&param.id)
            {
                let wide = |x: Tensor<D>| x.without_autodiff().cast(FloatDType::F32);
                let by = wide(param.base()).sub(wide(before));
                self.by.insert(param.id, Box::new(by));
            }
        }
    }
    struct Move(HashMap<ParamId, Box<dyn Any>>);
    impl ModuleMapper for Move {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let by = self.0.get(&param.id);
            let Some(by) = by.and_then(|by| by.downcast_ref::<Tensor<D>>()) else {
                return param;
            };
            let value = param.base();
            let moved = value.clone().without_autodiff().add(by.clone());
            let moved = match value.is_autodiff() {
                true => Tensor::from_inner(moved),
                false => moved,
            };
            Param::initialized(param.id, moved)
        }
    }
    flush(copy);
    let mut moved = Moved {
        statistics,
        before,
        by: HashMap::new(),
    };
    copy.visit(&mut moved);
    flush(model);
    // Mapping a clone writes through to the statistics, which it shares with the model.
    drop(model.clone().map(&mut Move(moved.by)));
}
