//! Batch normalisation with PyTorch's running statistics.

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;

use burn::config::Config;
use burn::module::{Flag, Module, ModuleMapper, Param, RunningState};
use burn::tensor::{Device, Tensor};
use halfseg_amp::{Op, cast, observe};
use halfseg_devices::Worker;
use halfseg_kernels::{
    Activation, BatchParts, Running, batch_norm_shared, batch_norm_train_moving,
};

use crate::recompute::is_repeating;

/// Configuration of a [`BatchNorm`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct BatchNormConfig {
    /// Number of channels.
    pub channels: usize,
    /// Added to the variance before its root. PyTorch's default.
    #[config(default = 1e-5)]
    pub epsilon: f64,
    /// Share of the batch's statistics in each update of the running ones. PyTorch's default.
    #[config(default = 0.1)]
    pub momentum: f64,
    /// Initial value of the scale. 0 makes a residual block start as the identity
    /// (arXiv:1706.02677, section 5.1).
    #[config(default = 1.0)]
    pub scale: f64,
}

/// Normalises each channel (arXiv:1502.03167), in training over the batch, otherwise with running
/// statistics.
///
/// The running variance is the **unbiased** one, as PyTorch stores it: it differs from the variance
/// that normalises by `count / (count - 1)`, a factor of 2 for the 1x1 pooled branch at batch 2.
/// Parameters and statistics are f32 whatever the dtype of the maps is.
#[derive(Module, Debug)]
pub struct BatchNorm {
    /// Scale, `[c]` (gamma).
    pub weight: Param<Tensor<1>>,
    /// Shift, `[c]` (beta).
    pub bias: Param<Tensor<1>>,
    /// Running mean, `[c]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// Running unbiased variance, `[c]`.
    pub running_var: RunningState<Tensor<1>>,
    /// Off in a frozen layer, which then uses its running statistics on an autodiff device too.
    pub training: Param<Flag>,
    epsilon: f64,
    momentum: f64,
}

impl BatchNormConfig {
    /// Starts from mean 0 and variance 1.
    pub fn init(&self, device: &Device) -> BatchNorm {
        let shape = [self.channels];
        BatchNorm {
            weight: Param::from_tensor(Tensor::full(shape, self.scale, device)),
            bias: Param::from_tensor(Tensor::zeros(shape, device)),
            running_mean: RunningState::new(Tensor::zeros(shape, device)),
            running_var: RunningState::new(Tensor::ones(shape, device)),
            training: Param::from_bool(true),
            epsilon: self.epsilon,
            momentum: self.momentum,
        }
    }
}

impl BatchNorm {
    /// Whether maps on `device` are normalised by their own statistics.
    pub fn trains_on(&self, device: &Device) -> bool {
        device.is_autodiff() && self.training.is_enabled()
    }

    /// Normalises `x` by its own statistics, adds `skip`, applies `activation`, and moves the
    /// running statistics. All maps are `[n, c, h, w]`. In the scope of a [`Worker`] the statistics are
    /// those of all workers' maps.
    ///
    /// # Panics
    /// If there is one value per channel only (batch 1 of a 1x1 map): it has no variance.
    pub fn forward_train(
        &self,
        x: Tensor<4>,
        skip: Option<Tensor<4>>,
        activation: Activation,
    ) -> Tensor<4> {
        let [n, c, h, w] = x.dims();
        let worker = Worker::current();
        let count = n * h * w * worker.as_ref().map_or(1, Worker::size);
        assert!(
            count > 1,
            "batch normalisation needs more than one value per channel in training, but was given \
             [{n}, {c}, {h}, {w}]: use a batch of at least 2, or freeze the layer"
        );
        let statistics = RefCell::new(None);
        let output = observe(Op::BatchNorm, &self.weight, (x, skip), |(x, skip)| {
            let x = cast(Op::BatchNorm, x);
            let skip = skip.map(|skip| skip.cast(x.dtype()));
            let (gamma, beta) = (self.weight.val(), self.bias.val());
            let running = Running {
                mean: self.running_mean.value_sync(),
                variance: self.running_var.value_sync(),
                momentum: self.momentum,
            };
            let (output, moved) = match &worker {
                Some(worker) => {
                    let (parameters, parts) = ([gamma, beta], Arc::new(Parts(worker.clone())));
                    let result =
                        batch_norm_shared(x, parameters, self.epsilon, skip, activation, parts);
                    let unbiased = self.momentum * count as f64 / (count - 1) as f64;
                    let mean = self.moved(running.mean, result.mean, self.momentum);
                    let variance = self.moved(running.variance, result.variance, unbiased);
                    (result.output, [mean, variance])
                }
                None => {
                    batch_norm_train_moving(x, gamma, beta, self.epsilon, skip, activation, running)
                }
            };
            *statistics.borrow_mut() = Some(moved);
            output
        });
        let statistics = statistics.into_inner().filter(|_| !is_repeating());
        if let Some([mean, variance]) = statistics {
            replace(&self.running_mean, mean);
            replace(&self.running_var, variance);
        }
        output
    }

    /// The scale and the shift, `[c]` each, that normalise by the running statistics:
    /// `y = scale * x + shift`.
    pub fn affine(&self) -> (Tensor<1>, Tensor<1>) {
        let deviation = (self.running_var.value_sync() + self.epsilon).sqrt();
        let scale = self.weight.val() / deviation;
        let shift = self.bias.val() - self.running_mean.value_sync() * scale.clone();
        (scale, shift)
    }

    fn moved(&self, running: Tensor<1>, batch: Tensor<1>, share: f64) -> Tensor<1> {
        running * (1.0 - self.momentum) + batch.detach() * share
    }
}

/// Replaces a statistic by the one that has moved.
///
/// Not by [`RunningState::update`], which averages over threads: that divides by their number, a kernel for each
/// statistic, and keeps the value for the next update, so that neither checkpoints nor a gradient scaler that
/// takes a step back would see it.
fn replace(state: &RunningState<Tensor<1>>, moved: Tensor<1>) {
    struct Moved(Tensor<1>);
    impl ModuleMapper for Moved {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let moved = (&self.0 as &dyn Any).downcast_ref::<Tensor<D>>();
            let moved = moved.expect("a statistic has one dimension").clone();
            param.map(|_| moved)
        }
    }
    // A clone shares the value.
    state.clone().map(&mut Moved(moved));
}

/// The workers of a step, each with a part of the batch.
struct Parts(Worker);

impl BatchParts for Parts {
    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        self.0.gather(own)
    }

    fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        self.0.sum(own)
    }
}
