//! One training step, and everything that it changes.

mod parts;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use halfseg_amp::{Ema, GradScaler, Policy, ScaledGrads, StepOutcome};
use halfseg_devices::{ExchangePrecision, Ranks, Route};
use halfseg_layers::Objective;
use halfseg_segmentor::Segmentor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::optimizer::Optimizer;
use crate::{Factors, OptimizerRecipe, Recipe, Schedule};
pub(crate) use parts::replica;
use parts::{Crew, PartNumbers, Pass, joined, numbers_of, of_all, part_of, pass_on_all};

/// A network in training: weights, optimizer, gradient scaler and schedule.
///
/// [`step`](Self::step) is the whole of a training iteration but for loading the batch. A skipped
/// step (see [`StepOutcome`]) leaves weights, running statistics and momentum as they were, but
/// counts as an iteration: the schedule moves on, as mmengine's does.
pub struct Learner {
    /// Taken only within a step, so that the optimizer is the weights' sole owner and can write
    /// in place.
    model: Option<Segmentor>,
    optimizer: Optimizer,
    objective: Objective,
    scaler: GradScaler,
    policy: Policy,
    schedule: Schedule,
    clip_norm: f64,
    seed: u64,
    iteration: u64,
    /// Devices that share each batch with the model's own.
    further_devices: Vec<Device>,
    route: Route,
    /// Processes that share each batch, this one among them, each with as many devices.
    ranks: Ranks,
    exchange_precision: ExchangePrecision,
    /// Equal parts that each batch is taken in, one after the other.
    accumulate: usize,
    /// Of the averages; 0 for none.
    ema_decay: f64,
    averages: Option<Ema>,
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

impl Learner {
    /// Trains `model`, which lives on an autodiff device, as `recipe` says, and casts as `policy`
    /// does: the recipe's own, bound to the model by [`bound_policy`](crate::bound_policy).
    ///
    /// # Panics
    ///
    /// When the model's device does not track gradients, or the recipe's loss scale is out of range
    /// (one that was read from text is not).
    pub fn new(model: Segmentor, policy: Policy, recipe: &Recipe) -> Self {
        let scaler = GradScaler::new(recipe.precision.scaling());
        let model = model
            .with_gradient_checkpointing(recipe.train.gradient_checkpointing)
            .with_frozen_backbone(recipe.train.frozen(), recipe.train.norm_eval);
        let OptimizerRecipe {
            lr_factors,
            decay_factors,
            ..
        } = &recipe.optimizer;
        // Trainers refuse paths that are none.
        let (factors, _) = Factors::new(&model, lr_factors, decay_factors);
        Self {
            model: Some(model),
            optimizer: Optimizer::new(&recipe.optimizer, factors),
            objective: recipe.loss.objective(),
            scaler,
            policy,
            schedule: recipe.schedule(),
            clip_norm: recipe.optimizer.clip_norm,
            seed: recipe.seed,
            iteration: 0,
            further_devices: Vec::new(),
            route: Route::Host,
            ranks: Ranks::default(),
            exchange_precision: recipe.train.exchange_precision,
            accumulate: recipe.train.accumulate,
            ema_decay: recipe.train.ema,
            averages: None,
        }
    }

    /// Goes on with the averages that `averaged` holds, if the recipe wants any.
    pub(crate) fn with_averages(mut self, averaged: Option<Segmentor>) -> Self {
        let averaged = averaged.filter(|_| self.ema_decay > 0.0);
        let resumed = averaged.map(|from| Ema::resumed(self.model(), &from, self.ema_decay));
        self.averages = resumed;
        self
    }

    /// Shares each batch with `devices` (with autodiff), in equal parts: each trains a copy of the
    /// network in a thread of its own, normalisations take their statistics over all parts, and one
    /// step moves the weights by the sum of all gradients. The results are those of one device with
    /// the whole batch, up to the rounding of sums. A device may be named several times.
    ///
    /// On different GPUs of NVIDIA the sums go over NCCL if `libnccl.so` is found, else, and on all
    /// other devices, through the host; see [`route`](Self::route).
    pub fn with_further_devices(mut self, devices: Vec<Device>) -> Self {
        self.further_devices = devices;
        self.route = Route::between(&self.all_devices(self.model()));
        self
    }

    /// Shares each batch with other processes, which have as many devices each and the same network: a step is
    /// then given this process's part of the batch alone, the images at the places of
    /// [`places`](Self::places), and all processes take the same step, with gradients that travel as the recipe's
    /// `train.exchange_precision` says. The results are those of one device with the whole batch, up to the
    /// rounding of sums.
    pub fn with_ranks(mut self, ranks: Ranks) -> Self {
        self.ranks = ranks;
        self
    }

    /// The places in a batch of `batch` images that a step of this process is given, in their order: of each
    /// part that the batch is taken in, what its devices share.
    ///
    /// # Panics
    ///
    /// When the batch has no such parts.
    pub fn places(&self, batch: usize) -> Vec<usize> {
        let shares = self.accumulate * self.ranks.size();
        let devices = 1 + self.further_devices.len();
        assert!(
            batch.is_multiple_of(shares * devices),
            "{batch} images cannot be taken in {} equal parts",
            shares * devices
        );
        let (part, share) = (batch / self.accumulate, batch / shares);
        let first = |turn: usize| turn * part + self.ranks.rank() * share;
        let turns = (0..self.accumulate).map(first);
        turns.flat_map(|first| first..first + share).collect()
    }

