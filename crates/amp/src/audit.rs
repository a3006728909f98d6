//! The precision audit: what each operation of a model loses in half precision.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use burn::module::{Module, ParamId};
use burn::tensor::{FloatDType, Tensor};
use serde::Serialize;

use crate::paths::paths_by_id;
use crate::report::count_readback;
use crate::scope::{Forced, with_forced};
use crate::statistics::Snapshot;
use crate::{Op, Policy, Precision, Site, autocast};

thread_local! {
    static AUDIT: RefCell<Option<Audit>> = const { RefCell::new(None) };
}

/// An audit that is under way on this thread.
struct Audit {
    dtype: FloatDType,
    policy: Policy,
    rows: Vec<AuditRow>,
    /// The row of each operation, by the parameter or name that identifies it.
    places: HashMap<(Op, Key), usize>,
    paths: HashMap<ParamId, String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Param(ParamId),
    Name(String),
}

/// What one operation lost, over all its calls.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AuditRow {
    /// The path of the module that the operation belongs to, or its name if it owns no parameter.
    pub site: String,
    /// Whether `site` is the path of a module.
    pub is_module: bool,
    /// The operation.
    pub op: Op,
    /// The precision that the audited policy gives it, by the module if that has one of its own.
    pub policy: Precision,
    /// How often it ran.
    pub calls: usize,
    /// Values that it produced.
    pub elements: u64,
    /// The l2 norm of the error by that of the f32 result, the largest over all calls.
    pub relative_error: f64,
    /// The largest error of a single value.
    pub max_abs_error: f64,
    /// Values that are finite in f32 and infinite or NaN in half precision.
    pub non_finite: u64,
    /// Values that are not zero in f32 and zero in half precision.
    pub flushed: u64,
}

/// The result of an [`audit`]: operations by the error that half precision causes, worst first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AuditReport {
    /// The half precision.
    pub precision: Precision,
    /// One row per operation.
    pub rows: Vec<AuditRow>,
    #[serde(skip)]
    policy: Policy,
}

/// Runs `forward`, and each of its operations a second time in the compute dtype of `policy`.
///
/// Every operation that goes through [`observe`](crate::observe()), which those of [`ops`](crate::ops)
/// and [`nn`](crate::nn) do, is run in f32 and in half precision on the same input, and the two
/// results are compared. Operations that the policy keeps in f32 are run in half precision too, so
/// the report shows what that saves. The f32 result goes on, so each error is an operation's own.
/// Running statistics of `model` are as before afterwards.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Tensor};
/// use halfseg_amp::{Policy, audit, nn, ops};
///
/// let device = Device::flex();
/// let model = LinearConfig::new(8, 4).init(&device);
/// let x = Tensor::<2>::ones([2, 8], &device).mul_scalar(300.0);
/// let (_, report) = audit(&model, &Policy::f16(), || ops::exp(nn::linear(&model, x)));
/// assert_eq!(report.rows.len(), 2);
/// println!("{report}");
/// // What errs by more than 1 % runs in f32:
/// let policy = report.policy(0.01);
/// # assert!(policy.is_enabled());
/// ```
///
/// # Panics
///
/// If the policy is disabled, or inside another audit; and as [`autocast`](crate::autocast()) of a policy
/// that names modules and is not bound to the model.
pub fn audit<M: Module, R>(
    model: &M,
    policy: &Policy,
    forward: impl FnOnce() -> R,
) -> (R, AuditReport) {
    let precision = policy.compute();
    let Some(dtype) = precision.dtype() else {
        panic!("an audit needs a policy with a compute dtype, such as `Policy::f16()`");
    };
    let audit = Audit {
        dtype,
        policy: policy.clone(),
        rows: Vec::new(),
        places: HashMap::new(),
        paths: paths_by_id(model),
    };
    AUDIT.with_borrow_mut(|current| {
        assert!(current.is_none(), "an audit cannot run inside another");
        *current = Some(audit);
    });
    /// Ends the audit also if the forward pass panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            AUDIT.take();
        }
    }
    let _end = End;
    let mut snapshot = Snapshot::default();
    snapshot.add(model);
    let result = autocast(policy, forward);
    snapshot.restore(model);

    let mut rows = AUDIT.take().expect("the audit is still there").rows;
    rows.sort_by(|a, b| {
        let badness = |row: &AuditRow| (row.non_finite > 0, row.relative_error);
        let (a, b) = (badness(a), badness(b));
        b.0.cmp(&a.0).then(b.1.total_cmp(&a.1))
    });
    (
        result,
        AuditReport {
            precision,
            rows,
            policy: policy.clone(),
        },
    )
}

/// Whether there is an audit on this thread.
pub(crate) fn is_running() -> bool {
    AUDIT.with_borrow(Option::is_some)
}

/// Runs an operation in both precisions, if there is an audit on this thread.
pub(crate) fn run<I: Clone, const D: usize>(
    op: Op,
    site: Site<'_>,
    input: &I,
    body: &impl Fn(I) -> Tensor<D>,
) -> Option<Tensor<D>> {
    let dtype = AUDIT.with_borrow(|audit| audit.as_ref().map(|audit| audit.dtype))?;
    let reference = with_forced(Forced::All(FloatDType::F32), || body(input.clone()));
    let low = with_forced(Forced::All(dtype), || body(input.clone()));
    let errors = Errors::between(reference.clone(), low);
    AUDIT.with_borrow_mut(|audit| {
        if let Some(audit) = audit {
            audit.add(op, site, errors);
        }
    });
    Some(reference)
}

