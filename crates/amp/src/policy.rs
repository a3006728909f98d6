//! Which dtype each operation computes in, as a value.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{FloatDType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::paths::parameter_paths;
use crate::statistics::statistics_ids;
use crate::{AmpError, Op, OpClass};

/// A floating-point precision as policies name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// IEEE half: 11 bits of significand, largest value 65504, smallest normal 6.1e-5.
    F16,
    /// bfloat16: 8 bits of significand, the range of f32.
    Bf16,
    /// IEEE single.
    F32,
    /// Whatever the operation is given.
    Input,
}

impl Precision {
    /// Burn's name of the precision, `None` for [`Precision::Input`].
    pub fn dtype(self) -> Option<FloatDType> {
        match self {
            Precision::F16 => Some(FloatDType::F16),
            Precision::Bf16 => Some(FloatDType::BF16),
            Precision::F32 => Some(FloatDType::F32),
            Precision::Input => None,
        }
    }
}

impl std::fmt::Display for Precision {
    /// The name used in policy files: `f16`, `bf16`, `f32` or `input`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

impl Precision {
    const ALL: [Precision; 4] = [
        Precision::F16,
        Precision::Bf16,
        Precision::F32,
        Precision::Input,
    ];
}

/// An override of a [`Policy`] whose path names no module of the model, from [`Policy::bind`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnmatchedModule {
    /// The path that matches nothing.
    pub path: String,
    /// The module of the model whose path looks most like it; empty for a model without any.
    pub nearest: String,
}

impl std::fmt::Display for UnmatchedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, nearest } = self;
        write!(
            f,
            "the model has no module `{path}`; the nearest is `{nearest}`"
        )
    }
}

/// The candidate that looks most like `name`.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(name, candidate);
    candidates
        .into_iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .unwrap_or_default()
        .to_owned()
}

/// Which dtype each operation computes in.
///
/// A policy is a plain value: build it from a preset, change it with the `with_*` methods, keep it
/// in a JSON file, and put it in force with [`autocast`](crate::autocast).
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
    /// `modules`, resolved to the parameters of one model.
    #[serde(skip)]
    bound: Option<Bound>,
}