    /// The processes that share each batch.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// The way that gradients and sums take between the devices of this process.
    pub fn route(&self) -> Route {
        self.route
    }

    /// The device of `model`, which a step takes out of the learner, and those that share batches
    /// with it.
    fn all_devices(&self, model: &Segmentor) -> Vec<Device> {
        let own = Module::devices(model);
        let own = own.into_iter().next().expect("a network has parameters");
        std::iter::once(own)
            .chain(self.further_devices.iter().cloned())
            .collect()
    }

    /// One iteration.
    ///
    /// # Shapes
    /// - `images`: `[n, 3, h, w]`, normalised, on the model's device; with several processes this one's part
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
        let (others, grads) = self.pass_in_parts(&model, images, labels, forward_done);
        let mut grads = self.scaler.unscale(grads);
        if self.clip_norm > 0.0 {
            grads = grads.clip_norm(self.clip_norm as f32);
        }
        // Read with what was to be known of the gradients, or, if nothing was, while the step is made.
        let numbers = grads.take_numbers();
        let (optimizer, scaler) = (&mut self.optimizer, &mut self.scaler);
        let (model, outcome) = scaler.step_with(model, grads, |model, grads| {
            optimizer.step(lr, model, grads)
        });
        self.average(&model, &outcome);
        self.model = Some(model);
        self.iteration += 1;

        let parts = of_all(&self.ranks, &[numbers_of(numbers), others].concat());
        let [loss, decode, aux, accuracy] = joined(&parts);
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

    /// Moves the averages after a step that was taken, of which the first begins them, as in PyTorch's
    /// `AveragedModel`.
    fn average(&mut self, model: &Segmentor, outcome: &StepOutcome) {
        match &mut self.averages {
            Some(averages) => averages.update(model, outcome),
            None if self.ema_decay > 0.0 && outcome.stepped() => {
                self.averages = Some(Ema::new(model, self.ema_decay));
            }
            None => {}
        }
    }

    /// The passes over all parts of a batch, one after the other: the numbers of the further devices' parts,
    /// and the gradients of all, added up.
    ///
    /// # Panics
    ///
    /// When the batch has no such parts.
    fn pass_in_parts(
        &self,
        model: &Segmentor,
        images: Tensor<4>,
        labels: Tensor<3, Int>,
        forward_done: impl FnOnce(),
    ) -> (Vec<PartNumbers>, ScaledGrads) {
        let [batch, ..] = images.dims();
        let parts = self.accumulate;
        assert!(
            batch.is_multiple_of(parts),
            "{batch} images cannot be taken in {parts} equal parts"
        );
        let mut done = Some(forward_done);
        let mut others = Vec::new();
        let mut sum: Option<ScaledGrads> = None;
        for part in 0..parts {
            let (images, labels) = part_of(&images, &labels, part, parts);
            let done = || {
                if let Some(done) = done.take() {
                    done();
                }
            };
            let (numbers, grads) = self.pass_over(part, model, images, labels, done);
            others.extend(numbers);
            sum = Some(match sum {
                None => grads,
                Some(before) => before.accumulate(grads),
            });
        }
        (others, sum.expect("a batch has at least one part"))
    }

    fn pass_over(
        &self,
        part: usize,
        model: &Segmentor,
        images: Tensor<4>,
        labels: Tensor<3, Int>,
        forward_done: impl FnOnce(),
    ) -> (Vec<PartNumbers>, ScaledGrads) {
        let pass = self.pass(part);
        if self.further_devices.is_empty() && self.ranks.size() == 1 {
            let grads = pass.run(model, images, labels, forward_done);
            return (Vec::new(), grads);
        }
        let crew = Crew {
            devices: &self.all_devices(model),
            route: self.route,
            ranks: &self.ranks,
            precision: self.exchange_precision,
        };
        pass_on_all(pass, &crew, model, images, labels, forward_done)
    }

    /// What the forward and backward passes of the next step over a part of the batch need.
    fn pass(&self, part: usize) -> Pass<'_> {
        // Each iteration and part has random numbers of its own, so that a resumed run draws the same.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.iteration);
        rng.set_word_pos((part as u128) << 32);
        let devices = (1 + self.further_devices.len()) * self.ranks.size();
        Pass {
            policy: &self.policy,
            scaler: &self.scaler,
            objective: &self.objective,
            parts: devices * self.accumulate,
            rng,
        }
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

    /// The network for inference with the averages of its weights that the recipe's `train.ema` asks for, from the
    /// first step on that was taken. Running statistics are those of the network.
    pub fn averaged(&self) -> Option<Segmentor> {
        let averages = self.averages.as_ref();
        averages.map(|averages| averages.averaged(self.model()))
    }

    /// Whether there are such averages.
    pub(crate) fn has_averages(&self) -> bool {
        self.averages.is_some()
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
        self.schedule.iterations()
    }

    pub(crate) fn momentum(&self) -> BTreeMap<String, TensorData> {
        self.optimizer.buffers(self.model())
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
        self.optimizer.restore(model, momentum, device)
    }
}
