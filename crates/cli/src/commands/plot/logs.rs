//! Reading the logs of training runs, own and MMSegmentation's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What is drawn, in the order of the charts: a name, and the unit beside its axis.
pub const QUANTITIES: [(&str, &str); 7] = [
    ("loss", "loss"),
    ("decode loss", "loss"),
    ("auxiliary loss", "loss"),
    ("accuracy", "percent of pixels"),
    ("learning rate", "learning rate"),
    ("mIoU", "percent"),
    ("step time", "seconds"),
];

/// The place of the mean IoU in [`QUANTITIES`].
pub const MIOU: usize = 5;

/// Curves of one run.
#[derive(Debug)]
pub struct Run {
    /// The file.
    pub path: PathBuf,
    /// Whose log it is.
    pub format: &'static str,
    /// By quantity: iteration and value.
    pub curves: [Vec<(u64, f64)>; QUANTITIES.len()],
    /// Lines that are no JSON, or that say nothing of these.
    pub left_out: usize,
}

impl Run {
    /// Reads a log, or the one in a run's folder.
    pub fn read(path: &Path) -> Result<Self> {
        let path = match path.is_dir() {
            true => in_folder(path)?,
            false => path.to_owned(),
        };
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.trim_ascii().is_empty());
        let mut run = Self {
            path,
            format: "",
            curves: Default::default(),
            left_out: 0,
        };
        let mut last = 0;
        for line in lines {
            let value: Value = serde_json::from_slice(line).unwrap_or_default();
            match run.add(&value, last) {
                Some(iteration) => last = iteration,
                None => run.left_out += 1,
            }
        }
        if run.curves.iter().all(Vec::is_empty) {
            bail!(
                "{} is no log: expected lines of JSON as `halfseg train` or MMSegmentation writes them \
                 (`*.log.json`, `scalars.json`), found {} other lines",
                run.path.display(),
                run.left_out
            );
        }
        Ok(run)
    }

    /// Adds a line after iteration `last` and gives its own; `None` for a line that is not understood.
    fn add(&mut self, line: &Value, last: u64) -> Option<u64> {
        let object = line.as_object()?;
        let number = |key: &str| line[key].as_f64();
        if let Some(event) = line["event"].as_str() {
            self.format = "halfseg";
            let iteration = line["iteration"].as_u64()?;
            let keys: &[(usize, &str, f64)] = match event {
                "train" => &[
                    (0, "loss", 1.0),
                    (1, "decode_loss", 1.0),
                    (2, "aux_loss", 1.0),
                    (3, "accuracy", 1.0),
                    (4, "lr", 1.0),
                    (6, "step_s", 1.0),
                ],
                "eval" => &[(MIOU, "miou", 100.0)],
                _ => &[],
            };
            for &(quantity, key, factor) in keys {
                self.put(quantity, iteration, number(key).map(|value| factor * value));
            }
            return Some(iteration);
        }
        // MMSegmentation 0.x writes a `mode`, 1.x a `step`. What `iter` counts differs in validation.
        let old = line["mode"].as_str();
        let own = line["step"].as_u64().or_else(|| line["iter"].as_u64());
        let evaluates = old == Some("val") || object.contains_key("mIoU");
        if old.is_none() && own.is_none() {
            // The first line tells of the machine.
            let about = ["env_info", "exp_name", "seed", "hook_msgs", "config"];
            return about
                .iter()
                .any(|key| object.contains_key(*key))
                .then_some(last);
        }
        self.format = match old {
            Some(_) => "MMSegmentation 0.x",
            None => "MMSegmentation 1.x",
        };
        if evaluates {
            let iteration = own.filter(|own| *own >= last).unwrap_or(last);
            // A share there, percent since.
            let factor = if old.is_some() { 100.0 } else { 1.0 };
            self.put(MIOU, iteration, number("mIoU").map(|value| factor * value));
            return Some(iteration);
        }
        let iteration = own?;
        // `loss_seg` until 0.20, `loss_ce` since.
        let either = |part: &str| {
            let keys = [format!("{part}.loss_seg"), format!("{part}.loss_ce")];
            keys.iter().find_map(|key| number(key))
        };
        self.put(0, iteration, number("loss"));
        self.put(1, iteration, either("decode"));
        self.put(2, iteration, either("aux"));
        self.put(3, iteration, number("decode.acc_seg"));
        self.put(4, iteration, number("lr"));
        self.put(6, iteration, number("time"));
        Some(iteration)
    }

    fn put(&mut self, quantity: usize, iteration: u64, value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.curves[quantity].push((iteration, value));
        }
    }
}

