//! One training step, and everything that it changes.

use std::collections::BTreeMap;
use std::fmt;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use halfseg_amp::{GradScaler, Policy, ScaledGrads, StepOutcome, autocast};
use halfseg_layers::{IGNORED_LABEL, Worker};
use halfseg_segmentor::Segmentor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::device::reaches_over_nccl;
use crate::{PolySchedule, Recipe, Sgd};

/// A network in training: weights, optimizer, gradient scaler and schedule.
///
/// [`step`](Self::step) is the whole of a training iteration but for loading the batch. A skipped
/// step (see [`StepOutcome`]) leaves weights, running statistics and momentum as they were, but
/// counts as an iteration: the schedule moves on, as mmengine's does.
pub struct Learner {
    /// Taken only within a step, so that the optimizer is the weights' sole owner and can write
    /// in place.
    model: Option<Segmentor>,
    sgd: Sgd,
    scaler: GradScaler,
    policy: Policy,
    schedule: PolySchedule,
    clip_norm: f64,
    seed: u64,
    iteration: u64,
    /// Devices that share each batch with the model's own.
    further_devices: Vec<Device>,
    exchange: Exchange,
}

/// How devices that train together exchange gradients and sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// Through the host's memory.
    Host,
    /// From GPU to GPU, by Burn's `all_reduce` over NCCL.
    Nccl,
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "through the host's memory",
            Self::Nccl => "over NCCL",
        })
    }
}

impl Exchange {
    /// NCCL between GPUs of NVIDIA, if its library is there; Burn offers it for nothing else.
    fn between(devices: &[Device]) -> Self {
        let twice = |place: usize| devices[..place].contains(&devices[place]);
        match devices.len() > 1 && !(0..devices.len()).any(twice) && reaches_over_nccl(devices) {
            true => Self::Nccl,
            false => Self::Host,
        }
    }
}

/// What one iteration did.
#[derive(Clone, Debug)]
pub struct Step {
    /// Iterations run so far, this one included.
    pub iteration: u64,
    /// The learning rate that it used.
    pub lr: f64,
    /// Decode loss + auxiliary loss.
    pub loss: f64,
    /// Cross-entropy of the decode head.
    pub decode: f64,
    /// Cross-entropy of the auxiliary head, times its weight.
    pub aux: f64,
    /// Pixels that the decode head had right, in percent of those that count.
    pub accuracy: f64,
    /// Whether weights changed, and by what scale.
    pub outcome: StepOutcome,
}

/// The forward and the backward pass over one part of a batch.
#[derive(Clone)]
struct Pass<'a> {
    policy: &'a Policy,
    scaler: &'a GradScaler,
    parts: usize,
    rng: ChaCha8Rng,
}

impl Pass<'_> {
    /// Losses, accuracy and the number of pixels that count, and gradients.
    fn run(
        mut self,
        model: &Segmentor,
        images: Tensor<4>,
        labels: Tensor<3, Int>,
        forward_done: impl FnOnce(),
    ) -> (Numbers, ScaledGrads) {
        let counted = labels.clone().inner().not_equal_elem(IGNORED_LABEL);
        let counted = counted.float().cast(FloatDType::F32).sum();
        let losses = autocast(self.policy, || model.loss(images, labels, &mut self.rng));
        let numbers = [&losses.total, &losses.decode, &losses.aux, &losses.accuracy];
        let mut numbers = numbers.map(|number| number.clone().inner()).to_vec();
        numbers.push(counted);
        let numbers = Numbers {
            own: Tensor::cat(numbers, 0),
            others: Vec::new(),
        };
        forward_done();
        // Each loss is the mean over the pixels of a part, of which all have the same number.
        let loss = match self.parts {
            1 => losses.total,
            parts => losses.total / parts as f64,
        };
        (numbers, self.scaler.scale(loss).backward(model))
    }
}

/// Loss, decode loss, auxiliary loss, accuracy and the number of pixels that count of the parts of a
/// batch.
struct Numbers {
    /// `[5]`, of the first part, on its device: reading them waits for it.
    own: Tensor<1>,
    /// Of the other parts.
    others: Vec<[f64; 5]>,
}

impl Numbers {
    /// Of all parts.
    fn read(self) -> Vec<[f64; 5]> {
        let own = self.own.into_data().try_into_vec();
        let own: Vec<f32> = own.expect("a part has five f32 numbers");
        let own = std::array::from_fn(|i| f64::from(own[i]));
        std::iter::once(own).chain(self.others).collect()
    }
}

