//! Gradients that are no longer scaled.

use burn::optim::GradientsParams;

use super::measure::{measure_large, read_back, scale_all, total_norm};
use super::round::Round;
use super::slot::Grad;

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
    pub(crate) grads: Vec<Grad>,
    pub(crate) round: Round,
    /// The parameters whose gradients are not finite.
    pub(crate) culprits: Vec<String>,
    /// The results of the forward pass that are not finite.
    pub(crate) non_finite_forward: Vec<String>,
    pub(crate) norm: Option<f64>,
    pub(crate) clipped: bool,
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
