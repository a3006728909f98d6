//! Curves over the iterations.

use halfseg_eval::running_mean;

use crate::chart::{Chart, Line};
use crate::html::{escaped, note};
use crate::run::{Curves, Evaluated, Points, Run};

/// Points that a point of the smoothed curves averages at least.
const SMOOTH: usize = 5;

/// Running means.
fn smooth(points: &[(f64, f64)]) -> Points {
    running_mean(points, SMOOTH.max(points.len() / 25))
}

/// A chart of what `of` takes from each run.
fn chart(runs: &[Run], title: &str, unit: &str, of: impl Fn(&Curves) -> &Points) -> Chart {
    let line = |(color, run): (usize, &Run)| Line {
        name: run.name.clone(),
        color,
        faint: false,
        marked: false,
        points: of(&run.curves).clone(),
    };
    Chart {
        title: title.to_owned(),
        unit: unit.to_owned(),
        powers: false,
        from_zero: true,
        lines: runs.iter().enumerate().map(line).collect(),
        marks: Vec::new(),
    }
}

/// The same with the values themselves behind their running means.
fn smoothed(mut chart: Chart) -> Chart {
    let behind = chart.lines.iter().map(|line| Line {
        name: String::new(),
        faint: true,
        ..line.clone()
    });
    let behind: Vec<_> = behind.collect();
    for line in &mut chart.lines {
        line.points = smooth(&line.points);
    }
    chart.lines.splice(0..0, behind);
    chart.title += ", running mean";
    chart
}

/// The mean IoU and its fellows at each evaluation.
fn scores(runs: &[Run]) -> Chart {
    let mut lines = Vec::new();
    for (color, run) in runs.iter().enumerate() {
        let points = |of: fn(&Evaluated) -> Option<f64>| {
            let point = |one: &Evaluated| Some((one.iteration as f64, 100.0 * of(one)?));
            run.evaluations.iter().filter_map(point).collect::<Points>()
        };
        let line = |name: &str, color: usize, points| Line {
            name: match runs.len() {
                1 => name.to_owned(),
                _ => run.name.clone(),
            },
            color,
            faint: false,
            marked: true,
            points,
        };
        lines.push(line("mIoU", color, points(|one| Some(one.miou))));
        if runs.len() == 1 {
            lines.push(line("mAcc", 1, points(|one| one.macc)));
            lines.push(line("aAcc", 2, points(|one| one.aacc)));
            lines.push(line(
                "mIoU of the best constant prediction",
                7,
                points(|one| one.constant_miou),
            ));
        }
    }
    Chart {
        title: if runs.len() == 1 {
            "Scores".into()
        } else {
            "mIoU".into()
        },
        unit: "percent".into(),
        powers: false,
        from_zero: true,
        lines,
        marks: Vec::new(),
    }
}

pub fn html(runs: &[Run]) -> String {
    if runs
        .iter()
        .all(|run| run.totals.iterations == 0 && run.evaluations.is_empty())
    {
        return note("No iteration was logged.");
    }
    let mut loss = smoothed(chart(runs, "Loss", "", |curves| &curves.loss));
    if let [run] = runs {
        for line in loss.lines.iter_mut().filter(|line| !line.name.is_empty()) {
            line.name = "loss".into();
        }
        loss.lines.push(Line {
            name: "auxiliary loss".into(),
            color: 1,
            faint: false,
            marked: false,
            points: smooth(&run.curves.auxiliary),
        });
    }
    let mut scale = chart(runs, "Loss scale and skipped steps", "", |curves| {
        &curves.scale
    });
    scale.powers = true;
    scale.from_zero = false;
    scale.marks = runs
        .iter()
        .enumerate()
        .map(|(color, run)| (color, run.skips.iter().map(|at| *at as f64).collect()))
        .collect();
    let mut charts = vec![
        loss,
        scores(runs),
        smoothed(chart(runs, "Accuracy on the batch", "percent", |curves| {
            &curves.accuracy
        })),
        chart(runs, "Learning rate", "", |curves| &curves.lr),
        scale,
        smoothed(chart(runs, "Norm of the gradients", "", |curves| {
            &curves.grad_norm
        })),
        chart(runs, "Seconds an iteration", "s", |curves| &curves.seconds),
        chart(
            runs,
            "Seconds that an iteration waits for data",
            "s",
            |curves| &curves.waited,
        ),
        chart(runs, "Memory of the process", "MiB", |curves| {
            &curves.memory
        }),
    ];
    if runs.len() == 1 {
        // Of one run, the title says it.
        for chart in charts.iter_mut().filter(|chart| chart.lines.len() <= 2) {
            let own = chart
                .lines
                .iter_mut()
                .filter(|line| line.name == runs[0].name);
            own.for_each(|line| line.name.clear());
        }
    }
    let drawn: Vec<_> = charts.iter().map(Chart::html).collect();
    let mut out = format!("<div class=\"charts\">\n{}</div>\n", drawn.concat());
    for run in runs {
        out += &skipped(run, runs.len() > 1);
    }
    out
}

fn skipped(run: &Run, named: bool) -> String {
    let who = if named {
        format!("{}: ", escaped(&run.name))
    } else {
        String::new()
    };
    match (run.skips.as_slice(), run.totals.iterations) {
        (_, 0) => String::new(),
        ([], _) => format!("<p>{who}No step was skipped.</p>\n"),
        (skips, iterations) => {
            let last = run.last_skip.as_deref().unwrap_or("");
            format!(
                "<p>{who}{} of {iterations} steps were skipped, the last at iteration {}{}{}. Marks at the lower edge \
                 of the loss scale show them.</p>\n",
                skips.len(),
                skips[skips.len() - 1],
                if last.is_empty() { "" } else { ": " },
                escaped(last)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_means_are_means_of_what_came_before() {
        let points: Points = (0..8).map(|i| (f64::from(i), f64::from(i))).collect();
        let smooth = smooth(&points);
        assert_eq!(smooth[1], (1.0, 0.5));
        assert_eq!(smooth[7], (7.0, 5.0));
    }
}
