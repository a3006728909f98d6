//! Progress on the terminal, or as plain lines where there is none.

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use halfseg_amp::StepOutcome;
use halfseg_eval::Scores;
use halfseg_train::{Observer, Started, Step, Timing};
use indicatif::{ProgressBar, ProgressStyle};

use crate::interrupt;
use crate::output::is_quiet;

/// How often a line is printed where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Weight of the newest iteration in the shown averages.
const NEWEST: f64 = 0.1;

/// How far a job is: a bar where there is a terminal, a line now and then where there is none, and
/// nothing with `--quiet`.
pub struct Progress {
    bar: ProgressBar,
    unit: &'static str,
    /// When the last line was printed.
    line: Instant,
    /// When the first of the job's things was begun, and how many were done before.
    begun: (Instant, u64),
}

impl Progress {
    /// Over `len` things that `unit` names.
    pub fn new(len: u64, unit: &'static str) -> Self {
        let template =
            format!("{{elapsed}} [{{bar:30}}] {{pos}}/{{len}} {unit}  {{msg}}  {{eta}} left");
        let style = ProgressStyle::with_template(&template).expect("the template is a constant");
        let bar = match is_quiet() {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(len),
        };
        bar.set_length(len);
        Self {
            bar: bar.with_style(style.progress_chars("=> ")),
            unit,
            line: Instant::now(),
            begun: (Instant::now(), 0),
        }
    }

    /// The same, of which `done` were done before.
    pub fn starting_at(mut self, done: u64) -> Self {
        self.bar.set_position(done);
        self.bar.reset_eta();
        self.begun.1 = done;
        self
    }

    /// `done` of `len` things are done, where their number is known now only.
    pub fn set_of(&mut self, done: u64, len: u64) {
        self.bar.set_length(len);
        self.set(done, "");
    }

    /// `done` of the job's things are done; `about` tells more of it.
    pub fn set(&mut self, done: u64, about: &str) {
        self.bar.set_message(about.to_owned());
        self.bar.set_position(done);
        if self.bar.is_hidden() && self.line.elapsed() >= LINE_EVERY {
            self.line = Instant::now();
            let (begun, before) = self.begun;
            let len = self.bar.length().unwrap_or(done);
            let each = begun.elapsed().as_secs_f64() / done.saturating_sub(before).max(1) as f64;
            let left = len.saturating_sub(done) as f64 * each;
            let gap = if about.is_empty() { "" } else { "  " };
            message!("{done}/{len} {}{gap}{about}  {left:.0} s left", self.unit);
        }
    }

    /// One more is done, which `--verbose` names.
    pub fn inc(&mut self, what: impl Display) {
        self.above(|| detail!("{what}"));
        self.set(self.bar.position() + 1, "");
    }

    /// Does `print` above the bar.
    pub fn above(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Shows a training run.
pub struct Console {
    training: Option<Progress>,
    evaluation: Option<Progress>,
    loss: Average,
    pace: Pace,
}

/// How fast a run is, and what it skipped.
pub struct Pace {
    /// Of an iteration.
    pub seconds: Average,
    /// Those of them that it waited for data.
    pub waited: Average,
    /// In a batch.
    pub images: usize,
    /// The loss scale.
    pub scale: f64,
    pub skipped: u64,
    /// The first parameter whose gradient overflowed in the last skipped step.
    pub culprit: Option<String>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            seconds: Average::default(),
            waited: Average::default(),
            images: 0,
            scale: 1.0,
            skipped: 0,
            culprit: None,
        }
    }
}

impl Pace {
    /// Takes a step in.
    pub fn stepped(&mut self, step: &Step, timing: &Timing) {
        match &step.outcome {
            StepOutcome::Stepped { scale, .. } => self.scale = f64::from(*scale),
            StepOutcome::Skipped {
                next_scale,
                culprits,
                ..
            } => {
                self.skipped += 1;
                self.culprit = culprits.first().cloned();
                self.scale = f64::from(*next_scale);
            }
            _ => {}
        }
        self.seconds.add(timing.total.as_secs_f64());
        self.waited.add(timing.waited.as_secs_f64());
        self.images = timing.images;
    }

    /// Once there was a step.
    pub fn images_per_second(&self) -> Option<f64> {
        Some(self.images as f64 / self.seconds.get()?.max(1e-9))
    }

    /// Percent of the time in which data were waited for, once there was a step.
    pub fn waited_percent(&self) -> Option<f64> {
        Some(100.0 * self.waited.get()? / self.seconds.get()?.max(1e-9))
    }
}

/// What is said of events of a run, wherever it is shown.
pub mod words {
    use super::{Scores, Started, Step, StepOutcome};

    /// The weights that a run begins with, if it does not with random ones.
    pub fn loaded(run: &Started<'_>) -> Option<String> {
        let recipe = run.recipe;
        // One of them is given.
        let source = || format!("{}{}", recipe.checkpoint, recipe.backbone_weights);
        run.loaded.map(|report| format!("{}: {report}", source()))
    }

