//! What moves the weights by their gradients.

mod adamw;
mod factors;
mod sgd;

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, GradientCheckpointingStrategy, Tensor, TensorData};
use halfseg_amp::parameter_paths;

pub use adamw::AdamW;
pub use factors::Factors;
pub use sgd::Sgd;

use crate::recipe::OptimizerRecipe;
use crate::recipe::values::OptimizerKind;

/// The optimizer of a run.
#[derive(Debug)]
pub(crate) enum Optimizer {
    Sgd(Sgd),
    AdamW(AdamW),
}

impl Optimizer {
    pub fn new(recipe: &OptimizerRecipe, factors: Factors) -> Self {
        match recipe.kind {
            OptimizerKind::Sgd => {
                Self::Sgd(Sgd::new(recipe.momentum, recipe.weight_decay).with_factors(factors))
            }
            OptimizerKind::AdamW => {
                let betas = [recipe.beta1, recipe.beta2];
                let adam = AdamW::new(betas, recipe.epsilon, recipe.weight_decay);
                Self::AdamW(adam.with_factors(factors))
            }
        }
    }

    pub fn step<M: Module>(&mut self, lr: f64, model: M, grads: GradientsParams) -> M {
        match self {
            Self::Sgd(sgd) => sgd.step(lr, model, grads),
            Self::AdamW(adam) => adam.step(lr, model, grads),
        }
    }

    pub fn buffers<M: Module>(&self, model: &M) -> BTreeMap<String, TensorData> {
        match self {
            Self::Sgd(sgd) => sgd.buffers(model),
            Self::AdamW(adam) => adam.buffers(model),
        }
    }

    pub fn restore<M: Module>(
        &mut self,
        model: &M,
        buffers: BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Vec<String> {
        match self {
            Self::Sgd(sgd) => sgd.restore(model, buffers, device),
            Self::AdamW(adam) => adam.restore(model, buffers, device),
        }
    }
}

/// How a parameter on a device with autodiff takes part in it.
struct Tracking {
    require_grad: bool,
    checkpointing: Option<GradientCheckpointingStrategy>,
}

impl Tracking {
    fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        tensor.device().is_autodiff().then(|| Self {
            require_grad: tensor.is_require_grad(),
            checkpointing: tensor.gradient_checkpointing_strategy(),
        })
    }

    fn restore<const D: usize>(tracking: Option<Self>, value: Tensor<D>) -> Tensor<D> {
        let Some(tracking) = tracking else {
            return value;
        };
        let mut value = Tensor::from_inner(value);
        if let Some(strategy) = tracking.checkpointing {
            value = value.with_gradient_checkpointing_strategy(strategy);
        }
        value.set_require_grad(tracking.require_grad)
    }
}

/// The path of each parameter, the first of those that are shared.
fn paths<M: Module>(model: &M) -> HashMap<ParamId, String> {
    let mut paths = HashMap::new();
    for parameter in parameter_paths(model) {
        paths.entry(parameter.id).or_insert(parameter.path);
    }
    paths
}
