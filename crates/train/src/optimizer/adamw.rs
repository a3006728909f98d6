//! AdamW as PyTorch defines it.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use super::{Factors, Tracking, buffers_of, take_buffers};

/// The names of its buffers begin with these, before the parameter's path.
const FIRST: &str = "first_moment.";
pub(super) const SECOND: &str = "second_moment.";
/// The name of the number of steps.
pub(super) const STEPS: &str = "steps";

/// Adam with decoupled weight decay (`torch.optim.AdamW` without `amsgrad`).
///
/// For every parameter `p` with gradient `g`, in step `t`: `p -= lr * weight_decay * p`,
/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, then
/// `p -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)`.
///
/// Burn's own `AdamW` computes the same. This one keeps its buffers by parameter and hands them out by module
/// path, as [`Sgd`](crate::Sgd) does and for the same reasons.
#[derive(Debug)]
pub struct AdamW {
    betas: [f64; 2],
    epsilon: f64,
    weight_decay: f64,
    factors: Factors,
    first: GradientsParams,
    second: GradientsParams,
    /// Steps that were taken.
    steps: u64,
}

impl AdamW {
    /// An optimizer without buffers yet.
    pub fn new(betas: [f64; 2], epsilon: f64, weight_decay: f64) -> Self {
        Self {
            betas,
            epsilon,
            weight_decay,
            factors: Factors::default(),
            first: GradientsParams::new(),
            second: GradientsParams::new(),
            steps: 0,
        }
    }

    /// With other learning rates and decays for some parameters.
    pub fn with_factors(self, factors: Factors) -> Self {
        Self { factors, ..self }
    }

    /// Moves the parameters of `model` that have a gradient in `grads`, one by one.
    pub fn step<M: Module>(&mut self, lr: f64, model: M, grads: GradientsParams) -> M {
        self.steps += 1;
        model.map(&mut Step {
            adam: self,
            lr,
            grads,
        })
    }

    /// Both moments of each parameter by module path, and the number of steps, for a checkpoint.
    pub fn buffers<M: Module>(&self, model: &M) -> BTreeMap<String, TensorData> {
        let mut found = buffers_of(model, &self.first, FIRST);
        found.append(&mut buffers_of(model, &self.second, SECOND));
        if !found.is_empty() {
            // Exact up to 2^24 steps, far beyond any run; the corrections are 1 long before.
            found.insert(STEPS.to_owned(), TensorData::from([self.steps as f32]));
        }
        found
    }

    /// Replaces the buffers by those that [`buffers`](Self::buffers) gave. Returns the names that `model` has no
    /// parameter of the same shape for.
    pub fn restore<M: Module>(
        &mut self,
        model: &M,
        mut buffers: BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Vec<String> {
        let steps = buffers.remove(STEPS);
        self.steps = steps
            .and_then(|data| data.iter::<f32>().next())
            .unwrap_or(0.0) as u64;
        self.first = take_buffers(model, &mut buffers, FIRST, device);
        self.second = take_buffers(model, &mut buffers, SECOND, device);
        buffers.into_keys().collect()
    }
}

struct Step<'a> {
    adam: &'a mut AdamW,
    lr: f64,
    grads: GradientsParams,
}

impl ModuleMapper for Step<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let gradient = self.grads.remove::<D>(id);
        let [lr_factor, decay_factor] = self.adam.factors.of(id);
        let Some(gradient) = gradient.filter(|_| lr_factor != 0.0) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let tracking = Tracking::of(&tensor);
        let value = match &tracking {
            Some(_) => tensor.inner(),
            None => tensor,
        };
        let lr = self.lr * lr_factor;
        let [beta1, beta2] = self.adam.betas;
        let value = value.mul_scalar(1.0 - lr * self.adam.weight_decay * decay_factor);
        let moved = |before: Option<Tensor<D>>, beta: f64, towards: Tensor<D>| {
            let part = towards.mul_scalar(1.0 - beta);
            match before {
                Some(before) => before.mul_scalar(beta) + part,
                None => part,
            }
        };
        let first = moved(self.adam.first.remove::<D>(id), beta1, gradient.clone());
        let second = moved(
            self.adam.second.remove::<D>(id),
            beta2,
            gradient.clone() * gradient,
        );
        let steps = self.adam.steps as f64;
        let corrections = [beta1, beta2].map(|beta| 1.0 - beta.powf(steps));
        let root = second.clone().sqrt().div_scalar(corrections[1].sqrt());
        let change = first.clone() / root.add_scalar(self.adam.epsilon);
        let value = value - change.mul_scalar(lr / corrections[0]);
        self.adam.first.register(id, first);
        self.adam.second.register(id, second);
        Param::from_mapped_value(id, Tracking::restore(tracking, value), mapper)
    }
}
