//! Stochastic gradient descent as PyTorch defines it.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};
use halfseg_kernels::{AnyTensor, SgdParameter, SgdStep, handles_lists, sgd_step, sgd_step_list};

use super::{Factors, Tracking, buffers_of, take_buffers};

/// Stochastic gradient descent with momentum and weight decay, without dampening.
///
/// For every parameter `p` with gradient `g`: `g += weight_decay * p`, then
/// `v = momentum * v + g` (the first step sets `v = g`), then `p -= lr * v`. Weight decay reaches
/// every parameter, batch norm and biases included, as in the published recipes.
///
/// Burn's own `Sgd` computes the same with dampening 0. This one keeps its buffers by parameter
/// and hands them out by module path, because Burn's record restores them on the default device,
/// which in a CUDA build is a GPU even when the run is on the CPU, and keys them by parameter ids
/// that differ from process to process.
#[derive(Debug)]
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    factors: Factors,
    velocity: GradientsParams,
}

impl Sgd {
    /// An optimizer without buffers yet.
    pub fn new(momentum: f64, weight_decay: f64) -> Self {
        Self {
            momentum,
            weight_decay,
            factors: Factors::default(),
            velocity: GradientsParams::new(),
        }
    }

    /// With other learning rates and decays for some parameters; one whose learning rate is 0 stays as it is.
    pub fn with_factors(self, factors: Factors) -> Self {
        Self { factors, ..self }
    }

    /// Moves the parameters of `model` that have a gradient in `grads`: on a GPU all of them with some
    /// kernels, elsewhere one by one.
    pub fn step<M: Module>(&mut self, lr: f64, model: M, grads: GradientsParams) -> M {
        let mut step = Step {
            sgd: self,
            lr,
            grads,
            device: None,
            ids: Vec::new(),
            listed: Vec::new(),
        };
        let model = model.map(&mut step);
        let Step { ids, listed, .. } = step;
        if listed.is_empty() {
            return model;
        }
        let moved = ids.into_iter().zip(sgd_step_list(listed)).collect();
        model.map(&mut Put { sgd: self, moved })
    }

    /// Without momentum nothing is kept.
    fn keep<const D: usize>(&mut self, id: ParamId, velocity: Tensor<D>) {
        if self.momentum != 0.0 {
            self.velocity.register(id, velocity);
        }
    }

    /// The momentum buffers by module path, for a checkpoint. Parameters that never had a gradient
    /// have none.
    pub fn buffers<M: Module>(&self, model: &M) -> BTreeMap<String, TensorData> {
        buffers_of(model, &self.velocity, "")
    }

    /// Replaces the momentum buffers by those of `buffers`, keyed by module path as
    /// [`buffers`](Self::buffers) does; variants of enums in a path, such as `Fcn` in
    /// `decode_head.Fcn.conv_seg.bias`, do not count. Returns the paths that `model` has no parameter
    /// of the same shape for.
    pub fn restore<M: Module>(
        &mut self,
        model: &M,
        buffers: BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Vec<String> {
        let left = buffers.into_iter();
        let mut left = left
            .map(|(path, data)| (without_variants(&path), data))
            .collect();
        self.velocity = take_buffers(model, &mut left, "", device);
        left.into_keys().collect()
    }
}

struct Step<'a> {
    sgd: &'a mut Sgd,
    lr: f64,
    grads: GradientsParams,
    /// Where the parameters of the list are.
    device: Option<Device>,
    ids: Vec<ParamId>,
    listed: Vec<SgdParameter>,
}

impl Step<'_> {
    /// Whether a parameter waits for the others of its device.
    fn lists<const D: usize>(&mut self, value: &Tensor<D>, gradient: &Tensor<D>) -> bool {
        let device = value.device();
        let fits = [value, gradient].iter().all(|tensor| {
            tensor.dtype() == DType::F32
                && tensor.device() == device
                && handles_lists(&tensor.device(), DType::F32)
        });
        fits && value.shape().num_elements() > 0
            && *self.device.get_or_insert_with(|| device.clone()) == device
    }
}

impl ModuleMapper for Step<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let gradient = self.grads.remove::<D>(id);
        let [lr_factor, decay_factor] = self.sgd.factors.of(id);
        let Some(gradient) = gradient.filter(|_| lr_factor != 0.0) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let numbers = SgdStep {
            lr: (self.lr * lr_factor) as f32,
            momentum: self.sgd.momentum as f32,
            weight_decay: (self.sgd.weight_decay * decay_factor) as f32,
        };
        let tracking = Tracking::of(&tensor);
        let value = match &tracking {
            Some(_) => tensor.inner(),
            None => tensor,
        };
        let velocity = self.sgd.velocity.remove::<D>(id);
        let moved = if self.lists(&value, &gradient) {
            // Out of the network, so that nothing else holds its memory.
            let placeholder = Tensor::empty([0; D], &value.device());
            self.ids.push(id);
            self.listed.push(SgdParameter {
                value: value.into(),
                gradient: gradient.into(),
                velocity: velocity.map(AnyTensor::from),
                step: numbers,
            });
            placeholder
        } else {
            let [moved, velocity] = sgd_step(value, gradient, velocity, numbers);
            self.sgd.keep(id, velocity);
            moved
        };
        Param::from_mapped_value(id, Tracking::restore(tracking, moved), mapper)
    }
}

