//! The gradient scaler.

use std::sync::Arc;

use burn::module::{Module, ParamId};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::cache::forget_weights;
use crate::grads::{Round, ScaledGrads, ScaledLoss, UnscaledGrads};
use crate::paths::fingerprint;
use crate::scale::ScaleState;
use crate::statistics::Snapshot;
use crate::{AmpError, DynamicScale, OverflowPass, ScaleUpdate, Scaling, StepOutcome};

/// Scales losses so that small gradients survive half precision, and skips steps that overflow.
///
/// One step is `begin`, forward pass, [`scale`](Self::scale), `backward`,
/// [`unscale`](Self::unscale), [`step`](Self::step):
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::optim::SgdConfig;
/// use burn::tensor::{Device, Tensor};
/// use halfseg_amp::{DynamicScale, GradScaler, Policy, StepOutcome, autocast, nn};
///
/// let device = Device::flex().autodiff();
/// let mut model: Linear = LinearConfig::new(4, 2).init(&device);
/// let mut optimizer = SgdConfig::new().init();
/// let mut scaler = GradScaler::dynamic(DynamicScale::torch());
///
/// scaler.begin(&model);
/// let x = Tensor::<2>::ones([3, 4], &device);
/// let loss = autocast(&Policy::f16(), || halfseg_amp::ops::mean(nn::linear(&model, x)));
/// let grads = scaler.scale(loss).backward(&model);
/// let grads = scaler.unscale(grads).clip_norm(10.0);
/// let (updated, outcome) = scaler.step(&mut optimizer, 0.1, model, grads);
/// model = updated;
/// match outcome {
///     StepOutcome::Stepped { .. } => {}
///     StepOutcome::Skipped { culprits, .. } => eprintln!("overflow in {culprits:?}"),
///     _ => {}
/// }
/// # assert!(outcome_is_step(&scaler));
/// # fn outcome_is_step(scaler: &GradScaler) -> bool { scaler.steps() == 1 }
/// # let _ = model;
/// ```
///
/// A skipped step leaves everything as it was before `begin`: parameters, optimizer state, and the
/// running statistics of batch norm.
#[derive(Serialize, Deserialize)]
#[serde(try_from = "ScaleState", into = "ScaleState")]
pub struct GradScaler {
    pub(crate) state: ScaleState,
    open: Option<Open>,
}

/// A step between `begin` and `update`.
struct Open {
    round: Round,
    /// The models that the step was begun for.
    models: Vec<(Option<ParamId>, usize)>,
    snapshot: Snapshot,
    overflow: bool,
    applied: bool,
}

impl GradScaler {
    /// A scaler with the given settings.
    ///
    /// # Panics
    ///
    /// If a setting is out of its range; [`Scaling::validate`] tells beforehand.
    pub fn new(scaling: Scaling) -> Self {
        if let Err(error) = scaling.validate() {
            panic!("{error}");
        }
        let state = ScaleState::new(scaling);
        Self { state, open: None }
    }

    /// Scales by 1, checks nothing and never skips: for f32 and bf16.
    pub fn disabled() -> Self {
        Self::new(Scaling::Disabled)
    }

    /// Scales by a constant, and skips steps with non-finite gradients.
    ///
    /// # Panics
    ///
    /// If `scale` is not from 2^-126 to 2^126.
    pub fn fixed(scale: f32) -> Self {
        Self::new(Scaling::Fixed(scale))
    }

    /// Scales by 512, the published models' recipe.
    pub fn mmcv_static() -> Self {
        Self::new(Scaling::mmcv_static())
    }

    /// Scales dynamically.
    ///
    /// # Panics
    ///
    /// If a setting is out of its range.
    pub fn dynamic(scale: DynamicScale) -> Self {
        Self::new(Scaling::Dynamic(scale))
    }

    /// The settings.
    pub fn scaling(&self) -> &Scaling {
        &self.state.scaling
    }

    /// Whether the scaler does anything.
    pub fn is_enabled(&self) -> bool {
        self.state.scaling != Scaling::Disabled
    }

    /// The scale that the next loss is multiplied by.
    pub fn current_scale(&self) -> f32 {
        self.state.scale
    }

    /// Steps since the beginning in which all gradients were finite.
    pub fn steps(&self) -> u64 {
        self.state.steps
    }

    /// Steps since the beginning in which some gradient was not.
    pub fn skips(&self) -> u64 {
        self.state.skips
    }

