//! A confusion matrix as inline SVG.

use halfseg_eval::ConfusionMatrix;

use crate::html::{Cell, escaped, grouped, note, percent, table};

/// Classes that are drawn at most: more could not be read, nor their squares be loaded quickly.
const MOST: usize = 32;
/// Pairs of classes that are listed.
const PAIRS: usize = 8;
/// Letters of a name beside the matrix.
const LETTERS: usize = 15;

/// `name` as it fits beside the matrix.
fn shortened(name: &str) -> String {
    match name.chars().count() > LETTERS {
        true => name.chars().take(LETTERS - 1).collect::<String>() + "…",
        false => name.to_owned(),
    }
}

/// The matrix with a row for each true class, in percent of its pixels, and the pairs that are taken for each other
/// most often.
pub fn html(matrix: &ConfusionMatrix, names: &[String]) -> String {
    let classes = matrix.classes();
    let total = |truth: usize| (0..classes).map(|p| matrix.count(truth, p)).sum::<u64>();
    let occurs = |k: &usize| total(*k) > 0 || (0..classes).any(|t| matrix.count(t, *k) > 0);
    let mut shown: Vec<usize> = (0..classes).filter(occurs).collect();
    if shown.is_empty() {
        return note("No labelled pixel was evaluated.");
    }
    let mut out = String::new();
    if shown.len() > MOST {
        out += &note(format!(
            "{} classes occur, of which the {MOST} with most pixels are drawn.",
            shown.len()
        ));
        shown.sort_by_key(|k| std::cmp::Reverse(total(*k)));
        shown.truncate(MOST);
        shown.sort_unstable();
    }
    let (cell, left, top) = (30.0, 104.0, 100.0);
    let side = cell * shown.len() as f64;
    let (width, height) = (left + side + 4.0, top + side + 4.0);
    out += &format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"Confusion matrix\">\
         <svg class=\"matrix\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"Confusion matrix: true classes down, predicted classes across\">\n"
    );
    for (row, &truth) in shown.iter().enumerate() {
        let name = escaped(shortened(&names[truth]));
        let middle = cell * (row as f64 + 0.5);
        out += &format!(
            "<text class=\"end\" x=\"{}\" y=\"{:.1}\">{name}</text>\
             <text transform=\"translate({:.1} {}) rotate(-60)\">{name}</text>\n",
            left - 6.0,
            top + middle + 4.0,
            left + middle + 4.0,
            top - 6.0
        );
        for (column, &predicted) in shown.iter().enumerate() {
            let count = matrix.count(truth, predicted);
            let share = count as f64 / total(truth).max(1) as f64;
            let (x, y) = (left + cell * column as f64, top + cell * row as f64);
            let class = if truth == predicted { "hit" } else { "miss" };
            let opacity = share.sqrt();
            out += &format!(
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{0}\" height=\"{0}\" \
                 fill-opacity=\"{opacity:.2}\"><title>{1} taken for {2}: {3} % ({4} pixels)</title></rect>",
                cell - 1.0,
                escaped(&names[truth]),
                escaped(&names[predicted]),
                percent(Some(share)),
                grouped(count)
            );
            if share >= 0.005 {
                let ink = if opacity > 0.55 { "mid on" } else { "mid" };
                out += &format!(
                    "<text class=\"{ink}\" x=\"{:.1}\" y=\"{:.1}\">{:.0}</text>",
                    x + (cell - 1.0) / 2.0,
                    y + cell / 2.0 + 4.0,
                    100.0 * share
                );
            }
        }
        out += "\n";
    }
    out += "</svg></div>\n<p class=\"dim\">True classes down, predicted classes across, in percent of the true class's \
            pixels.</p>\n";

    let mut pairs: Vec<(u64, usize, usize)> = (0..classes)
        .flat_map(|truth| (0..classes).map(move |predicted| (truth, predicted)))
        .filter(|(truth, predicted)| truth != predicted)
        .map(|(truth, predicted)| (matrix.count(truth, predicted), truth, predicted))
        .filter(|(count, ..)| *count > 0)
        .collect();
    pairs.sort_by(|a, b| b.cmp(a));
    pairs.truncate(PAIRS);
    if pairs.is_empty() {
        return out + "<p>No class was taken for another.</p>\n";
    }
    let heads = ["true class", "taken for", "pixels", "% of the true class"].map(str::to_owned);
    let rows: Vec<_> = pairs
        .into_iter()
        .map(|(count, truth, predicted)| {
            let share = count as f64 / total(truth).max(1) as f64;
            vec![
                Cell::Text(names[truth].clone()),
                Cell::Text(names[predicted].clone()),
                Cell::Number(grouped(count)),
                Cell::Number(percent(Some(share))),
            ]
        })
        .collect();
    out + &table("Classes that are taken for each other", &heads, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|k| format!("<class {k}>")).collect()
    }

    #[test]
    fn what_does_not_occur_is_left_out_and_names_are_no_markup() {
        let mut matrix = ConfusionMatrix::new(3);
        matrix.update(&[0, 1, 1, 0], &[0, 1, 0, 0], 255).unwrap();
        let html = html(&matrix, &names(3));
        assert!(html.contains("&lt;class 0&gt; taken for &lt;class 1&gt;: 33.33 % (1 pixels)"));
        assert!(!html.contains("class 2") && !html.contains("<class"));
        assert!(super::html(&ConfusionMatrix::new(2), &names(2)).contains("No labelled pixel"));
    }

    #[test]
    fn a_matrix_of_many_classes_is_bounded() {
        let mut matrix = ConfusionMatrix::new(200);
        let all: Vec<u8> = (0..200).collect();
        matrix.update(&all, &all, 255).unwrap();
        let html = html(&matrix, &names(200));
        assert!(
            html.contains("200 classes occur") && html.len() < 1_000_000,
            "{}",
            html.len()
        );
    }
}