/// The differences of one call.
struct Errors {
    elements: u64,
    relative: f64,
    max_abs: f64,
    non_finite: u64,
    flushed: u64,
}

impl Errors {
    fn between<const D: usize>(reference: Tensor<D>, low: Tensor<D>) -> Self {
        let reference = reference.detach().without_autodiff().cast(FloatDType::F32);
        let low = low.detach().without_autodiff().cast(FloatDType::F32);
        let elements = reference.shape().num_elements() as u64;
        let finite = reference.clone().is_finite();
        let lost = finite.clone().bool_and(low.clone().is_finite().bool_not());
        let flushed = reference
            .clone()
            .not_equal_scalar(0.0)
            .bool_and(low.clone().equal_scalar(0.0))
            .float();
        let unusable = finite.bool_not().bool_or(lost.clone());
        let reference = reference.mask_fill(unusable.clone(), 0.0);
        let low = low.mask_fill(unusable, 0.0);
        // Relative to the largest value, so that no square leaves the range of f32.
        let largest = reference.clone().abs().max().clamp_min(f32::MIN_POSITIVE);
        let unit = largest.clone().reshape([1; D]);
        let difference = low.sub(reference.clone()).div(unit.clone());
        let reference = reference.div(unit);
        let numbers = Tensor::cat(
            vec![
                difference.clone().square().sum(),
                reference.square().sum(),
                difference.abs().max().mul(largest),
                lost.float().sum(),
                flushed.sum(),
            ],
            0,
        );
        count_readback();
        let numbers = numbers.into_data();
        let numbers = numbers.as_slice::<f32>().expect("the sums are f32");
        let relative = match (numbers[0], numbers[1]) {
            (0.0, _) => 0.0,
            (error, reference) => (f64::from(error) / f64::from(reference)).sqrt(),
        };
        Self {
            elements,
            relative,
            max_abs: numbers[2].into(),
            non_finite: numbers[3] as u64,
            flushed: numbers[4] as u64,
        }
    }
}

impl Audit {
    fn add(&mut self, op: Op, site: Site<'_>, errors: Errors) {
        let key = match site {
            Site::Param(id) => Key::Param(id),
            Site::Name(name) => Key::Name(name.to_owned()),
        };
        let (paths, policy) = (&self.paths, &self.policy);
        let rows = &mut self.rows;
        let place = *self.places.entry((op, key)).or_insert_with(|| {
            let (name, is_module) = match site {
                Site::Name(name) => (name.to_owned(), false),
                Site::Param(id) => match paths.get(&id).map(|path| path.rsplit_once('.')) {
                    // The path of the module is that of its parameter without the last name.
                    Some(Some((module, _))) => (module.to_owned(), true),
                    _ => (op.to_string(), false),
                },
            };
            let exception = match site {
                Site::Param(id) => policy.module_precision(id),
                Site::Name(_) => None,
            };
            rows.push(AuditRow {
                site: name,
                is_module,
                op,
                policy: exception.unwrap_or_else(|| policy.precision(op)),
                calls: 0,
                elements: 0,
                relative_error: 0.0,
                max_abs_error: 0.0,
                non_finite: 0,
                flushed: 0,
            });
            rows.len() - 1
        });
        let row = &mut self.rows[place];
        row.calls += 1;
        row.elements += errors.elements;
        row.relative_error = row.relative_error.max(errors.relative);
        row.max_abs_error = row.max_abs_error.max(errors.max_abs);
        row.non_finite += errors.non_finite;
        row.flushed += errors.flushed;
    }
}

impl AuditReport {
    /// The audited policy, with f32 for every operation that overflows in half precision or whose
    /// relative error is above `max_relative_error`.
    ///
    /// Operations that own parameters are exempted one by one, others by kind. What the audited
    /// policy runs in f32 stays in f32, however small its error.
    pub fn policy(&self, max_relative_error: f64) -> Policy {
        let bad = self
            .rows
            .iter()
            .filter(|row| row.non_finite > 0 || row.relative_error > max_relative_error)
            .filter(|row| row.policy != Precision::F32);
        bad.fold(self.policy.clone(), |policy, row| {
            if row.is_module {
                policy.with_module(&row.site, Precision::F32)
            } else {
                policy.with_op(row.op, Precision::F32)
            }
        })
    }
}

impl fmt::Display for AuditReport {
    /// A table, one operation a line, worst first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .rows
            .iter()
            .map(|row| row.site.len())
            .max()
            .unwrap_or(0)
            .max(4);
        writeln!(
            f,
            "{:width$}  {:13}  {:6}  {:>10}  {:>10}  {:>10}  {:>8}",
            "site", "op", "policy", "rel error", "max error", "overflows", "flushed"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:width$}  {:13}  {:6}  {:>10.2e}  {:>10.2e}  {:>10}  {:>7.3}%",
                row.site,
                row.op.to_string(),
                row.policy.to_string(),
                row.relative_error,
                row.max_abs_error,
                row.non_finite,
                100.0 * row.flushed as f64 / row.elements.max(1) as f64,
            )?;
        }
        Ok(())
    }
}
