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
    seconds: Average,
    waited: Average,
    skipped: u64,
    /// The first parameter whose gradient overflowed in the last skipped step.
    culprit: Option<String>,
}

/// An exponential average that begins with its first value.
#[derive(Default)]
pub struct Average(Option<f64>);

impl Average {
    /// Its value, once there is one.
    #[cfg(feature = "tui")]
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
            seconds: Average::default(),
            waited: Average::default(),
            skipped: 0,
            culprit: None,
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
        if let Some(report) = run.loaded {
            // One of them is given.
            message!("{}{}: {report}", recipe.checkpoint, recipe.backbone_weights);
        }
        let shown = Progress::new(recipe.schedule.iterations, "iterations");
        self.training = Some(shown.starting_at(run.iteration));
    }

    fn stepped(&mut self, step: &Step, timing: &Timing) {
        let scale = match &step.outcome {
            StepOutcome::Stepped { scale, .. } => *scale,
            StepOutcome::Skipped {
                next_scale,
                culprits,
                ..
            } => {
                self.skipped += 1;
                self.culprit = culprits.first().cloned();
                self.print(&format!("iteration {}: {}", step.iteration, step.outcome));
                *next_scale
            }
            _ => 1.0,
        };
        let loss = self.loss.add(step.loss);
        let seconds = self.seconds.add(timing.total.as_secs_f64());
        let waited = self.waited.add(timing.waited.as_secs_f64());
        let mut message = format!(
            "loss {loss:.3}  scale {}  {:.2} images/s  data wait {:.0}%",
            f64::from(scale),
            timing.images as f64 / seconds.max(1e-9),
            100.0 * waited / seconds.max(1e-9)
        );
        if self.skipped > 0 {
            message.push_str(&format!("  skipped {}", self.skipped));
            if let Some(culprit) = &self.culprit {
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
        self.print(&format!(
            "iteration {iteration}: mIoU {:.2}  mAcc {:.2}  aAcc {:.2}{}",
            100.0 * scores.mean_iou,
            100.0 * scores.mean_accuracy,
            100.0 * scores.pixel_accuracy,
            if best { "  (best so far)" } else { "" }
        ));
    }

    fn evaluated_plain(&mut self, iteration: u64, scores: &Scores) {
        self.print(&format!(
            "iteration {iteration}: mIoU {:.2} of the weights themselves, not averaged",
            100.0 * scores.mean_iou,
        ));
    }

    fn not_finite(&mut self, name: &str, pixels: usize) {
        let warn = || {
            warning!("{name}: the scores of {pixels} pixels are not finite, which count as missed");
        };
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