/// Puts moved parameters in the place of those that [`Step`] left.
struct Put<'a> {
    sgd: &'a mut Sgd,
    moved: HashMap<ParamId, [AnyTensor; 2]>,
}

impl ModuleMapper for Put<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let Some([value, velocity]) = self.moved.remove(&id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        self.sgd.keep(id, velocity.into_tensor::<D>());
        let value = Tracking::restore(Tracking::of(&tensor), value.into_tensor());
        Param::from_mapped_value(id, value, mapper)
    }
}

/// A path without the parts that begin with a capital, which no field does.
fn without_variants(path: &str) -> String {
    let is_field = |part: &&str| !part.starts_with(|c: char| c.is_ascii_uppercase());
    path.split('.')
        .filter(is_field)
        .collect::<Vec<_>>()
        .join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Module, Debug)]
    struct Line {
        weight: Param<Tensor<1>>,
    }

    fn line(values: [f32; 2], device: &Device) -> Line {
        Line {
            weight: Param::from_tensor(Tensor::from_floats(values, device)),
        }
    }

    fn grads(model: &Line, values: [f32; 2], device: &Device) -> GradientsParams {
        let mut grads = GradientsParams::new();
        grads.register(model.weight.id, Tensor::<1>::from_floats(values, device));
        grads
    }

    fn weights(model: &Line) -> Vec<f32> {
        model.weight.val().into_data().try_into_vec().unwrap()
    }

    /// `torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.01)` worked out in f64.
    fn expected(mut w: f64, gradients: &[f64]) -> f64 {
        let mut v: Option<f64> = None;
        for g in gradients {
            let g = g + 0.01 * w;
            let next = v.map_or(g, |v| 0.9 * v + g);
            v = Some(next);
            w -= 0.1 * next;
        }
        w
    }

    #[test]
    fn three_steps_equal_the_definition_in_f64() {
        let plain = Device::flex();
        let device = plain.clone().autodiff();
        let mut model = line([1.0, -2.0], &device);
        let mut sgd = Sgd::new(0.9, 0.01);
        for g in [[0.5, -1.0], [0.25, 2.0], [-3.0, 0.125]] {
            let g = grads(&model, g, &plain);
            model = sgd.step(0.1, model, g);
        }
        let found = weights(&model);
        for (found, expected) in found.iter().zip([
            expected(1.0, &[0.5, 0.25, -3.0]),
            expected(-2.0, &[-1.0, 2.0, 0.125]),
        ]) {
            assert!(
                (f64::from(*found) - expected).abs() < 1e-6,
                "{found} against {expected}"
            );
        }
        assert!(
            model.weight.val().is_require_grad(),
            "the parameter must stay trainable"
        );
    }

    #[test]
    fn restored_buffers_continue_bit_for_bit() {
        let plain = Device::flex();
        let device = plain.clone().autodiff();
        let mut model = line([1.0, -2.0], &device);
        let mut sgd = Sgd::new(0.9, 5e-4);
        let g = grads(&model, [0.3, 0.7], &plain);
        model = sgd.step(0.1, model, g);

        let values = weights(&model);
        let twin = line([values[0], values[1]], &device);
        let mut again = Sgd::new(0.9, 5e-4);
        assert!(again.restore(&twin, sgd.buffers(&model), &plain).is_empty());

        let (a, b) = (
            grads(&model, [0.1, 0.2], &plain),
            grads(&twin, [0.1, 0.2], &plain),
        );
        let (model, twin) = (sgd.step(0.1, model, a), again.step(0.1, twin, b));
        assert_eq!(weights(&model), weights(&twin));
    }

    #[test]
    fn buffers_that_no_parameter_takes_are_named() {
        let device = Device::flex();
        let model = line([1.0, 2.0], &device);
        let mut sgd = Sgd::new(0.9, 0.0);
        let buffers = BTreeMap::from([
            ("weight".to_owned(), TensorData::from([1.0f32, 2.0, 3.0])),
            ("other".to_owned(), TensorData::from([1.0f32])),
        ]);
        assert_eq!(sgd.restore(&model, buffers, &device), ["other", "weight"]);
    }

    /// Paths in states that were written with the names of enum variants in them.
    #[test]
    fn a_path_with_enum_variants_is_the_one_without() {
        #[derive(Module, Debug)]
        enum Head {
            Fcn(Line),
        }
        #[derive(Module, Debug)]
        struct Network {
            decode_head: Vec<Head>,
        }
        let device = Device::flex();
        let model = Network {
            decode_head: vec![Head::Fcn(line([1.0, 2.0], &device))],
        };
        let data = TensorData::from([3.0f32, 4.0]);
        for path in ["decode_head.0.Fcn.weight", "decode_head.0.weight"] {
            let mut sgd = Sgd::new(0.9, 0.0);
            let buffers = BTreeMap::from([(path.to_owned(), data.clone())]);
            assert!(sgd.restore(&model, buffers, &device).is_empty(), "{path}");
            let expected = BTreeMap::from([("decode_head.0.weight".to_owned(), data.clone())]);
            assert_eq!(sgd.buffers(&model), expected);
        }
    }
}