    /// Opens a step: call this before the forward pass, for each model that it trains.
    ///
    /// Remembers the running statistics of `model`, which the forward pass changes and a skipped
    /// step restores. ScaleState that a module changes behind Burn's back (its own `Mutex`, say) is not
    /// seen. Further calls within a step add models, or micro-batches of a model; they never replace
    /// what is remembered. A step that was given up without [`abandon`](Self::abandon), so that no loss
    /// and no gradient of it is left when the same model is begun again, is forgotten.
    ///
    /// # Panics
    ///
    /// If gradients were applied and the scale was not updated since.
    pub fn begin<M: Module>(&mut self, model: &M) {
        assert!(
            self.open.as_ref().is_none_or(|open| !open.applied),
            "`begin` after `apply` without `update`: the scale would never adapt, and a skipped step \
             would restore the running statistics of an earlier one"
        );
        let begun = fingerprint(model);
        let given_up = |open: &mut Open| open.models.contains(&begun) && !open.round.is_held();
        self.open.take_if(given_up);
        let checked = self.is_enabled();
        let scale = self.state.scale;
        let open = self.open.get_or_insert_with(|| Open {
            round: Round::new(scale, checked),
            models: Vec::new(),
            snapshot: Snapshot::default(),
            overflow: false,
            applied: false,
        });
        open.models.push(begun);
        if checked {
            open.snapshot.add(model);
            open.round.statistics = Arc::new(open.snapshot.ids().into_iter().collect());
        }
    }

    /// Closes a step without an update, as if it had not begun: running statistics of `model` are
    /// restored and the scale stays. For steps that are given up, after an error in the data say.
    pub fn abandon<M: Module>(&mut self, model: &M) {
        if let Some(open) = self.open.take() {
            open.snapshot.restore(model);
        }
        forget_weights(model);
    }

    /// Multiplies a loss by the scale, in f32.
    ///
    /// # Panics
    ///
    /// If [`begin`](Self::begin) was not called since the last step.
    pub fn scale(&self, loss: Tensor<1>) -> ScaledLoss {
        ScaledLoss::new(loss, self.open("scale").round.clone())
    }

    /// Divides gradients by the scale, checks that they are finite and takes their norm, on the
    /// device; waits for the device once, to read the results. Only where the squares of finite
    /// gradients are too large for the device's f32 it waits twice, to tell their norm all the same.
    ///
    /// What is finite while scaled, but no longer once it is unscaled, counts as an overflow: with a
    /// scale below 1 that can be.
    ///
    /// # Panics
    ///
    /// If the gradients belong to another step, or if there are none: the step would count as clean
    /// and change nothing.
    pub fn unscale(&mut self, grads: ScaledGrads) -> UnscaledGrads {
        self.check_round("unscale", grads.round());
        assert!(
            !grads.is_empty(),
            "`unscale` without gradients: the loss depends on no parameter of this model that has not \
             been taken already"
        );
        grads.unscale()
    }

    /// Updates the parameters if all gradients are finite, then the scale: the whole of
    /// [`apply`](Self::apply) and [`update`](Self::update) for one optimizer.
    ///
    /// # Panics
    ///
    /// If the gradients belong to another step.
    pub fn step<M: Module>(
        &mut self,
        optimizer: &mut ModuleOptimizer,
        lr: impl Into<ModuleLearningRate>,
        model: M,
        grads: UnscaledGrads,
    ) -> (M, StepOutcome) {
        self.step_with(model, grads, |model, grads| {
            optimizer.step(lr, model, grads)
        })
    }

    /// As [`step`](Self::step), with `update` in place of an optimizer: it is called only if all
    /// gradients are finite.
    ///
    /// # Panics
    ///
    /// If the gradients belong to another step.
    pub fn step_with<M: Module>(
        &mut self,
        model: M,
        grads: UnscaledGrads,
        update: impl FnOnce(M, GradientsParams) -> M,
    ) -> (M, StepOutcome) {
        let (model, outcome) = self.apply_with(model, grads, update);
        self.update();
        (model, outcome)
    }

    /// Updates the parameters of one of several optimizers; call [`update`](Self::update) after
    /// the last.
    ///
    /// # Panics
    ///
    /// If the gradients belong to another step.
    pub fn apply<M: Module>(
        &mut self,
        optimizer: &mut ModuleOptimizer,
        lr: impl Into<ModuleLearningRate>,
        model: M,
        grads: UnscaledGrads,
    ) -> (M, StepOutcome) {
        self.apply_with(model, grads, |model, grads| {
            optimizer.step(lr, model, grads)
        })
    }

    /// As [`apply`](Self::apply), with `update` in place of an optimizer.
    ///
    /// # Panics
    ///
    /// If the gradients belong to another step.
    pub fn apply_with<M: Module>(
        &mut self,
        model: M,
        grads: UnscaledGrads,
        update: impl FnOnce(M, GradientsParams) -> M,
    ) -> (M, StepOutcome) {
        match self.decide(&model, grads) {
            (outcome, Some(grads)) => (update(model, grads), outcome),
            (outcome, None) => (model, outcome),
        }
    }

