//! The log of a run as event files for TensorBoard.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use anyhow::{Result, bail};
use halfseg_tensorboard::{EventWriter, read_scalars};
use halfseg_train::{Observer, RunRecord};
use serde_json::Value;

/// Numbers of a `train` line, with their tags.
const TRAIN: [(&str, &str); 11] = [
    ("loss", LOSS),
    ("decode_loss", "loss/decode"),
    ("aux_loss", "loss/auxiliary"),
    ("accuracy", "train/accuracy"),
    ("lr", "train/learning_rate"),
    ("scale", "train/loss_scale"),
    ("grad_norm", "train/gradient_norm"),
    ("skipped", "train/skipped_steps"),
    ("step_s", "time/seconds_an_iteration"),
    ("data_wait_s", "time/seconds_of_waiting_for_data"),
    ("images_per_s", "time/images_a_second"),
];
/// Shares of an `eval` line, in percent here.
const EVAL: [(&str, &str); 3] = [("miou", MIOU), ("macc", "eval/mAcc"), ("aacc", "eval/aAcc")];
const LOSS: &str = "loss/total";
const MIOU: &str = "eval/mIoU";

/// The iteration and the values of a line of the log, by tag; none of a line of another kind.
fn scalars(line: &Value) -> (u64, Vec<(String, f64)>) {
    let mut values = Vec::new();
    let mut add = |tag: String, value: &Value, factor: f64| {
        values.extend(value.as_f64().map(|value| (tag, factor * value)));
    };
    match line["event"].as_str() {
        Some("train") => {
            for (key, tag) in TRAIN {
                add(tag.to_owned(), &line[key], 1.0);
            }
        }
        Some("eval") => {
            for (key, tag) in EVAL {
                add(tag.to_owned(), &line[key], 100.0);
            }
            for (class, iou) in line["iou"].as_object().into_iter().flatten() {
                add(format!("iou/{class}"), iou, 100.0);
            }
        }
        _ => {}
    }
    (line["iteration"].as_u64().unwrap_or(0), values)
}

/// What is known of each iteration, as a sum over its values in any order.
#[derive(Default)]
struct Marks(HashMap<u64, u64>);

impl Marks {
    fn add(&mut self, step: u64, tag: &str, value: f32) {
        let mut hasher = DefaultHasher::new();
        (tag, value.to_bits()).hash(&mut hasher);
        let mark = self.0.entry(step).or_default();
        *mark = mark.wrapping_add(hasher.finish());
    }

    /// The first iteration of which `self` and `other` know different things.
    fn first_difference(&self, other: &Self) -> Option<u64> {
        let known = self.0.keys().chain(other.0.keys());
        known
            .filter(|step| self.0.get(step) != other.0.get(step))
            .min()
            .copied()
    }
}

/// Writes each line of a run's log into a folder, too.
pub struct Events {
    /// None once a file could not be written.
    writer: Option<EventWriter>,
}

impl Events {
    /// Refuses a folder with the events of another run.
    pub fn check(folder: &Path, may_be_there: bool) -> Result<()> {
        if !may_be_there && !read_scalars(folder)?.is_empty() {
            bail!(
                "{}: expected a folder without event files for a new run, found some: choose another folder, continue \
                 with --resume, or begin anew with --overwrite",
                folder.display()
            );
        }
        Ok(())
    }

    /// Begins with `folder` for the run in the folder `run`, which goes on after `iteration`. From the first iteration
    /// on of which the folder says something else than the log, as after a run without events, what was there is void
    /// and the log is written again.
    pub fn open(folder: &Path, run: &Path, iteration: u64) -> Result<Self> {
        if iteration == 0 {
            let writer = Some(EventWriter::create(folder, 0)?);
            return Ok(Self { writer });
        }
        let record = RunRecord::read(run)?;
        let (mut there, mut logged) = (Marks::default(), Marks::default());
        for scalar in read_scalars(folder)? {
            if scalar.step <= iteration {
                there.add(scalar.step, &scalar.tag, scalar.value);
            }
        }
        record.for_each_line(|line| {
            let (step, values) = scalars(line);
            for (tag, value) in values.into_iter().filter(|_| step <= iteration) {
                logged.add(step, &tag, value as f32);
            }
        })?;
        let from = there.first_difference(&logged).unwrap_or(iteration + 1);
        let writer = Some(EventWriter::create(folder, from)?);
        let mut events = Self { writer };
        if from <= iteration {
            record.for_each_line(|line| {
                let at = line["iteration"].as_u64();
                if at.is_some_and(|at| (from..=iteration).contains(&at)) {
                    events.logged(line);
                }
            })?;
        }
        Ok(events)
    }
}

