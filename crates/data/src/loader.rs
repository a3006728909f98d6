//! Background loading in an order that depends on the seed alone.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{DataError, Dataset, Pipeline};

/// How a [`Loader`] reads.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Samples per batch.
    pub batch: usize,
    /// Seed of the order and of every random parameter.
    pub seed: u64,
    /// Worker threads; they do not change what is loaded.
    pub workers: usize,
    /// Batches that each worker keeps ready.
    pub queue: usize,
    /// The first iteration to load, for resuming.
    pub start_at: u64,
}

/// One batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `n * 3 * height * width`, normalised.
    pub images: Vec<f32>,
    /// `n * height * width` trainIds.
    pub labels: Vec<u8>,
    /// Number of samples, height, width.
    pub shape: [usize; 3],
    /// The iteration it belongs to.
    pub iteration: u64,
    /// How long the caller waited for it.
    pub waited: Duration,
}

impl Batch {
    /// Images `[n, 3, h, w]` in f32 and labels `[n, h, w]` on `device`.
    pub fn to_tensors(&self, device: &Device) -> (Tensor<4>, Tensor<3, Int>) {
        let [n, h, w] = self.shape;
        let images = TensorData::new(self.images.clone(), [n, 3, h, w]);
        let labels: Vec<i32> = self.labels.iter().map(|&id| id as i32).collect();
        let labels = TensorData::new(labels, [n, h, w]);
        (
            Tensor::from_data(images, device),
            Tensor::from_data(labels, device),
        )
    }
}

type Message = Result<Batch, DataError>;

/// An endless iterator of batches, made by worker threads behind bounded queues.
///
/// Iteration `i` is always made by worker `i % workers` from a random generator of its own per
/// sample, so that neither the number of workers nor their speed changes a value.
#[derive(Debug)]
pub struct Loader {
    queues: Vec<Receiver<Message>>,
    workers: Vec<JoinHandle<()>>,
    next: u64,
}

impl Loader {
    /// Starts the workers.
    ///
    /// # Panics
    /// If the data set is empty, or batch or workers are 0.
    pub fn new(dataset: Arc<dyn Dataset>, pipeline: Pipeline, config: LoaderConfig) -> Self {
        assert!(!dataset.is_empty(), "a loader needs at least one sample");
        assert!(
            config.batch > 0 && config.workers > 0,
            "batch and workers must be at least 1"
        );
        let (mut queues, mut workers) = (Vec::new(), Vec::new());
        let count = config.workers as u64;
        for worker in 0..count {
            let (sender, receiver) = sync_channel(config.queue.max(1));
            let (dataset, pipeline, config) = (dataset.clone(), pipeline.clone(), config.clone());
            // The worker's first iteration: the smallest from `start_at` on that is its own.
            let first = config.start_at + (worker + count - config.start_at % count) % count;
            queues.push(receiver);
            workers.push(std::thread::spawn(move || {
                work(&*dataset, &pipeline, &config, first, count, &sender);
            }));
        }
        Self {
            queues,
            workers,
            next: config.start_at,
        }
    }
}

fn work(
    dataset: &dyn Dataset,
    pipeline: &Pipeline,
    config: &LoaderConfig,
    first: u64,
    step: u64,
    sender: &SyncSender<Message>,
) {
    let mut order = Order::new(dataset.len(), config.seed);
    let mut iteration = first;
    loop {
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            make(dataset, pipeline, config, &mut order, iteration)
        }))
        .unwrap_or_else(|panic| {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or(panic.downcast_ref::<&str>().map(|s| s.to_string()));
            Err(DataError::Worker(words.unwrap_or_else(|| "panic".into())))
        });
        let failed = made.is_err();
        // A closed queue means that the loader is gone.
        if sender.send(made).is_err() || failed {
            return;
        }
        iteration += step;
    }
}

