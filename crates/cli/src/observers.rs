//! Those who watch a training run.

use std::path::Path;
#[cfg(feature = "report")]
use std::path::PathBuf;

use halfseg_eval::Scores;
use halfseg_train::{Observer, Started, Step, Timing};
use serde_json::Value;

/// Several observers, each of which hears everything; any of them may ask to stop.
pub struct Observers(pub Vec<Box<dyn Observer>>);

impl Observer for Observers {
    fn started(&mut self, run: &Started<'_>) {
        self.0.iter_mut().for_each(|one| one.started(run));
    }

    fn stepped(&mut self, step: &Step, timing: &Timing) {
        self.0.iter_mut().for_each(|one| one.stepped(step, timing));
    }

    fn logged(&mut self, line: &Value) {
        self.0.iter_mut().for_each(|one| one.logged(line));
    }

    fn evaluating(&mut self, done: usize, total: usize) {
        self.0
            .iter_mut()
            .for_each(|one| one.evaluating(done, total));
    }

    fn not_finite(&mut self, name: &str, pixels: usize) {
        self.0
            .iter_mut()
            .for_each(|one| one.not_finite(name, pixels));
    }

    fn evaluated(&mut self, iteration: u64, scores: &Scores, best: bool) {
        self.0
            .iter_mut()
            .for_each(|one| one.evaluated(iteration, scores, best));
    }

    fn evaluated_plain(&mut self, iteration: u64, scores: &Scores) {
        self.0
            .iter_mut()
            .for_each(|one| one.evaluated_plain(iteration, scores));
    }

    fn saved(&mut self, path: &Path) {
        self.0.iter_mut().for_each(|one| one.saved(path));
    }

    fn stop(&mut self) -> bool {
        // Each is asked.
        self.0.iter_mut().fold(false, |stop, one| one.stop() | stop)
    }
}

/// Writes a run's report after every so many evaluations.
#[cfg(feature = "report")]
pub struct Reporter {
    /// The run's folder.
    pub run: PathBuf,
    /// Evaluations between reports.
    pub every: u64,
    /// Evaluations so far.
    pub seen: u64,
    /// Whether it was said that a report could not be written.
    pub warned: bool,
}

#[cfg(feature = "report")]
impl Observer for Reporter {
    fn evaluated(&mut self, _: u64, _: &Scores, _: bool) {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every) {
            return;
        }
        let written = crate::commands::report::write_of_run(&self.run);
        if let (Err(error), false) = (written, self.warned) {
            self.warned = true;
            warning!("{error:#}; the run goes on without");
        }
    }
}