impl Observer for Events {
    fn logged(&mut self, line: &Value) {
        let (step, values) = scalars(line);
        if values.is_empty() {
            return;
        }
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.scalars(step, &values)
        {
            self.writer = None;
            warning!(
                "{:#}; the run goes on without event files",
                anyhow::Error::from(error)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn train(iteration: u64) -> Value {
        json!({"event": "train", "iteration": iteration, "loss": 2.0, "aux_loss": null, "lr": 0.5, "skipped": 1})
    }

    fn eval(iteration: u64) -> Value {
        json!({"event": "eval", "iteration": iteration, "miou": 0.5, "macc": 0.25, "aacc": 0.75,
               "iou": {"road": 0.5, "absent": null}})
    }

    fn of(folder: &Path, tag: &str) -> Vec<u64> {
        let scalars = read_scalars(folder).unwrap().into_iter();
        let steps = scalars.filter(|scalar| scalar.tag == tag);
        steps.map(|scalar| scalar.step).collect()
    }

    #[test]
    fn lines_become_values_with_tags() {
        let (step, values) = scalars(&eval(7));
        assert_eq!(step, 7);
        let expected = [
            ("eval/mIoU", 50.0),
            ("eval/mAcc", 25.0),
            ("eval/aAcc", 75.0),
            ("iou/road", 50.0),
        ];
        assert_eq!(values, expected.map(|(tag, value)| (tag.to_owned(), value)));
        let (_, values) = scalars(&train(1));
        let tags: Vec<_> = values.into_iter().map(|(tag, _)| tag).collect();
        assert_eq!(tags, [LOSS, "train/learning_rate", "train/skipped_steps"]);
    }

    /// The run is killed in different places, and goes on after iteration 4.
    #[test]
    fn resuming_leaves_no_gap_and_nothing_twice() {
        for (written, evaluated) in [(4, false), (4, true), (6, true), (2, false), (0, false)] {
            let folder = tempfile::tempdir().unwrap();
            let (run, events) = (folder.path().join("run"), folder.path().join("events"));
            fs::create_dir(&run).unwrap();
            let mut first = Events::open(&events, &run, 0).unwrap();
            for step in 1..=written {
                first.logged(&train(step));
                if step == 2 || step == 4 && evaluated {
                    first.logged(&eval(step));
                }
            }
            drop(first);
            // As the log is cut to the checkpoint of 4, which came before its evaluation.
            let lines = [train(1), train(2), eval(2), train(3), train(4)];
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            fs::write(run.join("log.jsonl"), text).unwrap();
            assert!(written == 0 || Events::check(&events, false).is_err());
            Events::check(&events, true).unwrap();
            let mut second = Events::open(&events, &run, 4).unwrap();
            second.logged(&eval(4));
            for step in 5..=6 {
                second.logged(&train(step));
            }
            drop(second);
            let what = format!("{written} {evaluated}");
            assert_eq!(of(&events, LOSS), [1, 2, 3, 4, 5, 6], "{what}");
            assert_eq!(of(&events, MIOU), [2, 4], "{what}");
        }
    }

    /// A killed run had written up to iteration 6; a run without events went on after 2 with other values.
    #[test]
    fn what_a_run_without_events_wrote_anew_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let (run, events) = (folder.path().join("run"), folder.path().join("events"));
        fs::create_dir(&run).unwrap();
        let mut first = Events::open(&events, &run, 0).unwrap();
        for step in 1..=6 {
            first.logged(&train(step));
        }
        drop(first);
        let other = |step| {
            let mut line = train(step);
            line["loss"] = json!(3.0);
            line
        };
        let lines = [train(1), train(2), other(3), other(4)];
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(run.join("log.jsonl"), text).unwrap();
        let mut second = Events::open(&events, &run, 4).unwrap();
        second.logged(&train(5));
        drop(second);
        let found = read_scalars(&events).unwrap();
        let losses: Vec<_> = found.iter().filter(|one| one.tag == LOSS).collect();
        let losses: Vec<_> = losses.iter().map(|one| (one.step, one.value)).collect();
        assert_eq!(losses, [(1, 2.0), (2, 2.0), (3, 3.0), (4, 3.0), (5, 2.0)]);
    }
}