/// A copy of `model` on `device` that shares neither its graph nor its running statistics.
fn replica(model: &Segmentor, device: &Device) -> Segmentor {
    struct Mapper<'a>(&'a Device);
    impl ModuleMapper for Mapper<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| handed_over(value, self.0))
        }
    }
    model
        .valid()
        .map(&mut Mapper(&device.clone().inner()))
        .train()
}

/// `tensor` on `device`, for another thread. Between GPUs, or threads of one, it goes through the host:
/// Burn's fused backends keep a queue of operations for each thread, and a tensor in two of them can be
/// freed by one before the other has read it.
fn handed_over<const D: usize>(tensor: Tensor<D>, device: &Device) -> Tensor<D> {
    match is_host(device) && is_host(&tensor.device()) {
        true => tensor,
        false => Tensor::from_data(tensor.into_data(), (device, DType::F32)),
    }
}

/// Whether tensors on `device` are in the host's memory.
fn is_host(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return *device == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Loss, decode loss, auxiliary loss and accuracy of the whole batch from the [`Numbers`] of its parts.
fn joined(parts: &[[f64; 5]]) -> [f64; 4] {
    let [loss, decode, aux] = [0, 1, 2].map(|i| {
        let sum: f64 = parts.iter().map(|part| part[i]).sum();
        sum / parts.len() as f64
    });
    // Of the pixels that count.
    let counted: f64 = parts.iter().map(|part| part[4]).sum();
    let right: f64 = parts.iter().map(|part| part[3] * part[4]).sum();
    let accuracy = match parts {
        [one] => one[3],
        _ => right / counted.max(1.0),
    };
    [loss, decode, aux, accuracy]
}

impl Learner {
    /// Trains `model`, which lives on an autodiff device, as `recipe` says. Precisions of modules
    /// that the model lacks have no effect; see [`bound_policy`](crate::bound_policy).
    ///
    /// # Panics
    ///
    /// When the model's device does not track gradients, or the recipe's loss scale is out of range
    /// (one that was read from text is not).
    pub fn new(model: Segmentor, recipe: &Recipe) -> Self {
        let scaler = GradScaler::new(recipe.precision.scaling());
        let mut policy = recipe.precision.policy();
        // Whoever reads recipes from files has refused unmatched paths before.
        let _ = policy.bind(&model);
        let model = model.with_gradient_checkpointing(recipe.train.gradient_checkpointing);
        Self {
            model: Some(model),
            sgd: Sgd::new(recipe.optimizer.momentum, recipe.optimizer.weight_decay),
            scaler,
            policy,
            schedule: recipe.poly(),
            clip_norm: recipe.optimizer.clip_norm,
            seed: recipe.seed,
            iteration: 0,
            further_devices: Vec::new(),
            exchange: Exchange::Host,
        }
    }

    /// Shares each batch with `devices` (with autodiff), in equal parts: each trains a copy of the
    /// network in a thread of its own, normalisations take their statistics over all parts, and one
    /// step moves the weights by the sum of all gradients. The results are those of one device with
    /// the whole batch, up to the rounding of sums. A device may be named several times.
    ///
    /// On different GPUs of NVIDIA the sums go over NCCL if `libnccl.so` is found, else, and on all
    /// other devices, through the host; see [`exchange`](Self::exchange).
    pub fn with_further_devices(mut self, devices: Vec<Device>) -> Self {
        self.further_devices = devices;
        self.exchange = Exchange::between(&self.all_devices());
        self
    }

    /// How the devices exchange gradients and sums.
    pub fn exchange(&self) -> Exchange {
        self.exchange
    }

    /// The model's own device and those that share batches with it.
    fn all_devices(&self) -> Vec<Device> {
        let own = burn::module::Module::devices(self.model());
        let own = own.into_iter().next().expect("a network has parameters");
        std::iter::once(own)
            .chain(self.further_devices.iter().cloned())
            .collect()
    }

    /// One iteration.
    ///
    /// # Shapes
    /// - `images`: `[n, 3, h, w]`, normalised, on the model's device
    /// - `labels`: `[n, h, w]`, trainIds or 255
    pub fn step(&mut self, images: Tensor<4>, labels: Tensor<3, Int>) -> Step {
        self.step_with(images, labels, || ())
    }

    /// As [`step`](Self::step), with a call of `forward_done` between the forward and the backward
    /// pass, when everything is in memory that the backward pass reads.
    pub fn step_with(
        &mut self,
        images: Tensor<4>,
        labels: Tensor<3, Int>,
        forward_done: impl FnOnce(),
    ) -> Step {
        let lr = self.schedule.at(self.iteration);
        let model = self
            .model
            .take()
            .expect("a model is put back after each step");
        self.scaler.begin(&model);
        let (numbers, grads) = match self.further_devices.is_empty() {
            true => self.pass().run(&model, images, labels, forward_done),
            false => self.pass_on_all(&model, images, labels, forward_done),
        };
        let mut grads = self.scaler.unscale(grads);
        if self.clip_norm > 0.0 {
            grads = grads.clip_norm(self.clip_norm as f32);
        }
        let (sgd, scaler) = (&mut self.sgd, &mut self.scaler);
        let (model, outcome) =
            scaler.step_with(model, grads, |model, grads| sgd.step(lr, model, grads));
        self.model = Some(model);
        self.iteration += 1;

        let [loss, decode, aux, accuracy] = joined(&numbers.read());
        Step {
            iteration: self.iteration,
            lr,
            loss,
            decode,
            aux,
            accuracy,
            outcome,
        }
    }

    /// What the forward and backward passes of the next step need.
    fn pass(&self) -> Pass<'_> {
        // Each iteration has random numbers of its own, so that a resumed run draws the same.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.iteration);
        Pass {
            policy: &self.policy,
            scaler: &self.scaler,
            parts: 1 + self.further_devices.len(),
            rng,
        }
    }

    /// Forward and backward pass on all devices, in equal parts of the batch.
    fn pass_on_all(
        &self,
        model: &Segmentor,
        images: Tensor<4>,
        labels: Tensor<3, Int>,
        forward_done: impl FnOnce(),
    ) -> (Numbers, ScaledGrads) {
        let pass = self.pass();
        let [batch, ..] = images.dims();
        let parts = pass.parts;
        assert!(
            batch.is_multiple_of(parts),
            "{batch} images cannot be shared equally by {parts} devices"
        );
        let size = batch / parts;
        let part = |index: usize| {
            let images = images.clone().narrow(0, index * size, size);
            (images, labels.clone().narrow(0, index * size, size))
        };
        let workers = match self.exchange {
            Exchange::Host => Worker::group(parts),
            Exchange::Nccl => Worker::group_on(&self.all_devices()),
        };
        let mut workers = workers.into_iter();
        let first = workers.next().expect("there is one part for each device");
        std::thread::scope(|threads| {
            let others: Vec<_> = workers
                .zip(&self.further_devices)
                .enumerate()
                .map(|(index, (worker, device))| {
                    let (images, labels) = part(index + 1);
                    let (images, labels) = (handed_over(images, device), labels.into_data());
                    let labels = Tensor::from_data(labels, device);
                    let (model, pass) = (replica(model, device), pass.clone());
                    threads.spawn(move || {
                        worker.scope(|| {
                            let (numbers, grads) = pass.run(&model, images, labels, || ());
                            // The first worker makes the step.
                            drop(grads.summed(|values| worker.sum(values)));
                            numbers.read()
                        })
                    })
                })
                .collect();
            let (images, labels) = part(0);
            let (mut numbers, grads) = first.scope(|| {
                let (numbers, grads) = pass.run(model, images, labels, forward_done);
                (numbers, grads.summed(|values| first.sum(values)))
            });
            for thread in others {
                match thread.join() {
                    Ok(found) => numbers.others.extend(found),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            (numbers, grads)
        })
    }

    /// The network, in training mode.
    pub fn model(&self) -> &Segmentor {
        self.model
            .as_ref()
            .expect("a model is put back after each step")
    }

    /// A copy of the network for inference; it shares the weights' memory.
    pub fn inference(&self) -> Segmentor {
        self.model().valid()
    }

    /// How operations are cast.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The gradient scaler.
    pub fn scaler(&self) -> &GradScaler {
        &self.scaler
    }

    /// Iterations run so far.
    pub fn iteration(&self) -> u64 {
        self.iteration
    }

    /// Iterations of the whole run.
    pub fn iterations(&self) -> u64 {
        self.schedule.iterations
    }

    pub(crate) fn momentum(&self) -> BTreeMap<String, TensorData> {
        self.sgd.buffers(self.model())
    }

    /// Continues where another learner stopped. Returns the momentum buffers that have no
    /// parameter.
    pub(crate) fn restore(
        &mut self,
        iteration: u64,
        scaler: GradScaler,
        momentum: BTreeMap<String, TensorData>,
        device: &Device,
    ) -> Vec<String> {
        self.iteration = iteration;
        self.scaler = scaler;
        let model = self
            .model
            .as_ref()
            .expect("a model is put back after each step");
        self.sgd.restore(model, momentum, device)
    }
}
