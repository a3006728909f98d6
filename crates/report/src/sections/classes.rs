//! Scores by class.

use halfseg_eval::{ClassScore, Scores};
use serde_json::Value;

use super::not_evaluated;
use crate::html::{Cell, class_name, escaped, grouped, note, percent, table};
use crate::run::Run;

/// The scores of a run's last evaluation, with the names of the classes.
struct Scored {
    scores: Scores,
    names: Vec<String>,
    iteration: Option<u64>,
}

fn scored(run: &Run) -> Option<Scored> {
    if let Some(evaluation) = run.evaluation() {
        let scores = evaluation.scores();
        return Some(Scored {
            names: run.class_names(scores.classes.len()),
            iteration: Some(evaluation.iteration),
            scores,
        });
    }
    of_json(run.record.scores.as_ref()?)
}

/// The scores in `scores.json`, of a folder that has nothing else.
fn of_json(json: &Value) -> Option<Scored> {
    let classes = json["classes"].as_object()?;
    let class = |value: &Value| ClassScore {
        iou: value["iou"].as_f64(),
        accuracy: value["accuracy"].as_f64(),
        precision: value["precision"].as_f64(),
        dice: value["dice"].as_f64(),
        boundary_iou: value["boundary_iou"].as_f64(),
        pixels: value["pixels"].as_u64().unwrap_or(0),
    };
    Some(Scored {
        names: classes.keys().cloned().collect(),
        iteration: json["iteration"].as_u64(),
        scores: Scores {
            pixel_accuracy: json["aacc"].as_f64()?,
            mean_accuracy: json["macc"].as_f64()?,
            mean_iou: json["miou"].as_f64()?,
            mean_boundary_iou: json["mboundary_iou"].as_f64(),
            constant_mean_iou: json["constant_miou"].as_f64()?,
            classes: classes.values().map(class).collect(),
        },
    })
}

/// A share as a bar, with its number.
fn bar(share: Option<f64>) -> Cell {
    let part = 100.0 * share.unwrap_or(0.0).clamp(0.0, 1.0);
    Cell::Html(format!(
        "<svg class=\"share\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
         <rect class=\"all\" width=\"100\" height=\"10\"/><rect class=\"part\" width=\"{part:.1}\" height=\"10\"/></svg>"
    ))
}

pub fn html(runs: &[Run]) -> String {
    let mut out = String::new();
    let all: Vec<Option<Scored>> = runs.iter().map(scored).collect();
    if runs.len() > 1 {
        out += &beside(runs, &all);
    }
    for (run, scored) in runs.iter().zip(&all) {
        if runs.len() > 1 {
            out += &format!("<h3>{}</h3>\n", escaped(&run.name));
        }
        out += &match scored {
            Some(scored) => one(run, scored),
            None => not_evaluated(run),
        };
    }
    out
}

/// All scores of one run.
fn one(
    run: &Run,
    Scored {
        scores,
        names,
        iteration,
    }: &Scored,
) -> String {
    let outlines = scores.mean_boundary_iou.is_some();
    let mut heads: Vec<String> = [
        "class",
        "IoU",
        "of 100",
        "constant IoU",
        "accuracy",
        "precision",
        "Dice",
    ]
    .map(str::to_owned)
    .to_vec();
    if outlines {
        heads.push("boundary IoU".into());
    }
    heads.push("pixels".into());
    heads.push("% of pixels".into());
    let total: u64 = scores.classes.iter().map(|class| class.pixels).sum();
    let constant = scores.constant_iou();
    let mut rows = Vec::new();
    for (place, class) in scores.classes.iter().enumerate() {
        let name = class_name(run.class_color(place), &names[place]);
        let share = class.pixels as f64 / total.max(1) as f64;
        let mut row = vec![
            Cell::Html(name),
            Cell::Strong(percent(class.iou)),
            bar(class.iou),
            Cell::Number(percent(constant[place])),
            Cell::Number(percent(class.accuracy)),
            Cell::Number(percent(class.precision)),
            Cell::Number(percent(class.dice)),
        ];
        if outlines {
            row.push(Cell::Number(percent(class.boundary_iou)));
        }
        row.push(Cell::Number(grouped(class.pixels)));
        row.push(Cell::Number(percent(Some(share))));
        rows.push(row);
    }
    let mut mean = vec![
        Cell::Strong("mean".into()),
        Cell::Strong(percent(Some(scores.mean_iou))),
        bar(Some(scores.mean_iou)),
        Cell::Strong(percent(Some(scores.constant_mean_iou))),
        Cell::Strong(percent(Some(scores.mean_accuracy))),
        Cell::Strong(percent(Some(scores.mean(|class| class.precision)))),
        Cell::Strong(percent(Some(scores.mean(|class| class.dice)))),
    ];
    if outlines {
        mean.push(Cell::Strong(percent(scores.mean_boundary_iou)));
    }
    mean.push(Cell::Strong(grouped(total)));
    mean.push(Cell::Strong(percent((total > 0).then_some(1.0))));
    rows.push(mean);
    let mut out = String::new();
    if let Some(iteration) = iteration {
        out += &format!("<p class=\"dim\">Of the evaluation after iteration {iteration}. ");
        out += "Constant is what predicting the most frequent class everywhere would score.</p>\n";
    }
    if total == 0 {
        out += &note("No labelled pixel was evaluated.");
    }
    out += &table(&format!("Scores by class of {}", run.name), &heads, &rows);
    out + &format!(
        "<p>{} % of the pixels are right (aAcc).</p>\n",
        percent(Some(scores.pixel_accuracy))
    )
}

