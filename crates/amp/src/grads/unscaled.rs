//! Gradients that are no longer scaled.

use burn::module::{Param, ParamGroup};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::measure::{measure_large, read_back, scale_all, total_norm};
use super::numbers::Numbers;
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
    /// The sum of the losses before scaling.
    pub(crate) loss: Option<f32>,
    /// What the program wants to know.
    pub(crate) numbers: Numbers,
    /// The sum of squares of each gradient as it is, if they are known.
    pub(crate) squares: Option<Vec<f64>>,
    /// The norm when it was first measured.
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

    /// The loss of the step before scaling, the sum over its micro-batches, which came with the
    /// transfer that told whether the gradients are finite. `None` if the scaler is disabled: it waits
    /// for no device.
    pub fn loss(&self) -> Option<f32> {
        self.loss
    }

    /// What was given to [`ScaledGrads::with_numbers`](crate::ScaledGrads::with_numbers), read already if
    /// the step waited for its device. Ask after clipping and before the step, and read after it.
    pub fn take_numbers(&mut self) -> Numbers {
        std::mem::replace(&mut self.numbers, Numbers::new(Vec::new()))
    }

    /// The l2 norm of all gradients together, before any clipping; not finite after an overflow, nor
    /// if it is no f32.
    ///
    /// Costs a readback only if the scaler is disabled; it is then that of the gradients as they are.
    pub fn norm(&mut self) -> f32 {
        self.squares();
        self.norm.expect("the gradients were measured") as f32
    }

    /// The gradient of a parameter, `None` if it has none.
    pub fn get<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        let grad = self.grads.iter().find(|grad| grad.id == param.id)?;
        grad.value.as_any().downcast_ref::<Tensor<D>>().cloned()
    }

    /// Changes gradients one by one: `change` gets the path of each parameter and the values of its
    /// gradient in one row, and gives back as many.
    ///
    /// What is no longer finite afterwards skips the step as an overflow does, which costs a second
    /// readback unless the scaler is disabled.
    ///
    /// # Shapes
    /// `change`: `[values]`, without autodiff, to the same
    ///
    /// # Panics
    ///
    /// If `change` gives another number of values.
    pub fn map(mut self, mut change: impl FnMut(&str, Tensor<1>) -> Tensor<1>) -> Self {
        for grad in std::mem::take(&mut self.grads) {
            let (row, from_row) = grad.value.into_row();
            let value = from_row(change(&grad.path, row));
            self.grads.push(Grad { value, ..grad });
        }
        self.squares = None;
        if self.round.checked && self.is_finite() {
            let squares = self.squares().to_vec();
            let bad = squares
                .iter()
                .zip(&self.grads)
                .filter(|(square, _)| !square.is_finite());
            self.culprits = bad.map(|(_, grad)| grad.path.clone()).collect();
        }
        self
    }

    /// The sum of squares of each gradient, in f64, which holds those of all finite gradients.
    fn squares(&mut self) -> &[f64] {
        if self.squares.is_none() {
            let known = scale_all(&mut self.grads, 1.0);
            let device = self.grads.first().map(|grad| grad.value.device());
            let measured = device.map_or_else(Vec::new, |device| {
                let asked = self.numbers.waiting(&device).into_iter();
                let measured = known.numbers(&self.grads, &device);
                let brought = read_back(asked.chain(measured).collect());
                known.resolve(self.numbers.take_from(&brought))
            });
            let mut squares: Vec<f64> = measured.into_iter().map(|(_, square)| square).collect();
            measure_large(&self.grads, &mut squares);
            self.measured(squares);
        }
        self.squares.as_deref().expect("just measured")
    }

    /// Keeps what was measured of the gradients.
    pub(crate) fn measured(&mut self, squares: Vec<f64>) {
        self.norm.get_or_insert(total_norm(&squares));
        self.squares = Some(squares);
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
    pub fn clip_norm(self, max: f32) -> Self {
        self.clip_norm_where(max, |_| true)
    }

    /// As [`clip_norm`](Self::clip_norm), for the gradients of a group of parameters, whose norm is
    /// taken alone. Groups that name parameters by path take the paths of
    /// [`parameter_paths`](crate::parameter_paths).
    ///
    /// # Panics
    ///
    /// If `max` is not positive, or if no gradient belongs to the group.
    pub fn clip_norm_of(self, group: &ParamGroup, max: f32) -> Self {
        let belongs = |grad: &Grad| group.matches(&grad.id, Some(&grad.path));
        assert!(
            self.grads.iter().any(belongs),
            "no gradient of the step belongs to the group that is to be clipped"
        );
        self.clip_norm_where(max, belongs)
    }

    fn clip_norm_where(mut self, max: f32, belongs: impl Fn(&Grad) -> bool) -> Self {
        assert!(
            max > 0.0,
            "the largest gradient norm must be positive, got {max}"
        );
        self.squares();
        let squares = self.squares.as_mut().expect("just measured");
        let places: Vec<_> = (0..squares.len())
            .filter(|place| belongs(&self.grads[*place]))
            .collect();
        let norm = total_norm(places.iter().map(|place| &squares[*place]));
        let factor = match norm as f32 {
            narrow if narrow.is_finite() => max / (narrow + 1e-6),
            _ => (f64::from(max) / norm) as f32,
        };
        if !norm.is_finite() || factor >= 1.0 {
            return self;
        }
        self.clipped = true;
        let factors = match factor >= f32::MIN_POSITIVE {
            true => vec![factor],
            // Too small for an f32 of full precision: in two steps.
            false => vec![(f64::from(max) / norm).sqrt() as f32; 2],
        };
        for place in &places {
            let factors = factors.iter().map(|factor| f64::from(*factor).powi(2));
            squares[*place] *= factors.product::<f64>();
        }
        let (mut chosen, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.grads)
            .into_iter()
            .partition(|grad| belongs(grad));
        for factor in factors {
            scale_all(&mut chosen, factor);
        }
        let (mut chosen, mut others) = (chosen.into_iter(), others.into_iter());
        // Back in their order.
        self.grads = (0..squares.len())
            .map(|place| match places.binary_search(&place) {
                Ok(_) => chosen.next().expect("as many as there are places"),
                Err(_) => others.next().expect("the rest"),
            })
            .collect();
        self
    }

    /// Brings each value of the gradients into `-max..=max`, as
    /// `torch.nn.utils.clip_grad_value_` does. Gradients with an overflow are left alone; their step
    /// is skipped, unless the scaler is disabled.
    ///
    /// # Panics
    ///
    /// If `max` is not positive.
    pub fn clip_value(mut self, max: f32) -> Self {
        assert!(
            max > 0.0,
            "the largest gradient value must be positive, got {max}"
        );
        // No value is larger than the norm.
        let fits = |squares: &Vec<f64>| total_norm(squares) <= f64::from(max);
        if !self.is_finite() || self.squares.as_ref().is_some_and(fits) {
            return self;
        }
        for grad in &mut self.grads {
            grad.value.clamp(max);
        }
        self.squares = None;
        self.clipped = true;
        self
    }

    /// Whether clipping changed the gradients, [`clip_value`](Self::clip_value) perhaps: it does not
    /// look at what it changes.
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
