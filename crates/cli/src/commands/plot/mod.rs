//! `halfseg plot`.

mod logs;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use halfseg_eval::{Chart, Series, charts_svg};
use halfseg_files::write_atomically;

use self::logs::{MIOU, QUANTITIES, Run};
use crate::args::PlotArgs;
use crate::failure::Usage;
use crate::output::{check_writable, print};

/// Lays the curves of training runs over one another.
pub fn run(args: &PlotArgs) -> Result<()> {
    let csv = args
        .csv
        .clone()
        .unwrap_or_else(|| args.out.with_extension("csv"));
    if csv == args.out {
        let why =
            "the SVG and the CSV would be one file: expected another ending of --out, or --csv";
        return Err(Usage(why.into()).into());
    }
    let logs: Vec<_> = args.logs.iter().map(|path| Some(&**path)).collect();
    check_writable(&[&Some(args.out.clone()), &Some(csv.clone())], &logs)?;
    let runs: Vec<Run> = args
        .logs
        .iter()
        .map(|path| Run::read(path))
        .collect::<Result<_>>()?;
    let names = names(&args.logs, &args.names)?;
    let mut table = String::new();
    for (run, name) in runs.iter().zip(&names) {
        if run.left_out > 0 {
            warning!(
                "{}: {} line(s) left out, which are no JSON or of another kind",
                run.path.display(),
                run.left_out
            );
        }
        let last = |quantity: usize| run.curves[quantity].last();
        let iteration = run.curves.iter().filter_map(|curve| curve.last());
        let iteration = iteration.map(|point| point.0).max().unwrap_or(0);
        table += &format!("{name} ({}): {iteration} iterations", run.format);
        if let Some((_, loss)) = last(0) {
            table += &format!(", loss {loss:.4}");
        }
        let best = run.curves[MIOU].iter().map(|point| point.1);
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        if let Some((_, miou)) = last(MIOU) {
            table += &format!(", mIoU {miou:.2} (best {best:.2})");
        }
        table += "\n";
    }
    write_csv(&csv, &runs, &names)?;
    charts_svg(&args.out, &charts(&runs, &names, args.smooth))?;
    print(&table)?;
    message!("curves in {} and {}", args.out.display(), csv.display());
    Ok(())
}

/// Names of the legend: those given, or what tells the paths apart.
fn names(paths: &[impl AsRef<Path>], given: &[String]) -> Result<Vec<String>> {
    if !given.is_empty() {
        if given.len() != paths.len() {
            let why = format!(
                "--names: expected {} of them, one for each log, found {}",
                paths.len(),
                given.len()
            );
            return Err(Usage(why).into());
        }
        return Ok(given.to_vec());
    }
    let whole = |path: &Path| path.display().to_string();
    let short: Vec<String> = paths
        .iter()
        .map(|path| {
            let path = path.as_ref();
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.map_or_else(|| whole(path), Into::into)
        })
        .collect();
    let unique = |name: &String| short.iter().filter(|other| *other == name).count() == 1;
    Ok(match short.iter().all(unique) {
        true => short,
        false => paths.iter().map(|path| whole(path.as_ref())).collect(),
    })
}

/// A chart for each quantity that some run has.
fn charts(runs: &[Run], names: &[String], smooth: usize) -> Vec<Chart> {
    let chart = |(quantity, (title, unit)): (usize, &(&str, &str))| {
        let has_some = runs.iter().any(|run| !run.curves[quantity].is_empty());
        has_some.then(|| Chart {
            title: match (smooth, quantity) {
                (0 | 1, _) | (_, MIOU) => (*title).to_owned(),
                _ => format!("{title}, mean over {smooth} points"),
            },
            x_label: "iteration".to_owned(),
            y_label: (*unit).to_owned(),
            series: runs
                .iter()
                .zip(names)
                .map(|(run, name)| {
                    let curve = &run.curves[quantity];
                    let window = if quantity == MIOU { 1 } else { smooth.max(1) };
                    Series {
                        name: name.clone(),
                        points: (0..curve.len())
                            .map(|end| mean(curve, end, window))
                            .collect(),
                    }
                })
                .collect(),
        })
    };
    QUANTITIES.iter().enumerate().filter_map(chart).collect()
}

/// The point at `end` with the mean of the last `window` values up to it.
fn mean(curve: &[(u64, f64)], end: usize, window: usize) -> (f64, f64) {
    let part = &curve[(end + 1).saturating_sub(window)..=end];
    let sum: f64 = part.iter().map(|point| point.1).sum();
    (curve[end].0 as f64, sum / part.len() as f64)
}

/// A row for each run and iteration, a column for each quantity.
fn write_csv(path: &Path, runs: &[Run], names: &[String]) -> Result<()> {
    let mut text = String::from("run,iteration");
    for (quantity, _) in QUANTITIES {
        text += &format!(",{}", quantity.replace(' ', "_"));
    }
    text += "\n";
    for (run, name) in runs.iter().zip(names) {
        let mut rows: BTreeMap<u64, [Option<f64>; QUANTITIES.len()]> = BTreeMap::new();
        for (quantity, curve) in run.curves.iter().enumerate() {
            for &(iteration, value) in curve {
                rows.entry(iteration).or_default()[quantity] = Some(value);
            }
        }
        for (iteration, row) in rows {
            text += &format!("{},{iteration}", quoted(name));
            for value in row {
                text += ",";
                text += &value.map_or(String::new(), |value| value.to_string());
            }
            text += "\n";
        }
    }
    if runs.is_empty() {
        bail!("there is nothing to draw");
    }
    write_atomically(path, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let of = |paths: &[&str]| names(paths, &[]).unwrap();
        assert_eq!(
            of(&["runs/a", "x/20200717.log.json"]),
            ["a", "20200717.log.json"]
        );
        assert_eq!(
            of(&["a/log.jsonl", "b/log.jsonl"]),
            ["a/log.jsonl", "b/log.jsonl"]
        );
        assert!(names(&["a", "b"], &["one".to_owned()]).is_err());
    }

    #[test]
    fn fields_with_commas_are_quoted() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