    /// The gradients that an optimizer may have, `None` if the step is to be skipped, in which case
    /// the running statistics of `model` are what they were.
    pub(crate) fn decide<M: Module>(
        &mut self,
        model: &M,
        grads: UnscaledGrads,
    ) -> (StepOutcome, Option<GradientsParams>) {
        self.check_round("step", &grads.round);
        let (next, at_floor) = self.state.after(true);
        let open = self.open.as_mut().expect("the round was just checked");
        open.applied = true;
        let scale = open.round.scale;
        if !grads.is_finite() {
            open.overflow = true;
            open.snapshot.restore(model);
            let pass = match grads.forward_non_finite() {
                true => OverflowPass::Forward,
                false => OverflowPass::Backward,
            };
            let outcome = StepOutcome::Skipped {
                scale,
                next_scale: next.scale,
                culprits: grads.culprits,
                pass,
                non_finite_forward: grads.non_finite_forward,
                at_floor,
            };
            return (outcome, None);
        }
        let outcome = StepOutcome::Stepped {
            scale,
            grad_norm: grads.known_norm(),
            clipped: grads.is_clipped(),
            loss: grads.loss(),
        };
        // Before the update, so that it finds no second owner of the weights.
        forget_weights(model);
        (outcome, Some(grads.into_params()))
    }

    /// Closes a step of several optimizers: adapts the scale once, whichever of them overflowed. To
    /// choose the scale instead, call [`set_scale`](Self::set_scale).
    ///
    /// # Panics
    ///
    /// If no gradients were applied since the last update.
    pub fn update(&mut self) -> ScaleUpdate {
        let applied = self.open.as_ref().is_some_and(|open| open.applied);
        assert!(
            applied,
            "`update` needs a step before it: call `apply` for each optimizer"
        );
        let open = self.open.take().expect("the step is open");
        let from = self.state.scale;
        let (state, at_floor) = self.state.after(open.overflow);
        self.state = state;
        ScaleUpdate {
            from,
            to: self.state.scale,
            overflow: open.overflow,
            at_floor,
        }
    }

    /// Sets the scale of the next step, as `update(new_scale)` does in PyTorch: after
    /// [`step`](Self::step), or in place of [`update`](Self::update), which it then is. Clean steps
    /// and forgiven overflows count on from where they were. A disabled scaler stays as it is.
    ///
    /// # Errors
    ///
    /// [`AmpError::Setting`] if the scale is out of the bounds of the settings, or not from 2^-126 to
    /// 2^126; nothing is changed then.
    ///
    /// # Panics
    ///
    /// If a step is open whose gradients were not applied yet: they belong to the scale that is.
    pub fn set_scale(&mut self, scale: f32) -> Result<(), AmpError> {
        assert!(
            self.open.as_ref().is_none_or(|open| open.applied),
            "`set_scale` within a step: call it after `step`, or in place of `update`"
        );
        match &mut self.state.scaling {
            Scaling::Disabled => {}
            Scaling::Fixed(fixed) => {
                Scaling::Fixed(scale).validate()?;
                *fixed = scale;
                self.state.scale = scale;
            }
            Scaling::Dynamic(dynamic) => {
                if !(dynamic.min..=dynamic.max).contains(&scale) {
                    return Err(AmpError::Setting {
                        setting: "scale",
                        found: scale.into(),
                        expected: "a number from min to max of the settings",
                    });
                }
                self.state.scale = scale;
            }
        }
        if let Some(open) = self.open.take() {
            self.state.count(open.overflow);
        }
        Ok(())
    }

    fn open(&self, call: &str) -> &Open {
        self.open.as_ref().unwrap_or_else(|| {
            panic!(
                "`{call}` outside a step: call `scaler.begin(&model)` before each forward pass, \
                 so that a skipped step can restore the running statistics"
            )
        })
    }

    fn check_round(&self, call: &str, round: &Round) {
        assert_eq!(
            self.open(call).round.id,
            round.id,
            "`{call}` with gradients of another step or scaler"
        );
    }
}

impl Clone for GradScaler {
    /// Copies the state between steps; a step that is open stays with the original.
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            open: None,
        }
    }
}

impl PartialEq for GradScaler {
    /// Compares what would be saved.
    fn eq(&self, other: &Self) -> bool {
        self.state == other.state
    }
}

impl std::fmt::Debug for GradScaler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GradScaler")
            .field("state", &self.state)
            .field("in_step", &self.open.is_some())
            .finish()
    }
}

impl From<GradScaler> for ScaleState {
    fn from(scaler: GradScaler) -> Self {
        scaler.state
    }
}

impl TryFrom<ScaleState> for GradScaler {
    type Error = AmpError;

    fn try_from(state: ScaleState) -> Result<Self, AmpError> {
        state.validate()?;
        Ok(Self { state, open: None })
    }
}
