//! The parts of a step's batch: forward and backward pass of each, on several devices at once.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Int, Tensor};
use halfseg_amp::{GradScaler, Numbers, Policy, ScaledGrads, autocast};
use halfseg_devices::{ExchangePrecision, Ranks, Route, Worker, is_host};
use halfseg_layers::{IGNORED_LABEL, Objective};
use halfseg_segmentor::{Losses, Segmentor};
use rand_chacha::ChaCha8Rng;

const _: () = assert!(
    halfseg_data::IGNORE as i64 == IGNORED_LABEL,
    "data sets and losses leave out the same label"
);

/// The forward and the backward pass over one part of a batch.
#[derive(Clone)]
pub(super) struct Pass<'a> {
    pub policy: &'a Policy,
    pub scaler: &'a GradScaler,
    pub objective: &'a Objective,
    /// Parts of the whole batch, of which this is one.
    pub parts: usize,
    pub rng: ChaCha8Rng,
}

impl Pass<'_> {
    /// Gradients, with [`PartNumbers`] to be read along with them.
    pub fn run(
        mut self,
        model: &Segmentor,
        images: Tensor<4>,
        labels: Tensor<3, Int>,
        forward_done: impl FnOnce(),
    ) -> ScaledGrads {
        let losses = autocast(self.policy, || {
            model.loss_with(images, labels, &mut self.rng, self.objective)
        });
        let Losses {
            total,
            decode,
            aux,
            accuracy,
            counted,
            ..
        } = &losses;
        let numbers = [total, decode, aux, accuracy, counted];
        let numbers = numbers.map(|number| number.clone().inner()).to_vec();
        forward_done();
        // Each loss is the mean over the pixels of a part, of which all have the same number.
        let loss = match self.parts {
            1 => losses.total,
            parts => losses.total / parts as f64,
        };
        let grads = self.scaler.scale(loss).backward(model);
        grads.with_numbers(Tensor::cat(numbers, 0))
    }
}

/// Loss, decode loss, auxiliary loss, accuracy and the number of pixels that count of a part.
pub(super) type PartNumbers = [f64; 5];

/// The numbers of the parts of all processes, which have equally many.
pub(super) fn of_all(ranks: &Ranks, own: &[PartNumbers]) -> Vec<PartNumbers> {
    if ranks.size() == 1 {
        return own.to_vec();
    }
    let bytes: Vec<u8> = own
        .as_flattened()
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let all = ranks.gather(&bytes).concat();
    let (numbers, _) = all.as_chunks::<8>();
    let numbers: Vec<f64> = numbers
        .iter()
        .map(|bytes| f64::from_le_bytes(*bytes))
        .collect();
    numbers.as_chunks::<5>().0.to_vec()
}

/// The numbers of one part after the other, from their gradients.
pub(super) fn numbers_of(numbers: Numbers) -> Vec<PartNumbers> {
    let read = numbers.read();
    let (parts, rest) = read.as_chunks::<5>();
    assert!(rest.is_empty(), "a part has five numbers");
    parts.iter().map(|part| part.map(f64::from)).collect()
}

/// A copy of `model` on `device` that shares neither its graph nor its running statistics.
pub(crate) fn replica(model: &Segmentor, device: &Device) -> Segmentor {
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

/// Loss, decode loss, auxiliary loss and accuracy of the whole batch.
pub(super) fn joined(parts: &[PartNumbers]) -> [f64; 4] {
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

/// One of equally large parts of a batch.
pub(super) fn part_of(
    images: &Tensor<4>,
    labels: &Tensor<3, Int>,
    index: usize,
    parts: usize,
) -> (Tensor<4>, Tensor<3, Int>) {
    let size = images.dims()[0] / parts;
    let images = images.clone().narrow(0, index * size, size);
    (images, labels.clone().narrow(0, index * size, size))
}

/// The devices that share each batch.
pub(super) struct Crew<'a> {
    /// Of this process, the model's own first.
    pub devices: &'a [Device],
    pub route: Route,
    /// The processes, each with so many devices.
    pub ranks: &'a Ranks,
    pub precision: ExchangePrecision,
}

/// Gradients, flags and losses of all workers.
fn summed(grads: ScaledGrads, worker: &Worker) -> ScaledGrads {
    grads.summed(|rows| worker.sum_gradients(rows), |row| worker.sum(row))
}

/// Forward and backward pass on all devices of `crew`, in equal parts of the batch, of which this process has
/// its own: the numbers of the parts of the other devices of this process, and the gradients of all with the
/// numbers of the first.
pub(super) fn pass_on_all(
    pass: Pass<'_>,
    crew: &Crew<'_>,
    model: &Segmentor,
    images: Tensor<4>,
    labels: Tensor<3, Int>,
    forward_done: impl FnOnce(),
) -> (Vec<PartNumbers>, ScaledGrads) {
    let [batch, ..] = images.dims();
    let devices = crew.devices;
    let parts = devices.len();
    assert!(
        batch.is_multiple_of(parts),
        "{batch} images cannot be shared equally by {parts} devices"
    );
    let part = |index| part_of(&images, &labels, index, parts);
    let workers = Worker::of_ranks(crew.route.group(devices), crew.ranks, crew.precision);
    let mut workers = workers.into_iter();
    let first = workers.next().expect("there is one part for each device");
    std::thread::scope(|threads| {
        let others: std::io::Result<Vec<_>> = workers
            .zip(&devices[1..])
            .enumerate()
            .map(|(index, (worker, device))| {
                let (images, labels) = part(index + 1);
                let (images, labels) = (handed_over(images, device), labels.into_data());
                let labels = Tensor::from_data(labels, device);
                let (model, pass) = (replica(model, device), pass.clone());
                std::thread::Builder::new().spawn_scoped(threads, move || {
                    worker.scope(|| {
                        let grads = pass.run(&model, images, labels, || ());
                        // The first worker makes the step.
                        let mut grads = summed(grads, &worker);
                        numbers_of(grads.take_numbers())
                    })
                })
            })
            .collect();
        // In its scope, so that those that were started do not wait for the others.
        let others = others.unwrap_or_else(|error| {
            first.scope(|| panic!("no thread for each device: {error} (`ulimit -u` limits them)"))
        });
        let (images, labels) = part(0);
        let grads = first.scope(|| {
            let grads = pass.run(model, images, labels, forward_done);
            summed(grads, &first)
        });
        let mut numbers = Vec::new();
        for thread in others {
            match thread.join() {
                Ok(found) => numbers.extend(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (numbers, grads)
    })
}
