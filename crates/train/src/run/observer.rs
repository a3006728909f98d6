//! What a run tells whoever watches it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use halfseg_devices::{Bytes, Route};
use halfseg_eval::Scores;
use halfseg_segmentor::LoadReport;
use serde_json::Value;

use crate::{Recipe, Step};

/// What happens during a run, for progress bars and the like. All methods do nothing by default.
pub trait Observer {
    /// The run is about to take its first step.
    fn started(&mut self, _run: &Started<'_>) {}
    /// An iteration is over.
    fn stepped(&mut self, _step: &Step, _timing: &Timing) {}
    /// A line of the log with the event `train` or `eval`, which is in the log now.
    fn logged(&mut self, _line: &Value) {}
    /// `done` of `total` pictures have been evaluated.
    fn evaluating(&mut self, _done: usize, _total: usize) {}
    /// Scores of `pixels` of the picture `name` are not finite; they count as missed.
    fn not_finite(&mut self, _name: &str, _pixels: usize) {}
    /// An evaluation is over; `best` tells whether it is the best so far.
    fn evaluated(&mut self, _iteration: u64, _scores: &Scores, _best: bool) {}
    /// The scores of the weights themselves, where those of their averages are the run's.
    fn evaluated_plain(&mut self, _iteration: u64, _scores: &Scores) {}
    /// A checkpoint is on the disk.
    fn saved(&mut self, _path: &Path) {}
    /// Whether to save and stop now; asked after every iteration and evaluated picture.
    fn stop(&mut self) -> bool {
        false
    }
}

impl Observer for () {}

/// The beginning of a run.
#[derive(Debug)]
pub struct Started<'a> {
    /// The run's recipe.
    pub recipe: &'a Recipe,
    /// Iterations that were run before.
    pub iteration: u64,
    /// Training images.
    pub train_images: usize,
    /// Images for evaluation.
    pub val_images: usize,
    /// Parameters of the network.
    pub parameters: u64,
    /// What came from `checkpoint`, if weights were loaded.
    pub loaded: Option<&'a LoadReport>,
    /// The lower bound of the memory needed.
    pub memory: Bytes,
    /// What is out of the ordinary about the run's folder, for people.
    pub notes: &'a [String],
    /// The way that gradients and sums take between several devices of this process.
    pub route: Route,
    /// Processes that train together.
    pub ranks: usize,
}

/// Where the time of an iteration went.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Waiting for the batch.
    pub waited: Duration,
    /// The whole iteration, waiting included.
    pub total: Duration,
    /// Images of the batch.
    pub images: usize,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// All iterations were run; the scores of the last weights, if there is a validation split.
    Finished(Option<Box<Scores>>),
    /// [`Observer::stop`] asked for it; the checkpoint resumes it.
    Interrupted {
        /// Iterations run.
        iteration: u64,
        /// The checkpoint.
        checkpoint: PathBuf,
    },
}
