//! Compares training runs by their logs: one figure of all losses and a markdown table.
//!
//! ```sh
//! cargo run --release --workspace --bin compare_runs -- --svg losses.svg f32=runs/f32 f16=runs/f16
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use halfseg_eval::{Series, curves_svg};
use serde_json::Value;

/// Compares training runs by their logs.
#[derive(Parser)]
struct Args {
    /// Where the figure goes.
    #[arg(long)]
    svg: PathBuf,
    /// Iterations that a point of a curve is the mean of.
    #[arg(long, default_value_t = 10)]
    smooth: usize,
    /// NAME=FOLDER of each run.
    #[arg(required = true)]
    runs: Vec<String>,
}

/// What a run's log holds.
struct Run {
    name: String,
    losses: Vec<f64>,
    step_seconds: Vec<f64>,
    peak_mib: f64,
    skipped: usize,
    /// The last evaluation.
    scores: Option<Value>,
}

impl Run {
    fn read(name: &str, folder: &Path) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
        let mut run = Self {
            name: name.to_owned(),
            losses: Vec::new(),
            step_seconds: Vec::new(),
            peak_mib: 0.0,
            skipped: 0,
            scores: None,
        };
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line: Value = serde_json::from_str(&line?)
                .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
            let field = |name: &str| line[name].as_f64();
            match line["event"].as_str() {
                Some("train") => {
                    run.losses.extend(field("loss"));
                    run.step_seconds.extend(field("step_s"));
                    run.peak_mib = run.peak_mib.max(field("rss_mib").unwrap_or(0.0));
                }
                Some("skip") => run.skipped += 1,
                Some("eval") => run.scores = Some(line),
                _ => {}
            }
        }
        ensure!(
            !run.losses.is_empty(),
            "{}: expected lines with the event `train`, found none",
            path.display()
        );
        Ok(run)
    }

    fn row(&self) -> String {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let count = self.losses.len();
        let tenth = (count / 10).max(1);
        let mut steps = self.step_seconds.clone();
        steps.sort_by(f64::total_cmp);
        let score = |name: &str| {
            let value = self
                .scores
                .as_ref()
                .and_then(|scores| scores[name].as_f64());
            value.map_or("-".to_owned(), |value| format!("{:.2}", 100.0 * value))
        };
        let step = steps
            .get(steps.len() / 2)
            .map_or("-".to_owned(), |s| format!("{s:.2}"));
        format!(
            "| {} | {count} | {:.3} | {:.3} | {:.3} | {} | {} | {} | {step} | {:.0} |",
            self.name,
            self.losses[0],
            mean(&self.losses[count / 2 - tenth / 2..][..tenth]),
            mean(&self.losses[count - tenth..]),
            score("miou"),
            score("aacc"),
            self.skipped,
            self.peak_mib,
        )
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runs = args
        .runs
        .iter()
        .map(|run| {
            let (name, folder) = run
                .split_once('=')
                .with_context(|| format!("`{run}`: expected NAME=FOLDER"))?;
            Run::read(name, Path::new(folder))
        })
        .collect::<Result<Vec<_>>>()?;
    let smooth = args.smooth.max(1);
    let series: Vec<Series> = runs
        .iter()
        .map(|run| Series {
            name: run.name.clone(),
            points: run
                .losses
                .chunks(smooth)
                .enumerate()
                .map(|(i, losses)| {
                    let middle = i * smooth + losses.len().div_ceil(2);
                    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
                    (middle as f64, mean)
                })
                .collect(),
        })
        .collect();
    curves_svg(&args.svg, "Training loss", ("iteration", "loss"), &series)?;
    println!(
        "| | steps | first loss | loss in the middle tenth | loss in the last tenth | mIoU | aAcc | \
         skipped | median step, s | highest resident memory, MiB |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    for run in &runs {
        println!("{}", run.row());
    }
    Ok(())
}
