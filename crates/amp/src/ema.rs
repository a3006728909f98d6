//! Moving averages of weights.

use std::any::Any;
use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use crate::StepOutcome;
use crate::paths::parameter_paths;
use crate::precision::is_plain;
use crate::statistics::statistics_ids;

/// The exponential moving average of a model's weights, in their own dtype, f32 as a rule.
///
/// After each step that was taken, `average += (1 - decay) (weight - average)`, as
/// `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn` computes it. Running statistics
/// are not averaged: they are averages already.
///
/// ```
/// # use burn::nn::LinearConfig;
/// # use burn::optim::SgdConfig;
/// # use burn::tensor::{Device, Tensor};
/// # use halfseg_amp::{GradScaler, Policy, nn, ops};
/// use halfseg_amp::Ema;
///
/// # let device = Device::flex().autodiff();
/// # let model = LinearConfig::new(4, 2).init(&device);
/// # let (mut optimizer, mut scaler) = (SgdConfig::new().init(), GradScaler::mmcv_static());
/// let mut ema = Ema::new(&model, 0.999);
/// # let x = Tensor::<2>::ones([3, 4], &device);
/// # let loss = |model: &_| ops::mean(nn::linear(model, x));
/// let (model, outcome) = scaler.train_step(&Policy::f16(), model, &mut optimizer, 0.1, loss);
/// ema.update(&model, &outcome);
/// let averaged = ema.averaged(&model); // to evaluate and to save
/// # let _ = averaged;
/// ```
///
/// To go on with saved averages, make an `Ema` of the averaged model, or of one that was loaded from a file by
/// [`resumed`](Self::resumed).
pub struct Ema {
    decay: f64,
    averages: HashMap<ParamId, Box<dyn Any + Send + Sync>>,
}

impl Ema {
    /// Averages that start at the weights of `model`.
    ///
    /// # Panics
    ///
    /// If `decay` is not from 0 to 1.
    pub fn new<M: Module>(model: &M, decay: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&decay),
            "the decay of an average must be from 0 to 1, got {decay}"
        );
        struct Visitor {
            skip: HashSet<ParamId>,
            averages: HashMap<ParamId, Box<dyn Any + Send + Sync>>,
        }
        impl ModuleVisitor for Visitor {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if !self.skip.contains(&param.id) && is_plain(param.dtype()) {
                    self.averages.insert(param.id, Box::new(weight(param)));
                }
            }
        }
        let mut visitor = Visitor {
            skip: statistics_ids(model),
            averages: HashMap::new(),
        };
        model.visit(&mut visitor);
        let averages = visitor.averages;
        Self { decay, averages }
    }

    /// Averages of the weights of `model` that start at those of `averaged`: another copy of the same network,
    /// such as one from a file, whose parameters have other ids.
    ///
    /// # Panics
    ///
    /// If the two have other numbers of parameters, and as [`new`](Self::new).
    pub fn resumed<M: Module>(model: &M, averaged: &M, decay: f64) -> Self {
        let mut found = Self::new(averaged, decay).averages;
        let [own, theirs] = [model, averaged].map(parameter_paths);
        assert_eq!(
            own.len(),
            theirs.len(),
            "the averages are those of another model"
        );
        let pairs = own.into_iter().zip(theirs);
        let averages = pairs.filter_map(|(own, theirs)| Some((own.id, found.remove(&theirs.id)?)));
        Self {
            decay,
            averages: averages.collect(),
        }
    }

    /// Moves the averages towards the weights of `model`, if the step was taken.
    ///
    /// # Panics
    ///
    /// If no parameter of `model` is one that the averages were made for.
    pub fn update<M: Module>(&mut self, model: &M, outcome: &StepOutcome) {
        struct Visitor<'a>(&'a mut Ema, usize);
        impl ModuleVisitor for Visitor<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let average = self.0.averages.get_mut(&param.id);
                let Some(average) = average.and_then(|any| any.downcast_mut::<Tensor<D>>()) else {
                    return;
                };
                let step = weight(param).sub(average.clone());
                *average = average.clone().add(step.mul_scalar(1.0 - self.0.decay));
                self.1 += 1;
            }
        }
        if !outcome.stepped() {
            return;
        }
        let mut visitor = Visitor(self, 0);
        model.visit(&mut visitor);
        let Visitor(_, found) = visitor;
        assert!(found > 0, "the averages are those of another model");
    }

    /// `model`, for inference, with the averages in place of its weights.
    pub fn averaged<M: Module>(&self, model: &M) -> M {
        struct Mapper<'a>(&'a Ema);
        impl ModuleMapper for Mapper<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let average = self.0.averages.get(&param.id);
                match average.and_then(|any| any.downcast_ref::<Tensor<D>>()) {
                    Some(average) => Param::initialized(param.id, average.clone()),
                    None => param,
                }
            }
        }
        model.valid().map(&mut Mapper(self))
    }
}

/// The value of a parameter, outside of any graph.
fn weight<const D: usize>(param: &Param<Tensor<D>>) -> Tensor<D> {
    param.base().detach().without_autodiff()
}
