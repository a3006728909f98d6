//! Whole steps in one call, and gradients that leave a step.

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;

use crate::{GradScaler, Policy, StepOutcome, UnscaledGrads, autocast};

impl GradScaler {
    /// A whole step: begins it, computes the loss under `policy`, takes its gradients and updates the
    /// parameters, or skips the step.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::optim::SgdConfig;
    /// use burn::tensor::{Device, Tensor};
    /// use halfseg_amp::{DynamicScale, GradScaler, Policy, nn, ops};
    ///
    /// let device = Device::flex().autodiff();
    /// let mut model = LinearConfig::new(4, 2).init(&device);
    /// let mut optimizer = SgdConfig::new().init();
    /// let mut scaler = GradScaler::dynamic(DynamicScale::torch());
    /// for _ in 0..2 {
    ///     let x = Tensor::<2>::ones([3, 4], &device);
    ///     let (updated, outcome) =
    ///         scaler.train_step(&Policy::f16(), model, &mut optimizer, 0.1, |model| {
    ///             ops::mean(nn::linear(model, x))
    ///         });
    ///     model = updated;
    ///     assert!(outcome.stepped());
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// If a step of the scaler was applied and not updated, if the loss depends on no parameter, and
    /// as `loss`.
    pub fn train_step<M: Module>(
        &mut self,
        policy: &Policy,
        model: M,
        optimizer: &mut ModuleOptimizer,
        lr: impl Into<ModuleLearningRate>,
        loss: impl FnOnce(&M) -> Tensor<1>,
    ) -> (M, StepOutcome) {
        let grads = self.gradients(policy, &model, loss);
        self.step(optimizer, lr, model, grads)
    }

    /// The gradients of a step: begins it, computes the loss under `policy`, and unscales its
    /// gradients, which are then clipped and given to [`step`](Self::step).
    ///
    /// # Panics
    ///
    /// As [`train_step`](Self::train_step).
    pub fn gradients<M: Module>(
        &mut self,
        policy: &Policy,
        model: &M,
        loss: impl FnOnce(&M) -> Tensor<1>,
    ) -> UnscaledGrads {
        self.begin(model);
        let loss = autocast(policy, || loss(model));
        let grads = self.scale(loss).backward(model);
        self.unscale(grads)
    }
}

impl UnscaledGrads {
    /// Ends the step and lets its gradients leave, for training loops that call the optimizer
    /// themselves. The scale is adapted as by [`GradScaler::step`].
    ///
    /// # Errors
    ///
    /// [`Overflow`] if a gradient is infinite or NaN: the step must be skipped. The running statistics
    /// of `model` are as before it then.
    ///
    /// # Panics
    ///
    /// If the gradients belong to another step or scaler.
    pub fn into_gradients<M: Module>(
        self,
        scaler: &mut GradScaler,
        model: &M,
    ) -> Result<GradientsParams, Overflow> {
        let (outcome, grads) = scaler.decide(model, self);
        scaler.update();
        grads.ok_or(Overflow { outcome })
    }
}

/// Why gradients cannot leave a step; from [`UnscaledGrads::into_gradients`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{outcome}")]
#[non_exhaustive]
pub struct Overflow {
    /// The skipped step.
    pub outcome: StepOutcome,
}
