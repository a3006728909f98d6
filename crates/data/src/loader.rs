//! Background loading in an order that depends on the seed alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    Crop, CropBox, DataError, Dataset, IGNORE, LabelMap, PictureRef, Pipeline, check_labels,
};

/// How a [`Loader`] reads.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Samples per batch.
    pub batch: usize,
    /// Seed of the order and of every random parameter.
    pub seed: u64,
    /// Worker threads; they do not change what is loaded. Without any, batches are made by the thread
    /// that asks for them, when it does.
    pub workers: usize,
    /// Batches that each worker keeps ready, at least 1 and at most 65,536.
    pub queue: usize,
    /// The first iteration to load, for resuming.
    pub start_at: u64,
}

/// One batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `n * channels * height * width`, normalised.
    pub images: Vec<f32>,
    /// `n * height * width` trainIds.
    pub labels: Vec<u8>,
    /// Number of samples, height, width.
    pub shape: [usize; 3],
    /// The iteration it belongs to.
    pub iteration: u64,
    /// What each sample comes from; see [`Dataset::source`].
    pub sources: Vec<String>,
    /// How long the caller waited for it.
    pub waited: Duration,
}

impl Batch {
    /// Images `[n, channels, h, w]` in f32 and labels `[n, h, w]` on `device`.
    pub fn to_tensors(&self, device: &Device) -> (Tensor<4>, Tensor<3, Int>) {
        self.clone().into_tensors(device)
    }

    /// Refuses labels that are neither below `classes` nor 255, with what they come from.
    ///
    /// # Errors
    /// [`DataError::LabelOutOfRange`].
    pub fn check_labels(&self, classes: usize) -> Result<(), DataError> {
        let maps = self
            .labels
            .chunks(self.labels.len() / self.sources.len().max(1));
        for (map, source) in maps.zip(&self.sources) {
            check_labels(map, classes, || format!("the label map of {source}"))?;
        }
        Ok(())
    }

