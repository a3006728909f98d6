//! Progress on the terminal, or as plain lines where there is none.

use std::path::Path;
use std::time::{Duration, Instant};

use halfseg_amp::StepOutcome;
use halfseg_eval::Scores;
use halfseg_train::{Observer, Started, Step, Timing};
use indicatif::{ProgressBar, ProgressStyle};

use crate::interrupt;

/// How often a line is printed where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Weight of the newest iteration in the shown averages.
const NEWEST: f64 = 0.1;

/// A bar over `len` things, with `unit` in its message.
pub fn bar(len: u64, unit: &str) -> ProgressBar {
    let template =
        format!("{{elapsed}} [{{bar:30}}] {{pos}}/{{len}} {unit}  {{msg}}  {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is a constant");
    ProgressBar::new(len).with_style(style.progress_chars("=> "))
}

/// Shows a training run.
pub struct Console {
    bar: ProgressBar,
    eval: Option<ProgressBar>,
    line: Instant,
    loss: Average,
    seconds: Average,
    waited: Average,
    skipped: u64,
    /// The first parameter whose gradient overflowed in the last skipped step.
    culprit: Option<String>,
}

/// An exponential average that begins with its first value.
#[derive(Default)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, value: f64) -> f64 {
        let average = self.0.map_or(value, |old| old + NEWEST * (value - old));
        self.0 = Some(average);
        average
    }
}

impl Console {
    /// Nothing is shown before the run starts.
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            eval: None,
            line: Instant::now(),
            loss: Average::default(),
            seconds: Average::default(),
            waited: Average::default(),
            skipped: 0,
            culprit: None,
        }
    }

    /// Prints above the bar.
    fn print(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

impl Observer for Console {
    fn started(&mut self, run: &Started<'_>) {
        let recipe = run.recipe;
        eprintln!(
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
            eprintln!(
                "each batch is shared with {}; gradients and the sums of batch norm go {}",
                further.join(", "),
                run.route
            );
        }
        if let Some(report) = run.loaded {
            eprintln!("{}: {report}", recipe.checkpoint);
        }
        self.bar = bar(recipe.schedule.iterations, "iterations");
        self.bar.set_position(run.iteration);
        self.bar.reset_eta();
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
        if self.bar.is_hidden() && self.line.elapsed() >= LINE_EVERY {
            self.line = Instant::now();
            let left = self
                .bar
                .length()
                .unwrap_or(0)
                .saturating_sub(step.iteration);
            eprintln!(
                "{}/{} iterations  {message}  {:.0} s left",
                step.iteration,
                self.bar.length().unwrap_or(0),
                left as f64 * seconds
            );
        }
        self.bar.set_message(message);
        self.bar.set_position(step.iteration);
    }

    fn evaluating(&mut self, done: usize, total: usize) {
        let bar = self
            .eval
            .get_or_insert_with(|| bar(total as u64, "images evaluated"));
        bar.set_position(done as u64);
        if done == total {
            bar.finish_and_clear();
            self.eval = None;
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

    fn saved(&mut self, path: &Path) {
        self.print(&format!("saved {}", path.display()));
    }

    fn stop(&mut self) -> bool {
        interrupt::requested()
    }
}
