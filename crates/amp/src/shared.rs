//! A scaler behind a shared reference, for training loops that are not one's own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::optim::{GradientsParams, LearningRate};
use burn::tensor::Tensor;

use crate::{AmpError, GradScaler, Policy, StepOutcome, UnscaledGrads};

/// A scaler that a model, a schedule and the program hold together: for loops that compute gradients
/// behind a shared reference and call the optimizer themselves, as burn-train's `Learner` does.
///
/// The model is a field's length away from its `TrainStep`:
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::optim::GradientsParams;
/// use burn::tensor::{Device, Tensor};
/// use halfseg_amp::{DynamicScale, GradScaler, Policy, SharedScaler, nn, ops};
///
/// #[derive(Module, Debug)]
/// struct Model {
///     output: Linear,
///     #[module(skip)]
///     scaler: SharedScaler,
/// }
///
/// impl Model {
///     // What `TrainStep::step` gives as `TrainOutput { grads, item }`.
///     fn step(&self, x: Tensor<2>) -> GradientsParams {
///         self.scaler.gradients(&Policy::f16(), self, |model| {
///             ops::mean(nn::linear(&model.output, x))
///         })
///     }
/// }
///
/// let device = Device::flex().autodiff();
/// let scaler = SharedScaler::new(GradScaler::dynamic(DynamicScale::torch()));
/// let output = LinearConfig::new(4, 2).init(&device);
/// let model = Model { output, scaler: scaler.clone() };
/// assert_eq!(model.step(Tensor::ones([3, 4], &device)).len(), 2);
/// assert_eq!(scaler.scaler().steps(), 1);
/// ```
///
/// A skipped step has no gradients, and an optimizer that gets none leaves every parameter and its own
/// state as they are. A [`ScalerSchedule`] keeps the learning rate from moving on as well, and saves
/// the scaler with the schedule.
#[derive(Clone, Debug)]
pub struct SharedScaler(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    scaler: GradScaler,
    last: Option<StepOutcome>,
}

impl SharedScaler {
    /// Shares `scaler`.
    pub fn new(scaler: GradScaler) -> Self {
        Self(Arc::new(Mutex::new(Shared { scaler, last: None })))
    }

    /// The gradients of a whole step under `policy`: what
    /// [`GradScaler::gradients`] and [`UnscaledGrads::into_gradients`] give, or none if the step is to
    /// be skipped, which [`outcome`](Self::outcome) tells.
    ///
    /// Steps of several threads take turns, and `loss` must not ask this scaler for anything: it waits
    /// for itself then.
    ///
    /// # Panics
    ///
    /// As [`GradScaler::gradients`].
    pub fn gradients<M: Module>(
        &self,
        policy: &Policy,
        model: &M,
        loss: impl FnOnce(&M) -> Tensor<1>,
    ) -> GradientsParams {
        self.gradients_with(policy, model, loss, |grads| grads)
    }

    /// As [`gradients`](Self::gradients), with a `change` before they leave: clipping, say.
    ///
    /// # Panics
    ///
    /// As [`GradScaler::gradients`].
    pub fn gradients_with<M: Module>(
        &self,
        policy: &Policy,
        model: &M,
        loss: impl FnOnce(&M) -> Tensor<1>,
        change: impl FnOnce(UnscaledGrads) -> UnscaledGrads,
    ) -> GradientsParams {
        let mut shared = self.lock();
        let grads = change(shared.scaler.gradients(policy, model, loss));
        let (outcome, grads) = shared.scaler.decide(model, grads);
        shared.scaler.update();
        shared.last = Some(outcome);
        grads.unwrap_or_default()
    }

    /// What the last step did, `None` before the first.
    pub fn outcome(&self) -> Option<StepOutcome> {
        self.lock().last.clone()
    }

    /// A copy of the scaler as it is between steps, to save or to look at.
    pub fn scaler(&self) -> GradScaler {
        self.lock().scaler.clone()
    }

    /// Goes on with another scaler, a saved one say.
    pub fn set(&self, scaler: GradScaler) {
        *self.lock() = Shared { scaler, last: None };
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A step that panicked is given up; the next begins anew.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A schedule of learning rates that stands still while steps are skipped, and whose record holds the
/// state of the scaler, so that checkpoints of a learner that knows no scaler have it.
///
/// It has one rate, that of all parameters: what Burn's trait for schedules can say. Rates of groups of
/// the schedule that it is made from are not passed on.
#[derive(Clone)]
pub struct ScalerSchedule {
    schedule: ModuleLrScheduler,
    scaler: SharedScaler,
}

impl ScalerSchedule {
    /// `schedule`, for the steps that `scaler` lets through.
    pub fn new(schedule: impl Into<ModuleLrScheduler>, scaler: SharedScaler) -> Self {
        let schedule = schedule.into();
        Self { schedule, scaler }
    }
}

const SCHEDULE: &str = "schedule";

impl LrScheduler for ScalerSchedule {
    fn step(&mut self) -> LearningRate {
        let skipped = self.scaler.outcome().is_some_and(|last| !last.stepped());
        let rate = match skipped {
            true => self.schedule.clone().step(),
            false => self.schedule.step(),
        };
        rate.base()
    }

    fn to_record(&self) -> LrSchedulerRecord {
        let state = self.scaler.scaler().state;
        LrSchedulerRecord::new()
            .with_record(SCHEDULE, self.schedule.to_record())
            .with_scalar("scaler.scale", state.scale)
            .with_scalar("scaler.clean", state.clean)
            .with_scalar("scaler.hysteresis_left", state.hysteresis_left)
            .with_scalar("scaler.steps", state.steps)
            .with_scalar("scaler.skips", state.skips)
    }

    /// The settings of the scaler stay those of the program.
    ///
    /// # Panics
    ///
    /// If the record holds no state of a scaler, or none that the settings can lead to.
    fn load_record(&mut self, record: LrSchedulerRecord) {
        let restored = restore(self.scaler.scaler(), &record);
        self.scaler.set(restored.unwrap_or_else(|error| {
            panic!("the scaler's state in the record of the learning rate: {error}")
        }));
        let schedule = self.schedule.clone();
        self.schedule = schedule.load_record(record.record(SCHEDULE));
    }
}

fn restore(scaler: GradScaler, record: &LrSchedulerRecord) -> Result<GradScaler, AmpError> {
    let missing = |setting| AmpError::Setting {
        setting,
        found: f64::NAN,
        expected: "a number in the record",
    };
    let mut state = scaler.state;
    state.scale = record
        .scalar("scaler.scale")
        .ok_or(missing("saved scale"))?;
    state.clean = record
        .scalar("scaler.clean")
        .ok_or(missing("saved number of clean steps"))?;
    state.hysteresis_left = record
        .scalar("scaler.hysteresis_left")
        .ok_or(missing("saved hysteresis"))?;
    state.steps = record
        .scalar("scaler.steps")
        .ok_or(missing("saved number of steps"))?;
    state.skips = record
        .scalar("scaler.skips")
        .ok_or(missing("saved number of skipped steps"))?;
    GradScaler::try_from(state)
}
