//! Threads that segment.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use halfseg_data::{Picture, PictureRef};
use halfseg_eval::Prediction;
use halfseg_predict::PredictError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::metrics::Metrics;
use crate::model::{Model, Network};
use crate::queue::Queue;

/// A picture that waits, and who waits for it.
pub(crate) struct Job {
    /// The places of the network and its precision.
    pub network: (usize, usize),
    pub picture: Picture,
    /// What it takes of the server's memory.
    pub memory: OwnedSemaphorePermit,
    pub reply: oneshot::Sender<Result<Done, Failure>>,
}

/// A segmented picture.
pub(crate) struct Done {
    pub picture: Picture,
    pub found: Prediction,
    /// Held until it is answered.
    #[allow(dead_code, reason = "the memory is free when this is dropped")]
    pub memory: OwnedSemaphorePermit,
}

/// Why a picture has no classes.
pub(crate) enum Failure {
    Predict(PredictError),
    /// The network panicked.
    Panic(String),
}

/// Segments what is in the queue until it is closed and empty.
pub(crate) fn work(queue: &Queue<Job>, models: &[Model], most: usize, metrics: &Metrics) {
    let alike = |a: &Job, b: &Job| (a.network, a.picture.size()) == (b.network, b.picture.size());
    while let Some(mut jobs) = queue.take(most, alike) {
        // Nobody waits for these any more.
        jobs.retain(|job| !job.reply.is_closed());
        let Some(first) = jobs.first() else { continue };
        let (model, precision) = first.network;
        let network = &models[model].precisions[precision].1;
        let began = Instant::now();
        let results = segment_all(network, &jobs);
        metrics.segmented(jobs.len(), began.elapsed());
        for (job, result) in jobs.into_iter().zip(results) {
            let done = result.map(|found| Done {
                picture: job.picture,
                found,
                memory: job.memory,
            });
            // Who waited may have left.
            let _ = job.reply.send(done);
        }
    }
}

/// A result for each of the jobs. Where several fail together, each is tried alone, so that one of them does not fail
/// the others.
fn segment_all(network: &Arc<dyn Network>, jobs: &[Job]) -> Vec<Result<Prediction, Failure>> {
    let pictures: Vec<_> = jobs
        .iter()
        .map(|job| PictureRef::from(&job.picture))
        .collect();
    match segment(network, &pictures) {
        Ok(found) => found.into_iter().map(Ok).collect(),
        Err(failure) if pictures.len() == 1 => vec![Err(failure)],
        Err(_) => pictures
            .iter()
            .map(|picture| Ok(segment(network, &[*picture])?.swap_remove(0)))
            .collect(),
    }
}

/// As many predictions as pictures; a panic is a failure.
fn segment(
    network: &Arc<dyn Network>,
    pictures: &[PictureRef<'_>],
) -> Result<Vec<Prediction>, Failure> {
    let found = catch_unwind(AssertUnwindSafe(|| network.predict(pictures)));
    let found = found.map_err(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Failure::Panic(text.unwrap_or_else(|| "no message".into()))
    })?;
    let found = found.map_err(Failure::Predict)?;
    match found.len() == pictures.len() {
        true => Ok(found),
        false => Err(Failure::Panic(format!(
            "expected {} predictions, found {}",
            pictures.len(),
            found.len()
        ))),
    }
}
