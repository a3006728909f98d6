//! What a report tells of one run.

use std::path::Path;

use halfseg_eval::Curve;
use halfseg_train::{RunEvaluation, RunRecord};
use serde_json::Value;

use crate::ReportError;

/// Points of a curve: as many as a chart can show.
const POINTS: usize = 400;

/// A curve of the log.
pub type Points = Vec<(f64, f64)>;

/// The quantities of the log's `train` lines that are drawn.
#[derive(Debug)]
pub struct Curves {
    pub loss: Points,
    pub auxiliary: Points,
    pub accuracy: Points,
    pub lr: Points,
    /// Where it changes.
    pub scale: Points,
    pub grad_norm: Points,
    pub seconds: Points,
    pub waited: Points,
    pub memory: Points,
}

/// An evaluation in the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluated {
    pub iteration: u64,
    pub miou: f64,
    pub macc: Option<f64>,
    pub aacc: Option<f64>,
    pub constant_miou: Option<f64>,
    pub seconds: Option<f64>,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Finished,
    /// `train.patience` ended it.
    Early,
    /// It goes on, or was interrupted.
    Unfinished,
}

/// Sums over a run's iterations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub iterations: u64,
    pub seconds: f64,
    pub waited: f64,
    pub images: f64,
}

/// One run.
#[derive(Debug)]
pub struct Run {
    pub name: String,
    pub record: RunRecord,
    pub curves: Curves,
    /// Iterations of skipped steps.
    pub skips: Vec<u64>,
    /// The last of them in words.
    pub last_skip: Option<String>,
    pub evaluations: Vec<Evaluated>,
    /// The line of the last start.
    pub start: Option<Value>,
    pub versions: Vec<String>,
    pub end: Option<Value>,
    /// Iterations that the log tells of.
    pub iteration: u64,
    pub totals: Totals,
    /// The most that the process had in memory, in MiB.
    pub peak_mib: Option<u64>,
    /// What `halfseg audit --json` wrote into the folder.
    pub audit: Option<Value>,
    /// What is missing, for people.
    pub missing: Vec<String>,
}

/// The file in a run's folder that an audit of precision is looked for in.
pub const AUDIT: &str = "audit.json";

impl Run {
    /// Reads the folder of a run.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let record = RunRecord::read(path)?;
        let mut log = Log::default();
        let cut = record.for_each_line(|line| log.add(line))?;
        let mut missing = record.faults.clone();
        match cut {
            None => missing.push("The folder has no log.jsonl: there are no curves.".into()),
            Some(0) => {}
            Some(1) => missing.push(
                "A line of log.jsonl is not whole: it was cut short, or is being written.".into(),
            ),
            Some(lines) => {
                missing.push(format!(
                    "{lines} lines of log.jsonl are damaged and left out."
                ));
            }
        }
        if record.recipe.is_none() {
            missing.push(
                "config.toml is not there or cannot be read: nothing is known of the configuration."
                    .into(),
            );
        }
        let file = path.join(AUDIT);
        let audit = file.exists().then(|| {
            let text = halfseg_files::read_text(&file).map_err(|error| error.to_string());
            text.and_then(|text| {
                halfseg_files::parse_json::<Value>(text).map_err(|error| error.to_string())
            })
        });
        let audit = audit.and_then(|read| {
            let named = |why: String| missing.push(format!("{AUDIT} cannot be read: {why}"));
            read.map_err(named).ok()
        });
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        Ok(Self {
            name: name.unwrap_or_else(|| path.display().to_string()),
            record,
            audit,
            missing,
            curves: log.curves.points(),
            skips: log.skips,
            last_skip: log.last_skip,
            evaluations: log.evaluations,
            start: log.start,
            versions: log.versions,
            end: log.end,
            iteration: log.iteration,
            totals: log.totals,
            peak_mib: log.peak_mib,
        })
    }

    pub fn evaluation(&self) -> Option<&RunEvaluation> {
        self.record.evaluation.as_ref()
    }

    /// Whether its end was logged, and nothing after it.
    pub fn state(&self) -> State {
        match &self.end {
            None => State::Unfinished,
            Some(end) if end["early"] == true => State::Early,
            Some(_) => State::Finished,
        }
    }

    pub fn best(&self) -> Option<Evaluated> {
        let all = self.evaluations.iter().copied();
        all.max_by(|a, b| a.miou.total_cmp(&b.miou))
    }

    /// Names of `count` classes, numbered where they are not known.
    pub fn class_names(&self, count: usize) -> Vec<String> {
        let known = self.record.classes.as_ref().map(|classes| classes.names());
        let known = known.unwrap_or_default();
        let name = |class: usize| {
            let name = known.get(class).map(|name| (*name).to_owned());
            name.unwrap_or_else(|| format!("class_{class}"))
        };
        (0..count).map(name).collect()
    }

    pub fn class_color(&self, class: usize) -> [u8; 3] {
        let known = self.record.classes.as_ref();
        let color = known.and_then(|classes| classes.colors().get(class).copied());
        color.unwrap_or_else(|| halfseg_data::class_color(class))
    }
}