/// The overrides that hold for each parameter. Part of no comparison: it follows from `modules`.
#[derive(Clone, Debug)]
struct Bound(Arc<HashMap<ParamId, Precision>>);

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
            bound: None,
        }
    }

    /// Everything stays as it is.
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
        self.bound = None;
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
        self.compute != Precision::Input
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
            OpClass::Full => Precision::F32,
            OpClass::Input | OpClass::Widest | OpClass::Rejected => Precision::Input,
        }
    }

    /// Resolves the module overrides to the parameters of `model`, and returns those that match
    /// nothing in it: a caller that reads policy files should report them.
    ///
    /// Parameters keep their identity through optimizer steps; bind again after loading a
    /// checkpoint that renames them.
    #[must_use = "overrides that match nothing have no effect: report them"]
    pub fn bind<M: Module>(&mut self, model: &M) -> Vec<UnmatchedModule> {
        let parameters = parameter_paths(model);
        let mut unmatched = Vec::new();
        let mut bound = HashMap::new();
        // Shorter paths first, so that longer ones overwrite them.
        let mut modules: Vec<_> = self.modules.iter().collect();
        modules.sort_by_key(|(path, _)| path.len());
        for (path, precision) in modules {
            let mut found = false;
            for parameter in &parameters {
                let rest = parameter.path.strip_prefix(path.as_str());
                if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                    bound.insert(parameter.id, *precision);
                    found = true;
                }
            }
            if !found {
                // Every module on the way from the root to a parameter.
                let above = parameters.iter().flat_map(|parameter| {
                    let path = parameter.path.as_str();
                    path.match_indices('.').map(|(end, _)| &path[..end])
                });
                unmatched.push(UnmatchedModule {
                    path: path.clone(),
                    nearest: nearest(path, above),
                });
            }
        }
        self.bound = Some(Bound(Arc::new(bound)));
        unmatched.sort_by(|a, b| a.path.cmp(&b.path));
        unmatched
    }

    /// The override for operations that own the parameter `id`.
    pub(crate) fn module_precision(&self, id: ParamId) -> Option<Precision> {
        if self.modules.is_empty() || !self.is_enabled() {
            return None;
        }
        let Some(bound) = &self.bound else {
            panic!(
                "the policy has precisions for the modules {:?}, which nothing connects to a \
                 model: call `policy.bind(&model)` before `autocast`",
                self.modules.keys().collect::<Vec<_>>()
            );
        };
        bound.0.get(&id).copied()
    }

    /// Casts the weights of `model` to the parameter dtype, leaving running statistics alone.
    ///
    /// For inference. Training wants f32 master weights, which is what the presets ask for: there
    /// this changes nothing in a model that is f32 already.
    pub fn cast_params<M: Module>(&self, model: M) -> M {
        struct Caster {
            dtype: FloatDType,
            skip: std::collections::HashSet<ParamId>,
        }
        impl ModuleMapper for Caster {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                if self.skip.contains(&param.id) {
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

    /// Reads a policy from a JSON file.
    ///
    /// ```json
    /// {
    ///   "compute": "f16",
    ///   "ops": { "interpolate": "f16" },
    ///   "modules": { "decode_head.conv_seg": "f32" }
    /// }
    /// ```
    ///
    /// `compute` must be there: without it the policy would do nothing.
    ///
    /// # Errors
    ///
    /// [`AmpError::Io`] if the file cannot be read, [`AmpError::Parse`] if it is no JSON object,
    /// [`AmpError::UnknownKey`] with the nearest valid name for a key or an operation that does
    /// not exist, [`AmpError::Value`] for what is no precision.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, AmpError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|source| AmpError::Io {
            path: path.to_owned(),
            source,
        })?;
        let parse = |source| AmpError::Parse {
            path: path.to_owned(),
            source,
        };
        let object: serde_json::Map<String, Value> = serde_json::from_str(&text).map_err(parse)?;
        check_file(path, &object)?;
        // From the text: the object has kept only the last of several equal keys.
        serde_json::from_str(&text).map_err(parse)
    }

    /// Writes the policy to a JSON file, which is complete or absent: it is written under a
    /// temporary name in the same folder and renamed.
    ///
    /// # Errors
    ///
    /// [`AmpError::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), AmpError> {
        let path = path.as_ref();
        let text = serde_json::to_string_pretty(self).expect("a policy is always valid JSON");
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let write = || {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            drop(file);
            fs::rename(&temporary, path)
        };
        write().map_err(|source| {
            // The rename did not happen; what is left of the temporary file is of no use.
            let _ = fs::remove_file(&temporary);
            AmpError::Io {
                path: path.to_owned(),
                source,
            }
        })
    }
}

/// The keys of a policy file.
const KEYS: [&str; 5] = ["compute", "param", "output", "ops", "modules"];

/// Finds the first key or value of a policy file that serde would refuse with less help.
fn check_file(path: &Path, object: &serde_json::Map<String, Value>) -> Result<(), AmpError> {
    let value = |key: String, expected: &'static str, found: String| AmpError::Value {
        path: path.to_owned(),
        key,
        expected,
        found,
    };
    let precision = |key: String, found: &Value| {
        let known = found
            .as_str()
            .is_some_and(|name| Precision::ALL.iter().any(|p| p.to_string() == name));
        let refused = || value(key, PRECISIONS, format!("`{found}`"));
        known.then_some(()).ok_or_else(refused)
    };
    let unknown = |key: String, nearest: String| AmpError::UnknownKey {
        path: path.to_owned(),
        key,
        nearest,
    };
    let ops: Vec<String> = Op::ALL.iter().map(Op::to_string).collect();
    for (key, found) in object {
        match (key.as_str(), found) {
            ("compute" | "param" | "output", found) => precision(key.clone(), found)?,
            ("ops" | "modules", Value::Object(entries)) => {
                for (name, found) in entries {
                    if key == "ops" && !ops.contains(name) {
                        let nearest = nearest(name, ops.iter().map(String::as_str));
                        return Err(unknown(format!("ops.{name}"), format!("ops.{nearest}")));
                    }
                    precision(format!("{key}.{name}"), found)?;
                }
            }
            ("ops" | "modules", found) => {
                let expected = "an object of names with precisions";
                return Err(value(key.clone(), expected, format!("`{found}`")));
            }
            (key, _) => return Err(unknown(key.to_owned(), nearest(key, KEYS))),
        }
    }
    match object.contains_key("compute") {
        true => Ok(()),
        false => Err(value("compute".into(), PRECISIONS, "nothing".into())),
    }
}

/// What stands for a precision in a policy file.
const PRECISIONS: &str = "f16, bf16, f32 or input";