/// The IoU of each class in all runs.
fn beside(runs: &[Run], all: &[Option<Scored>]) -> String {
    let known: Vec<(&Run, &Scored)> = runs
        .iter()
        .zip(all)
        .filter_map(|(run, scored)| Some((run, scored.as_ref()?)))
        .collect();
    let Some((first, rest)) = known.split_first() else {
        return String::new();
    };
    if rest.is_empty() {
        return String::new();
    }
    if rest.iter().any(|(_, scored)| scored.names != first.1.names) {
        return note("The runs have different classes, which are not laid beside one another.");
    }
    let mut heads = vec!["class, IoU".to_owned()];
    for (place, (run, _)) in known.iter().enumerate() {
        heads.push(run.name.clone());
        if place > 0 {
            heads.push("difference".into());
        }
    }
    let difference = |value: Option<f64>, base: Option<f64>| match (value, base) {
        (Some(value), Some(base)) => format!("{:+.2}", 100.0 * (value - base)),
        _ => "–".to_owned(),
    };
    let row = |name: Cell, of: &dyn Fn(&Scores) -> Option<f64>| {
        let mut row = vec![name];
        let base = of(&first.1.scores);
        for (place, (_, scored)) in known.iter().enumerate() {
            row.push(Cell::Strong(percent(of(&scored.scores))));
            if place > 0 {
                row.push(Cell::Number(difference(of(&scored.scores), base)));
            }
        }
        row
    };
    let mut rows: Vec<_> = (0..first.1.names.len())
        .map(|class| {
            let name = class_name(first.0.class_color(class), &first.1.names[class]);
            row(Cell::Html(name), &|scores| scores.classes[class].iou)
        })
        .collect();
    rows.push(row(Cell::Text("mean".into()), &|scores| {
        Some(scores.mean_iou)
    }));
    rows.push(row(
        Cell::Text("best constant prediction".into()),
        &|scores| Some(scores.constant_mean_iou),
    ));
    table("IoU by class of all runs", &heads, &rows)
        + "<p class=\"dim\">Differences, in percent points, are to the first run.</p>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfseg_eval::ConfusionMatrix;

    #[test]
    fn the_constant_prediction_is_that_of_the_mean() {
        let mut matrix = ConfusionMatrix::new(4);
        matrix
            .update(&[0, 0, 1, 1, 3, 0], &[0, 1, 1, 1, 2, 255], 255)
            .unwrap();
        let scores = matrix.scores();
        let constant = scores.constant_iou();
        assert_eq!(constant, [Some(0.0), Some(0.6), Some(0.0), None]);
        let known: Vec<f64> = constant.into_iter().flatten().collect();
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        assert!((mean - scores.constant_mean_iou).abs() < 1e-12);
    }

    #[test]
    fn scores_of_a_file_are_those_that_were_written() {
        let mut matrix = ConfusionMatrix::new(2);
        matrix.update(&[0, 0, 1, 1], &[0, 1, 1, 1], 255).unwrap();
        let scores = matrix.scores();
        let json = halfseg_eval::scores_json(&scores, &["a", "b"]);
        let read = of_json(&json).unwrap();
        assert_eq!(read.scores, scores);
        assert_eq!(read.names, ["a", "b"]);
        assert!(of_json(&Value::Null).is_none());
    }
}