fn make(
    dataset: &dyn Dataset,
    pipeline: &Pipeline,
    config: &LoaderConfig,
    order: &mut Order,
    iteration: u64,
) -> Message {
    let (height, width) = pipeline.crop;
    let mut images = Vec::with_capacity(config.batch * 3 * height * width);
    let mut labels = Vec::with_capacity(config.batch * height * width);
    for j in 0..config.batch as u64 {
        let counter = iteration * config.batch as u64 + j;
        let sample = dataset.get(order.index(counter))?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(counter + 1);
        let out = pipeline.apply(&sample, &mut rng)?;
        images.extend(out.image);
        labels.extend(out.label);
    }
    let shape = [config.batch, height, width];
    Ok(Batch {
        images,
        labels,
        shape,
        iteration,
        waited: Duration::ZERO,
    })
}

/// Shuffled epochs, one after the other.
struct Order {
    seed: u64,
    epoch: Option<u64>,
    indices: Vec<usize>,
}

impl Order {
    fn new(len: usize, seed: u64) -> Self {
        Self {
            seed,
            epoch: None,
            indices: (0..len).collect(),
        }
    }

    fn index(&mut self, counter: u64) -> usize {
        let len = self.indices.len() as u64;
        let epoch = counter / len;
        if self.epoch != Some(epoch) {
            self.indices.sort_unstable();
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x9E37_79B9_7F4A_7C15);
            rng.set_stream(epoch);
            self.indices.shuffle(&mut rng);
            self.epoch = Some(epoch);
        }
        self.indices[(counter % len) as usize]
    }
}

impl Iterator for Loader {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let queue = &self.queues[(self.next % self.queues.len() as u64) as usize];
        let start = Instant::now();
        let message = queue.recv().unwrap_or_else(|_| {
            Err(DataError::Worker(
                "its queue closed after an earlier error".into(),
            ))
        });
        self.next += 1;
        Some(message.map(|batch| Batch {
            waited: start.elapsed(),
            ..batch
        }))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.queues.clear();
        for worker in self.workers.drain(..) {
            // A worker turns its panics into messages; nothing is left to report here.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SyntheticStreets;

    fn first(workers: usize, start_at: u64, count: usize) -> Vec<Batch> {
        let dataset = Arc::new(SyntheticStreets::new(64, 32, 5, 3));
        let pipeline = Pipeline {
            scale: (64, 32),
            crop: (24, 24),
            ..Pipeline::default()
        };
        let config = LoaderConfig {
            batch: 2,
            seed: 9,
            workers,
            queue: 2,
            start_at,
        };
        Loader::new(dataset, pipeline, config)
            .take(count)
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn neither_workers_nor_a_restart_change_what_is_loaded() {
        let one = first(1, 0, 7);
        let three = first(3, 0, 7);
        let resumed = first(2, 4, 3);
        for (a, b) in one.iter().zip(&three) {
            assert_eq!(
                (a.iteration, &a.images, &a.labels),
                (b.iteration, &b.images, &b.labels)
            );
        }
        for (a, b) in one[4..].iter().zip(&resumed) {
            assert_eq!(
                (a.iteration, &a.images, &a.labels),
                (b.iteration, &b.images, &b.labels)
            );
        }
        assert_ne!(one[0].images, one[1].images);
    }

    #[test]
    fn an_error_of_a_sample_reaches_the_caller() {
        struct Broken;
        impl Dataset for Broken {
            fn len(&self) -> usize {
                1
            }
            fn get(&self, _: usize) -> Result<crate::Sample, DataError> {
                panic!("broken on purpose")
            }
        }
        let config = LoaderConfig {
            batch: 1,
            seed: 0,
            workers: 1,
            queue: 1,
            start_at: 0,
        };
        let mut loader = Loader::new(Arc::new(Broken), Pipeline::default(), config);
        let message = loader.next().unwrap().unwrap_err().to_string();
        assert!(message.contains("broken on purpose"), "{message}");
    }
}
