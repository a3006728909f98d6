//! Which dtype each operation computes in, as a value.

mod bind;
mod file;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use crate::precision::is_plain;
use crate::statistics::statistics_ids;
use crate::support::unsupported;
use crate::{AmpError, Op, OpClass, Precision};

pub use bind::UnmatchedModule;

/// Which dtype each operation computes in.
///
/// A policy is a plain value: build it from a preset, change it with the `with_*` methods, keep it
/// in a JSON file, and put it in force with [`autocast`](crate::autocast()).
///
/// ```
/// use halfseg_amp::{Op, Policy, Precision};
///
/// let policy = Policy::f16().with_op(Op::Interpolate, Precision::F16);
/// assert_eq!(policy.precision(Op::Conv2d), Precision::F16);
/// assert_eq!(policy.precision(Op::Softmax), Precision::F32);
/// let text = serde_json::to_string(&policy)?;
/// assert_eq!(serde_json::from_str::<Policy>(&text)?, policy);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    param: Precision,
    compute: Precision,
    output: Precision,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ops: BTreeMap<Op, Precision>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    modules: BTreeMap<String, Precision>,
    /// `modules`, resolved to the parameters of models.
    #[serde(skip)]
    bound: Bound,
}

/// The override that holds for each parameter of the models that a policy is bound to, which are none
/// at first. Part of no comparison: it follows from `modules`.
#[derive(Clone, Debug, Default)]
struct Bound(Option<Arc<HashMap<ParamId, Option<Precision>>>>);

impl PartialEq for Bound {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::disabled()
    }
}

impl Policy {
    fn preset(compute: Precision) -> Self {
        Self {
            param: Precision::F32,
            compute,
            output: Precision::Input,
            ops: BTreeMap::new(),
            modules: BTreeMap::new(),
            bound: Bound::default(),
        }
    }

    /// Everything stays as it is, but for what is named by [`with_op`](Self::with_op) and
    /// [`with_module`](Self::with_module).
    pub fn disabled() -> Self {
        Self::preset(Precision::Input)
    }

    /// Convolutions and matrix products in f16, what needs range in f32, master weights in f32.
    pub fn f16() -> Self {
        Self::preset(Precision::F16)
    }

    /// Convolutions and matrix products in bf16, what needs precision in f32, master weights in
    /// f32.
    pub fn bf16() -> Self {
        Self::preset(Precision::Bf16)
    }

    /// The dtype that [`cast_params`](Self::cast_params) gives to weights. Keep f32 for training.
    pub fn with_param(mut self, precision: Precision) -> Self {
        self.param = precision;
        self
    }

    /// The dtype that [`cast_output`](Self::cast_output) gives to results.
    pub fn with_output(mut self, precision: Precision) -> Self {
        self.output = precision;
        self
    }

    /// Runs `op` in `precision` everywhere, [`Precision::Input`] meaning that nothing is cast.
    pub fn with_op(mut self, op: Op, precision: Precision) -> Self {
        self.ops.insert(op, precision);
        self
    }

    /// Runs every operation that owns a parameter below `path` (such as `decode_head.conv_seg`) in
    /// `precision`. The longest matching path wins, and wins over [`with_op`](Self::with_op).
    ///
    /// Such a policy must be [bound](Self::bind) to the model before use.
    pub fn with_module(mut self, path: impl Into<String>, precision: Precision) -> Self {
        self.modules.insert(path.into(), precision);
        self.bound = Bound::default();
        self
    }

    /// The compute dtype, [`Precision::Input`] for a disabled policy.
    pub fn compute(&self) -> Precision {
        self.compute
    }

    /// The dtype of weights.
    pub fn param(&self) -> Precision {
        self.param
    }

    /// The dtype of results.
    pub fn output(&self) -> Precision {
        self.output
    }

    /// The precisions that single operations are given.
    pub fn ops(&self) -> &BTreeMap<Op, Precision> {
        &self.ops
    }

    /// The precisions that modules are given, by path.
    pub fn modules(&self) -> &BTreeMap<String, Precision> {
        &self.modules
    }

    /// Whether the policy casts anything.
    pub fn is_enabled(&self) -> bool {
        let mut named = self.ops.values().chain(self.modules.values());
        self.compute != Precision::Input || named.any(|precision| *precision != Precision::Input)
    }

    /// Whether `device` computes in all precisions that the policy asks for.
    ///
    /// Operations ask the same when they cast, once per device and dtype, and panic; call this to
    /// know before the first batch.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use halfseg_amp::Policy;
    ///
    /// let policy = match Policy::bf16().check(&Device::flex()) {
    ///     Ok(()) => Policy::bf16(),
    ///     Err(error) => {
    ///         eprintln!("{error}");
    ///         Policy::disabled()
    ///     }
    /// };
    /// # assert_eq!(policy, Policy::bf16());
    /// ```
    ///
    /// # Errors
    ///
    /// [`AmpError::Unsupported`] names the device, the precision, and those that would work.
    pub fn check(&self, device: &Device) -> Result<(), AmpError> {
        let values = [&self.param, &self.compute, &self.output].into_iter();
        let named = self.ops.values().chain(self.modules.values());
        let mut errors = values
            .chain(named)
            .filter_map(|precision| unsupported(device, *precision));
        errors.next().map_or(Ok(()), Err)
    }

    /// The precision of `op` outside any module override.
    pub fn precision(&self, op: Op) -> Precision {
        if !self.is_enabled() {
            return Precision::Input;
        }
        if let Some(precision) = self.ops.get(&op) {
            return *precision;
        }
        match op.class() {
            OpClass::Compute => self.compute,
            OpClass::Full if self.compute != Precision::Input => Precision::F32,
            OpClass::Full => Precision::Input,
            OpClass::Input | OpClass::Widest | OpClass::Rejected => Precision::Input,
        }
    }

    /// Casts the weights of `model` to the parameter dtype, leaving running statistics and quantized
    /// weights alone.
    ///
    /// For inference. Training wants f32 master weights, which is what the presets ask for: there
    /// this changes nothing in a model that is f32 already.
    pub fn cast_params<M: Module>(&self, model: M) -> M {
        struct Caster {
            dtype: FloatDType,
            skip: HashSet<ParamId>,
        }
        impl ModuleMapper for Caster {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                if self.skip.contains(&param.id) || !is_plain(param.dtype()) {
                    return param;
                }
                let require_grad = param.is_require_grad();
                param.map(|value| {
                    let value = value.set_require_grad(false).cast(self.dtype);
                    if require_grad {
                        value.require_grad()
                    } else {
                        value
                    }
                })
            }
        }
        match self.param.dtype() {
            Some(dtype) => {
                let skip = statistics_ids(&model);
                model.map(&mut Caster { dtype, skip })
            }
            None => model,
        }
    }

    /// Casts a result to the output dtype.
    pub fn cast_output<const D: usize>(&self, output: Tensor<D>) -> Tensor<D> {
        match (self.is_enabled(), self.output.dtype()) {
            (true, Some(dtype)) => output.cast(dtype),
            _ => output,
        }
    }
}