/// What is gathered of a log, a line at a time.
#[derive(Debug, Default)]
struct Log {
    curves: Gathered,
    skips: Vec<u64>,
    last_skip: Option<String>,
    evaluations: Vec<Evaluated>,
    start: Option<Value>,
    versions: Vec<String>,
    end: Option<Value>,
    iteration: u64,
    totals: Totals,
    peak_mib: Option<u64>,
}

/// Curves that are being gathered.
#[derive(Debug)]
struct Gathered {
    means: [Curve; 8],
    scale: Points,
}

/// Their keys in the log.
const KEYS: [&str; 8] = [
    "loss",
    "aux_loss",
    "accuracy",
    "lr",
    "grad_norm",
    "step_s",
    "data_wait_s",
    "rss_mib",
];

impl Default for Gathered {
    fn default() -> Self {
        Self {
            means: std::array::from_fn(|_| Curve::new(POINTS)),
            scale: Points::new(),
        }
    }
}

impl Gathered {
    fn points(self) -> Curves {
        let [
            loss,
            auxiliary,
            accuracy,
            lr,
            grad_norm,
            seconds,
            waited,
            memory,
        ] = self.means.map(Curve::into_points);
        Curves {
            loss,
            auxiliary,
            accuracy,
            lr,
            scale: self.scale,
            grad_norm,
            seconds,
            waited,
            memory,
        }
    }
}

impl Log {
    fn add(&mut self, line: &Value) {
        let Some(iteration) = line["iteration"].as_u64() else {
            return;
        };
        let before = self.iteration;
        self.iteration = self.iteration.max(iteration);
        let number = |key: &str| line[key].as_f64();
        if let Some(mib) = line["rss_mib"].as_u64().max(line["peak_rss_mib"].as_u64()) {
            self.peak_mib = self.peak_mib.max(Some(mib));
        }
        match line["event"].as_str() {
            Some("start") => {
                self.start = Some(line.clone());
                // It goes on.
                self.end = None;
                let version = line["version"].as_str().unwrap_or("unknown").to_owned();
                if !self.versions.contains(&version) {
                    self.versions.push(version);
                }
            }
            Some("train") => {
                let x = iteration as f64;
                for (curve, key) in self.curves.means.iter_mut().zip(KEYS) {
                    number(key).into_iter().for_each(|y| curve.push((x, y)));
                }
                self.add_scale(x, number("scale"));
                let passed = iteration.saturating_sub(before);
                let steps = passed as f64;
                self.totals.iterations += passed;
                self.totals.seconds += steps * number("step_s").unwrap_or(0.0);
                self.totals.waited += steps * number("data_wait_s").unwrap_or(0.0);
                self.totals.images +=
                    steps * number("step_s").unwrap_or(0.0) * number("images_per_s").unwrap_or(0.0);
            }
            Some("skip") => {
                self.skips.push(iteration);
                self.last_skip = line["outcome"].as_str().map(ToOwned::to_owned);
            }
            Some("eval") => {
                if let Some(miou) = number("miou") {
                    self.evaluations.push(Evaluated {
                        iteration,
                        miou,
                        macc: number("macc"),
                        aacc: number("aacc"),
                        constant_miou: number("constant_miou"),
                        seconds: number("seconds"),
                    });
                }
            }
            Some("end") => self.end = Some(line.clone()),
            _ => {}
        }
    }

    /// A corner where the scale changes, and its newest value.
    fn add_scale(&mut self, x: f64, scale: Option<f64>) {
        let Some(scale) = scale.filter(|scale| *scale > 0.0) else {
            return;
        };
        let points = &mut self.curves.scale;
        match points.as_slice() {
            [.., (_, before), (_, last)] if *before == *last && *last == scale => {
                let place = points.len() - 1;
                points[place].0 = x;
            }
            [.., (_, last)] if *last != scale => {
                let corner = (x, *last);
                points.extend([corner, (x, scale)]);
            }
            _ => points.push((x, scale)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_loss_scale_is_kept_where_it_changes() {
        let mut log = Log::default();
        for (x, scale) in [(1, 512), (2, 512), (3, 512), (4, 256), (5, 256), (6, 256)] {
            log.add(&json!({"event": "train", "iteration": x, "scale": scale}));
        }
        let scale = log.curves.points().scale;
        let expected = [
            (1.0, 512.0),
            (3.0, 512.0),
            (4.0, 512.0),
            (4.0, 256.0),
            (6.0, 256.0),
        ];
        assert_eq!(scale, expected);
    }

    #[test]
    fn lines_of_any_shape_are_taken() {
        let mut log = Log::default();
        for line in [
            json!({}),
            json!({"event": 3, "iteration": "x"}),
            json!({"event": "train", "iteration": 7}),
            json!({"event": "train", "iteration": 8, "loss": null, "scale": "big", "step_s": [1]}),
            json!({"event": "eval", "iteration": 8, "miou": null}),
            json!({"event": "skip", "iteration": u64::MAX}),
        ] {
            log.add(&line);
        }
        assert_eq!(log.totals.iterations, 8);
        assert_eq!(log.skips, [u64::MAX]);
        assert!(log.evaluations.is_empty());
    }
}