/// The log in the folder of an own run, or below that of an MMSegmentation run.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    let own = folder.join("log.jsonl");
    if own.is_file() {
        return Ok(own);
    }
    let is_log = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".log.json") || (name == "scalars.json")
    };
    let unread = |folder: &Path, error| {
        anyhow::Error::new(error).context(format!("cannot read {}", folder.display()))
    };
    let mut found: Vec<PathBuf> = halfseg_files::walk_visible(folder, unread)?
        .into_iter()
        .filter(is_log)
        .collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => bail!(
            "{} holds no log: expected log.jsonl, *.log.json or scalars.json",
            folder.display()
        ),
        count => bail!(
            "{} holds {count} logs: name one of them, such as {}",
            folder.display(),
            found[0].display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Result<Run> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log.json");
        fs::write(&path, lines).unwrap();
        Run::read(&path)
    }

    /// As `TextLoggerHook` of MMCV 1.x and MMSegmentation 0.x write.
    #[test]
    fn logs_of_mmsegmentation_0_are_read() {
        let run = read(
            "{\"env_info\": \"sys.platform: linux\", \"seed\": null}\n\
             {\"mode\": \"train\", \"epoch\": 1, \"iter\": 50, \"lr\": 0.00999, \"memory\": 5250, \
             \"data_time\": 0.01, \"decode.loss_seg\": 1.5, \"decode.acc_seg\": 60.5, \
             \"aux.loss_seg\": 0.6, \"aux.acc_seg\": 55.0, \"loss\": 2.1, \"time\": 0.8}\n\
             {\"mode\": \"train\", \"epoch\": 1, \"iter\": 8000, \"lr\": 0.009, \"decode.loss_ce\": 0.5, \
             \"loss\": 0.7, \"time\": 0.5}\n\
             {\"mode\": \"val\", \"epoch\": 1, \"iter\": 63, \"lr\": 0.009, \"mIoU\": 0.7123}\n\
             {\"mode\": \"train\", \"it",
        )
        .unwrap();
        assert_eq!(run.format, "MMSegmentation 0.x");
        let [loss, decode, aux, accuracy, lr, miou, time] = run.curves;
        assert_eq!(loss, [(50, 2.1), (8000, 0.7)]);
        assert_eq!(decode, [(50, 1.5), (8000, 0.5)]);
        assert_eq!((aux, accuracy), (vec![(50, 0.6)], vec![(50, 60.5)]));
        assert_eq!(lr, [(50, 0.00999), (8000, 0.009)]);
        assert_eq!((miou, time.len()), (vec![(8000, 71.23)], 2));
        // The last line was cut short.
        assert_eq!(run.left_out, 1);
    }

    /// As MMEngine's `LocalVisBackend` writes `vis_data/scalars.json`.
    #[test]
    fn logs_of_mmsegmentation_1_are_read() {
        let run = read(
            "{\"lr\": 0.00995, \"data_time\": 0.01, \"loss\": 2.5, \"decode.loss_ce\": 1.7, \
             \"decode.acc_seg\": 55.5, \"aux.loss_ce\": 0.8, \"aux.acc_seg\": 50.0, \"time\": 0.9, \
             \"iter\": 50, \"memory\": 7000, \"step\": 50}\n\
             {\"aAcc\": 95.0, \"mIoU\": 70.5, \"mAcc\": 80.0, \"data_time\": 0.1, \"time\": 0.3, \
             \"step\": 50}\n",
        )
        .unwrap();
        assert_eq!(run.format, "MMSegmentation 1.x");
        assert_eq!(run.curves[1], [(50, 1.7)]);
        assert_eq!(run.curves[MIOU], [(50, 70.5)]);
        assert_eq!(run.curves[6], [(50, 0.9)]);
        assert_eq!(run.left_out, 0);
    }

    #[test]
    fn own_logs_are_read_and_what_is_no_number_is_left_out() {
        let run = read(
            "{\"event\": \"start\", \"iteration\": 0}\n\
             {\"event\": \"train\", \"iteration\": 1, \"loss\": null, \"decode_loss\": 2.0, \
             \"accuracy\": 40.0, \"lr\": 0.01, \"step_s\": 0.25}\n\
             {\"event\": \"eval\", \"iteration\": 1, \"miou\": 0.25}\n",
        )
        .unwrap();
        assert_eq!(run.format, "halfseg");
        assert!(run.curves[0].is_empty());
        assert_eq!(run.curves[1], [(1, 2.0)]);
        assert_eq!(run.curves[MIOU], [(1, 25.0)]);
    }

    #[test]
    fn other_files_are_no_logs() {
        for text in ["", "not a log\n", "{\"a\": 1}\n[1, 2]\n"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("is no log"), "{error}");
        }
    }
}
