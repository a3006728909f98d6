//! The log of a run as event files for TensorBoard.

use std::path::Path;

use anyhow::{Result, bail};
use halfseg_tensorboard::{EventWriter, Scalar, read_scalars};
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

/// Writes each line of a run's log into a folder, too.
pub struct Events {
    /// None once a file could not be written.
    writer: Option<EventWriter>,
    /// The last iterations that the folder has values of, of training and of evaluation.
    last: [Option<u64>; 2],
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

    /// Begins with `folder` for the run in the folder `run`, which goes on after `iteration`. What the log says up to
    /// there and the folder does not, as after a run without events, is made up.
    pub fn open(folder: &Path, run: &Path, iteration: u64) -> Result<Self> {
        let there: Vec<Scalar> = read_scalars(folder)?;
        let last = |tag: &str| {
            let steps = there.iter().filter(|scalar| scalar.tag == tag);
            steps
                .map(|scalar| scalar.step)
                .filter(|step| *step <= iteration)
                .max()
        };
        let mut events = Self {
            last: match iteration {
                0 => [None, None],
                _ => [last(LOSS), last(MIOU)],
            },
            writer: None,
        };
        let from = match iteration {
            0 => 0,
            _ => events.last[0].unwrap_or(0) + 1,
        };
        events.writer = Some(EventWriter::create(folder, from)?);
        if iteration > 0 {
            // What was void before `from` has gone with it.
            events.last[1] = events.last[1].filter(|step| *step < from);
            RunRecord::read(run)?.for_each_line(|line| {
                if line["iteration"].as_u64().is_some_and(|at| at <= iteration) {
                    events.logged(line);
                }
            })?;
        }
        Ok(events)
    }
}

impl Observer for Events {
    fn logged(&mut self, line: &Value) {
        let kind = match line["event"].as_str() {
            Some("train") => 0,
            Some("eval") => 1,
            _ => return,
        };
        let (step, values) = scalars(line);
        // An evaluation may be made again after its events were written.
        if self.last[kind].is_some_and(|last| step <= last) {
            return;
        }
        self.last[kind] = Some(step);
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
}