    /// [`Self::to_tensors`] without a copy of the images.
    pub fn into_tensors(self, device: &Device) -> (Tensor<4>, Tensor<3, Int>) {
        let [n, h, w] = self.shape;
        let channels = self.images.len() / (n * h * w).max(1);
        let images = TensorData::new(self.images, [n, channels, h, w]);
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
/// sample, so that neither the number of workers nor their speed changes a value. At most
/// `workers * (queue + 1)` batches exist beside the one in use. After an error, which names the
/// file at fault, the worker that met it has ended and every later batch of it is an error.
#[derive(Debug)]
pub struct Loader {
    /// Makes the batches where there is no worker.
    own: Option<Task>,
    queues: Vec<Receiver<Message>>,
    workers: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    next: u64,
    waited: Duration,
}

impl Loader {
    /// Starts the workers.
    ///
    /// # Panics
    /// If the data set is empty, the batch is 0 or larger than any memory, or the pipeline does not
    /// pass [`Pipeline::check`].
    pub fn new(dataset: Arc<dyn Dataset>, pipeline: Pipeline, config: LoaderConfig) -> Self {
        // Before a list of so many places is made.
        check_size(&pipeline, config.batch);
        let all = (0..config.batch).collect();
        Self::of_places(dataset, pipeline, config, all)
    }

    /// As [`new`](Self::new), but of each batch only the samples at these `places`, in this order, as they are
    /// in the whole batch: for one of several programs that share it.
    ///
    /// # Panics
    /// As [`new`](Self::new), and if a place is none of the batch.
    pub fn of_places(
        dataset: Arc<dyn Dataset>,
        pipeline: Pipeline,
        config: LoaderConfig,
        places: Vec<usize>,
    ) -> Self {
        assert!(!dataset.is_empty(), "a loader needs at least one sample");
        assert!(!places.is_empty(), "a batch needs at least one sample");
        assert!(
            places.iter().all(|place| *place < config.batch),
            "a place beyond a batch of {}",
            config.batch
        );
        if let Err(error) = pipeline.check() {
            panic!("{error}");
        }
        check_size(&pipeline, places.len());
        let places: Arc<[usize]> = places.into();
        let (mut queues, mut workers) = (Vec::new(), Vec::new());
        let stop = Arc::new(AtomicBool::new(false));
        let count = config.workers as u64;
        let task = || Task {
            dataset: dataset.clone(),
            pipeline: pipeline.clone(),
            config: config.clone(),
            places: places.clone(),
            stop: stop.clone(),
            order: Order::new(dataset.len(), config.seed),
            index: None,
        };
        for worker in 0..count {
            let (sender, receiver) = sync_channel(config.queue.clamp(1, 1 << 16));
            queues.push(receiver);
            let task = task();
            // The worker's first iteration: the smallest from `start_at` on that is its own.
            let first = config.start_at + (worker + count - config.start_at % count) % count;
            let failed = sender.clone();
            let started = std::thread::Builder::new()
                .name(format!("loader-{worker}"))
                .spawn(move || task.run(first, count, &sender));
            match started {
                Ok(handle) => workers.push(handle),
                // The queue has room: nothing has been sent yet.
                Err(error) => {
                    let why = format!(
                        "the system gives it no thread ({error}); take fewer workers or allow more threads"
                    );
                    drop(failed.send(Err(DataError::Worker(why))));
                }
            }
        }
        Self {
            own: (count == 0).then(task),
            queues,
            workers,
            stop,
            next: config.start_at,
            waited: Duration::ZERO,
        }
    }

    /// The iteration that comes next: `start_at` of a loader that goes on from here.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// How long the caller has waited for batches in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

/// Panics if so many samples are larger than any memory.
fn check_size(pipeline: &Pipeline, samples: usize) {
    let Crop { height, width } = pipeline.crop;
    let mut values = [pipeline.format.channels(), height, width, size_of::<f32>()].into_iter();
    let bytes = values.try_fold(samples, usize::checked_mul);
    assert!(
        bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok()),
        "a batch of {samples} crops of {height}x{width} is larger than any memory"
    );
}

/// What one worker knows.
struct Task {
    dataset: Arc<dyn Dataset>,
    pipeline: Pipeline,
    config: LoaderConfig,
    /// Of each batch.
    places: Arc<[usize]>,
    stop: Arc<AtomicBool>,
    order: Order,
    /// The sample in work, or the one before.
    index: Option<usize>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

impl Task {
    fn run(mut self, first: u64, step: u64, sender: &SyncSender<Message>) {
        for iteration in (first..).step_by(step as usize) {
            let made = self.make_or_say_why(iteration);
            let failed = made.is_err();
            // A closed queue means that the loader is gone.
            if sender.send(made).is_err() || failed {
                return;
            }
        }
    }

    /// [`Self::make`], whose panics become errors that name the sample.
    fn make_or_say_why(&mut self, iteration: u64) -> Message {
        let made = catch_unwind(AssertUnwindSafe(|| self.make(iteration)));
        made.unwrap_or_else(|panic| {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or(panic.downcast_ref::<&str>().map(|s| s.to_string()));
            let words = words.unwrap_or_else(|| "panic".into());
            Err(DataError::Worker(match self.index {
                Some(index) => format!("{words}, at {}", self.dataset.source(index)),
                None => words,
            }))
        })
    }

    fn make(&mut self, iteration: u64) -> Message {
        let Crop { height, width } = self.pipeline.crop;
        let places = self.places.clone();
        let (batch, area) = (places.len(), height * width);
        let first = iteration * self.config.batch as u64;
        // Filled with the padding, which each sample overwrites as far as it reaches.
        let channels = self.pipeline.format.channels();
        let mut images = vec![0.0; batch * channels * area];
        let mut labels = vec![IGNORE; batch * area];
        let mut sources = Vec::with_capacity(batch);
        let parts = images
            .chunks_exact_mut(channels * area)
            .zip(labels.chunks_exact_mut(area));
        for (place, (planes, map)) in places.iter().zip(parts) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(DataError::Worker("the loader was dropped".into()));
            }
            let index = self.make_sample(first + *place as u64, planes, map)?;
            sources.push(self.dataset.source(index));
        }
        Ok(Batch {
            images,
            labels,
            shape: [batch, height, width],
            iteration,
            sources,
            waited: Duration::ZERO,
        })
    }

    fn make_sample(
        &mut self,
        counter: u64,
        planes: &mut [f32],
        map: &mut [u8],
    ) -> Result<usize, DataError> {
        let index = self.order.index(counter);
        self.index = Some(index);
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(counter + 1);
        let mut choices = None;
        let sample = self
            .dataset
            .get_part(index, &mut |label: &LabelMap| -> CropBox {
                let chosen = choices.insert(self.pipeline.choose(label, &mut rng));
                chosen.source_region((label.width, label.height))
            })?;
        let (Some(label), Some(choices)) = (&sample.label, choices) else {
            return Err(DataError::Unlabelled { name: sample.name });
        };
        let (format, found) = (&self.pipeline.format, PictureRef::from(&sample.image.image));
        if found.channels() != format.channels() {
            return Err(DataError::Channels {
                path: self.dataset.source(index).into(),
                expected: format!("{format}, as the pipeline is for"),
                found: format!("{} channels", found.channels()),
            });
        }
        self.pipeline
            .replay_part_into(&sample.image, label, &choices, planes, map);
        Ok(index)
    }
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
        let start = Instant::now();
        let message = match self.queues.len() as u64 {
            0 => self
                .own
                .as_mut()
                .map(|task| task.make_or_say_why(self.next)),
            count => self.queues[(self.next % count) as usize].recv().ok(),
        };
        let closed = || DataError::Worker("its queue closed after an earlier error".into());
        let message = message.unwrap_or_else(|| Err(closed()));
        if message.is_err() {
            self.own = None;
        }
        self.next += 1;
        let waited = start.elapsed();
        self.waited += waited;
        Some(message.map(|batch| Batch { waited, ..batch }))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
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
    use crate::{Sample, SyntheticStreets};

    fn first(workers: usize, start_at: u64, count: usize) -> Vec<Batch> {
        let dataset = Arc::new(SyntheticStreets::new(64, 32, 5, 3));
        let pipeline = Pipeline {
            scale: "64x32".parse().unwrap(),
            crop: "24x24".parse().unwrap(),
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
        for (a, b) in one.iter().zip(&first(0, 0, 7)) {
            assert_eq!(
                (a.iteration, &a.images, &a.labels, &a.sources),
                (b.iteration, &b.images, &b.labels, &b.sources)
            );
        }
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
    fn samples_at_some_places_are_those_of_the_whole_batch() {
        let dataset = Arc::new(SyntheticStreets::new(64, 32, 5, 3));
        let pipeline = Pipeline {
            scale: "64x32".parse().unwrap(),
            crop: "24x24".parse().unwrap(),
            ..Pipeline::default()
        };
        let config = LoaderConfig {
            batch: 6,
            seed: 9,
            workers: 2,
            queue: 1,
            start_at: 3,
        };
        let whole = Loader::new(dataset.clone(), pipeline.clone(), config.clone());
        let part = Loader::of_places(dataset, pipeline, config, vec![4, 1]);
        for (whole, part) in whole.zip(part).take(3) {
            let (whole, part) = (whole.unwrap(), part.unwrap());
            assert_eq!((part.iteration, part.shape), (whole.iteration, [2, 24, 24]));
            for (ours, place) in [4, 1].into_iter().enumerate() {
                let area = 24 * 24;
                assert_eq!(part.sources[ours], whole.sources[place]);
                assert_eq!(
                    part.images[3 * area * ours..][..3 * area],
                    whole.images[3 * area * place..][..3 * area]
                );
                assert_eq!(
                    part.labels[area * ours..][..area],
                    whole.labels[area * place..][..area]
                );
            }
        }
    }

    /// A data set that does the same for every index.
    struct Always<F>(F);

    impl<F: Fn() -> Result<Sample, DataError> + Send + Sync> Dataset for Always<F> {
        fn len(&self) -> usize {
            3
        }
        fn get(&self, _: usize) -> Result<Sample, DataError> {
            self.0()
        }
    }

    fn loader(dataset: impl Dataset + 'static, batch: usize, workers: usize) -> Loader {
        let config = LoaderConfig {
            batch,
            seed: 0,
            workers,
            queue: 1,
            start_at: 0,
        };
        let pipeline = Pipeline {
            scale: "16x8".parse().unwrap(),
            crop: "8x8".parse().unwrap(),
            ..Pipeline::default()
        };
        Loader::new(Arc::new(dataset), pipeline, config)
    }

    #[test]
    fn panics_and_errors_of_a_sample_reach_the_caller_as_errors() {
        for workers in [0, 1] {
            let mut panicking = loader(Always(|| panic!("broken on purpose")), 1, workers);
            let message = panicking.next().unwrap().unwrap_err().to_string();
            assert!(
                message.contains("broken on purpose, at sample "),
                "{message}"
            );
            let message = panicking.next().unwrap().unwrap_err().to_string();
            assert!(message.contains("after an earlier error"), "{message}");
        }

        let unlabelled = Always(|| {
            Ok(Sample {
                name: "frame_7".into(),
                image: crate::RgbImage::filled(16, 8, [0; 3]).into(),
                label: None,
            })
        });
        let message = loader(unlabelled, 1, 2)
            .next()
            .unwrap()
            .unwrap_err()
            .to_string();
        assert!(message.contains("frame_7"), "{message}");
    }

    #[test]
    fn labels_beyond_the_classes_name_what_they_come_from() {
        let mut loader = loader(SyntheticStreets::new(16, 8, 3, 1), 3, 0);
        let batch = loader.next().unwrap().unwrap();
        assert!(batch.check_labels(19).is_ok());
        let largest = |map: &&[u8]| map.iter().any(|&id| id != IGNORE && id >= 11);
        let wrong = batch.labels.chunks(64).position(|map| largest(&map));
        let source = &batch.sources[wrong.expect("a scene with cars or people")];
        let message = batch.check_labels(11).unwrap_err().to_string();
        assert!(
            message.contains(&format!("the label map of {source}: ")),
            "{message}"
        );
    }

    #[test]
    #[should_panic(expected = "larger than any memory")]
    fn batches_beyond_all_memory_are_refused() {
        loader(SyntheticStreets::new(16, 8, 3, 1), 1 << 62, 0);
    }

    #[test]
    fn dropping_a_loader_ends_its_workers_after_the_sample_in_work() {
        let pause = Duration::from_millis(30);
        let slow = Always(move || {
            std::thread::sleep(pause);
            SyntheticStreets::new(16, 8, 1, 1).get(0)
        });
        let loader = loader(slow, 1000, 2);
        std::thread::sleep(pause);
        let start = Instant::now();
        drop(loader);
        assert!(start.elapsed() < 10 * pause, "{:?}", start.elapsed());
    }

    #[test]
    fn one_epoch_shows_every_sample_once_and_the_next_another_order() {
        let mut order = Order::new(50, 3);
        let first: Vec<usize> = (0..50).map(|i| order.index(i)).collect();
        let second: Vec<usize> = (50..100).map(|i| order.index(i)).collect();
        assert_ne!(first, second);
        for mut epoch in [first, second] {
            epoch.sort_unstable();
            assert!(epoch.into_iter().eq(0..50));
        }
    }

    #[test]
    fn waiting_is_counted_and_the_position_moves() {
        let mut loader = loader(SyntheticStreets::new(16, 8, 3, 1), 2, 2);
        let waited: Duration = (0..4).map(|_| loader.next().unwrap().unwrap().waited).sum();
        assert_eq!(loader.waited(), waited);
        assert_eq!(loader.position(), 4);
    }
}