    /// A step that was skipped.
    pub fn skipped(step: &Step) -> Option<String> {
        matches!(step.outcome, StepOutcome::Skipped { .. })
            .then(|| format!("iteration {}: {}", step.iteration, step.outcome))
    }

    pub fn evaluated(iteration: u64, scores: &Scores, best: bool) -> String {
        format!(
            "iteration {iteration}: mIoU {:.2}  mAcc {:.2}  aAcc {:.2}{}",
            100.0 * scores.mean_iou,
            100.0 * scores.mean_accuracy,
            100.0 * scores.pixel_accuracy,
            if best { "  (best so far)" } else { "" }
        )
    }

    pub fn evaluated_plain(iteration: u64, scores: &Scores) -> String {
        format!(
            "iteration {iteration}: mIoU {:.2} of the weights themselves, not averaged",
            100.0 * scores.mean_iou,
        )
    }

    pub fn not_finite(name: &str, pixels: usize) -> String {
        format!("{name}: the scores of {pixels} pixels are not finite, which count as missed")
    }
}

/// An exponential average that begins with its first value.
#[derive(Default)]
pub struct Average(Option<f64>);

impl Average {
    /// Its value, once there is one.
    pub fn get(&self) -> Option<f64> {
        self.0
    }

    /// Takes a value in, and gives the average.
    pub fn add(&mut self, value: f64) -> f64 {
        let average = self.0.map_or(value, |old| old + NEWEST * (value - old));
        self.0 = Some(average);
        average
    }
}

impl Console {
    /// Nothing is shown before the run starts.
    pub fn new() -> Self {
        Self {
            training: None,
            evaluation: None,
            loss: Average::default(),
            pace: Pace::default(),
        }
    }

    /// Prints above the bar.
    fn print(&self, text: &str) {
        let print = || message!("{text}");
        match &self.training {
            Some(shown) => shown.above(print),
            None => print(),
        }
    }
}

impl Observer for Console {
    fn started(&mut self, run: &Started<'_>) {
        let recipe = run.recipe;
        for note in run.notes {
            warning!("{note}");
        }
        message!(
            "{} on {}, {:.2} M parameters, {} with loss scale {} on {}, {} images to train on, {} to \
             evaluate on, at least {} of memory",
            recipe.model.method,
            recipe.model.backbone,
            run.parameters as f64 / 1e6,
            recipe.precision.summary(),
            recipe.precision.scaling(),
            recipe.device,
            run.train_images,
            run.val_images,
            run.memory,
        );
        if !recipe.further_devices.is_empty() {
            let further: Vec<_> = recipe
                .further_devices
                .iter()
                .map(|device| device.to_string())
                .collect();
            message!(
                "each batch is shared with {}; gradients and the sums of batch norm go {}",
                further.join(", "),
                run.route
            );
        }
        if run.ranks > 1 {
            message!(
                "each batch is shared by {} processes; gradients travel in {}",
                run.ranks,
                recipe.train.exchange_precision
            );
        }
        if let Some(line) = words::loaded(run) {
            message!("{line}");
        }
        let shown = Progress::new(recipe.schedule.iterations, "iterations");
        self.training = Some(shown.starting_at(run.iteration));
    }

    fn stepped(&mut self, step: &Step, timing: &Timing) {
        if let Some(line) = words::skipped(step) {
            self.print(&line);
        }
        let loss = self.loss.add(step.loss);
        let pace = &mut self.pace;
        pace.stepped(step, timing);
        let mut message = format!(
            "loss {loss:.3}  scale {}  {:.2} images/s  data wait {:.0}%",
            pace.scale,
            pace.images_per_second().unwrap_or(0.0),
            pace.waited_percent().unwrap_or(0.0)
        );
        if pace.skipped > 0 {
            message.push_str(&format!("  skipped {}", pace.skipped));
            if let Some(culprit) = &pace.culprit {
                message.push_str(&format!(" (last: {culprit})"));
            }
        }
        if let Some(shown) = &mut self.training {
            shown.set(step.iteration, &message);
        }
    }

    fn evaluating(&mut self, done: usize, total: usize) {
        let shown = self
            .evaluation
            .get_or_insert_with(|| Progress::new(total as u64, "images evaluated"));
        shown.set(done as u64, "");
        if done == total {
            shown.finish();
            self.evaluation = None;
        }
    }

    fn evaluated(&mut self, iteration: u64, scores: &Scores, best: bool) {
        self.print(&words::evaluated(iteration, scores, best));
    }

    fn evaluated_plain(&mut self, iteration: u64, scores: &Scores) {
        self.print(&words::evaluated_plain(iteration, scores));
    }

    fn not_finite(&mut self, name: &str, pixels: usize) {
        let warn = || warning!("{}", words::not_finite(name, pixels));
        match &self.training {
            Some(shown) => shown.above(warn),
            None => warn(),
        }
    }

    fn saved(&mut self, path: &Path) {
        self.print(&format!("saved {}", path.display()));
    }

    fn stop(&mut self) -> bool {
        interrupt::requested()
    }
}
