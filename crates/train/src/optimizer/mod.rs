//! What moves the weights by their gradients.

mod adamw;
mod factors;
mod sgd;

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, GradientCheckpointingStrategy, Tensor, TensorData};
use halfseg_amp::parameter_paths;

pub use adamw::AdamW;
pub use factors::Factors;
pub(crate) use factors::within;
pub use sgd::Sgd;

use crate::finite::unfit_value;
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

/// The first value that no step leaves in a buffer, by the names of [`Optimizer::buffers`]: numbers that are not
/// finite, means of squares below 0, and parts of steps.
pub(crate) fn unfit_buffer(buffers: &BTreeMap<String, TensorData>) -> Option<String> {
    buffers.iter().find_map(|(name, data)| {
        unfit_value(name, data, |value| match &**name {
            name if name.starts_with(adamw::SECOND) => value.is_finite() && *value >= 0.0,
            adamw::STEPS => value.is_finite() && *value >= 0.0 && value.fract() == 0.0,
            _ => value.is_finite(),
        })
    })
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

/// What is kept of each parameter of `model`, by the parameter's path behind `prefix`.
fn buffers_of<M: Module>(
    model: &M,
    kept: &GradientsParams,
    prefix: &str,
) -> BTreeMap<String, TensorData> {
    struct Export<'a> {
        kept: &'a GradientsParams,
        prefix: &'a str,
        paths: HashMap<ParamId, String>,
        found: BTreeMap<String, TensorData>,
    }
    impl ModuleVisitor for Export<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(buffer) = self.kept.get::<D>(param.id) {
                let name = format!("{}{}", self.prefix, self.paths[&param.id]);
                self.found.insert(name, buffer.into_data());
            }
        }
    }
    let mut visitor = Export {
        kept,
        prefix,
        paths: paths(model),
        found: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

/// Takes what [`buffers_of`] gave out of `left`, as far as `model` has a parameter of the same shape for it.
fn take_buffers<M: Module>(
    model: &M,
    left: &mut BTreeMap<String, TensorData>,
    prefix: &str,
    device: &Device,
) -> GradientsParams {
    struct Import<'a> {
        left: &'a mut BTreeMap<String, TensorData>,
        prefix: &'a str,
        paths: HashMap<ParamId, String>,
        device: &'a Device,
        kept: GradientsParams,
    }
    impl ModuleVisitor for Import<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = format!("{}{}", self.prefix, self.paths[&param.id]);
            let fits = |data: &TensorData| *data.shape() == param.lazy_shape();
            if self.left.get(&name).is_some_and(fits)
                && let Some(data) = self.left.remove(&name)
            {
                let buffer = Tensor::<D>::from_data(data, self.device);
                self.kept.register(param.id, buffer);
            }
        }
    }
    let mut visitor = Import {
        left,
        prefix,
        paths: paths(model),
        device,
        kept: GradientsParams::new(),
    };
    model.visit(&mut visitor);
    visitor.kept
}

/// The path of each parameter, the first of those that are shared.
fn paths<M: Module>(model: &M) -> HashMap<ParamId, String> {
    let mut paths = HashMap::new();
    for parameter in parameter_paths(model) {
        paths.entry(parameter.id).or_insert(parameter.path);
    }
    paths
}
