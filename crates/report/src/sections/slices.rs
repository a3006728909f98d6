//! Each class in single pictures.

use crate::html::{Cell, class_name, percent, table};
use crate::run::Run;

/// Pictures that are named for each class.
const NAMED: usize = 3;

pub fn html(run: &Run) -> String {
    let Some(evaluation) = run.evaluation().filter(|one| !one.pictures.is_empty()) else {
        // What is missing was said above.
        return String::new();
    };
    let names = run.class_names(evaluation.matrix.classes());
    let mut rows = Vec::new();
    for (class, name) in names.iter().enumerate() {
        let pictures = evaluation.pictures.iter();
        let mut scored: Vec<(f64, &str)> = pictures
            .filter_map(|picture| Some((picture.iou[class]?, picture.name.as_str())))
            .collect();
        if scored.is_empty() {
            continue;
        }
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
        let middle = [(scored.len() - 1) / 2, scored.len() / 2].map(|place| scored[place].0);
        let lowest: Vec<_> = scored
            .iter()
            .take(NAMED)
            .map(|(iou, name)| format!("{name} ({})", percent(Some(*iou))))
            .collect();
        rows.push(vec![
            Cell::Html(class_name(run.class_color(class), name)),
            Cell::Number(scored.len().to_string()),
            Cell::Number(percent(Some((middle[0] + middle[1]) / 2.0))),
            Cell::Number(percent(Some(scored[0].0))),
            Cell::Number(percent(scored.last().map(|last| last.0))),
            Cell::Text(lowest.join(", ")),
        ]);
    }
    let heads = [
        "class",
        "pictures",
        "median IoU",
        "lowest",
        "highest",
        "lowest in",
    ]
    .map(str::to_owned);
    format!(
        "<p class=\"dim\">Of the pictures in which a class occurs or is predicted.</p>\n{}",
        table(&format!("Pictures by class of {}", run.name), &heads, &rows)
    )
}
