//! What a dashboard shows.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use halfseg_eval::{Curve, Scores};
use halfseg_train::{Started, Step, Timing};

use crate::progress::{Average, Pace};

/// Points of a curve: about what a terminal can show.
const POINTS: usize = 256;
/// Lines that are kept.
const LINES: usize = 200;

/// A run as it is known now.
pub struct State {
    pub title: String,
    pub about: String,
    pub iteration: u64,
    pub iterations: u64,
    pub begun: Instant,
    pub loss: Curve,
    pub scale: Curve,
    pub shown_loss: Average,
    pub accuracy: Average,
    pub lr: f64,
    pub pace: Pace,
    /// In percent, by iteration.
    pub miou: Vec<(f64, f64)>,
    pub best: Option<(u64, f64)>,
    pub evaluating: Option<(usize, usize)>,
    pub stopping: bool,
    pub messages: VecDeque<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            title: "halfseg".into(),
            about: "preparing".into(),
            iteration: 0,
            iterations: 0,
            begun: Instant::now(),
            loss: Curve::new(POINTS),
            scale: Curve::new(POINTS),
            shown_loss: Average::default(),
            accuracy: Average::default(),
            lr: 0.0,
            pace: Pace::default(),
            miou: Vec::new(),
            best: None,
            evaluating: None,
            stopping: false,
            messages: VecDeque::new(),
        }
    }
}

impl State {
    pub fn started(&mut self, run: &Started<'_>) {
        let recipe = run.recipe;
        self.title = format!("{} on {}", recipe.model.method, recipe.model.backbone);
        self.about = format!(
            "{}, {} on {}, {:.2} M parameters",
            recipe.data.source,
            recipe.precision.summary(),
            recipe.device,
            run.parameters as f64 / 1e6
        );
        self.iteration = run.iteration;
        self.iterations = recipe.schedule.iterations;
        self.begun = Instant::now();
    }

    pub fn stepped(&mut self, step: &Step, timing: &Timing) {
        self.iteration = step.iteration;
        self.evaluating = None;
        let x = step.iteration as f64;
        if step.loss.is_finite() {
            self.loss.push((x, step.loss));
            self.shown_loss.add(step.loss);
        }
        self.accuracy.add(step.accuracy);
        self.lr = step.lr;
        self.pace.stepped(step, timing);
        if self.pace.scale > 0.0 {
            self.scale.push((x, self.pace.scale.log2()));
        }
    }

    pub fn evaluated(&mut self, iteration: u64, scores: &Scores, best: bool) {
        let percent = 100.0 * scores.mean_iou;
        self.evaluating = None;
        self.miou.push((iteration as f64, percent));
        if best {
            self.best = Some((iteration, percent));
        }
    }

    /// A line for people.
    pub fn say(&mut self, line: String) {
        self.messages.push_back(line);
        while self.messages.len() > LINES {
            self.messages.pop_front();
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// How long the iterations that are left take, at the pace of the last ones.
    pub fn left(&self) -> Option<Duration> {
        let left = self.iterations.saturating_sub(self.iteration);
        let seconds = self.pace.seconds.get()? * left as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }
}
