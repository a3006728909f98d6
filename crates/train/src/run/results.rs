//! Plots of a run.

use std::path::Path;

use halfseg_eval::{Series, curves_svg};
use serde_json::Value;

use crate::{Error, Log};

/// Iterations that a point of the smoothed loss averages at least.
const SMOOTH: usize = 20;

/// Draws the losses of the log at `log`, and their running mean, as SVG.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn draw_curves(log: &Path, svg: &Path) -> Result<(), Error> {
    let lines = Log::read(log, "train")?;
    let points = |key: &str| -> Vec<(f64, f64)> {
        let point = |line: &Value| Some((line["iteration"].as_f64()?, line[key].as_f64()?));
        lines.iter().filter_map(point).collect()
    };
    let loss = points("loss");
    let window = SMOOTH.max(loss.len() / 50);
    let mean = |part: &[(f64, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    let smooth = (0..loss.len())
        .map(|end| {
            (
                loss[end].0,
                mean(&loss[(end + 1).saturating_sub(window)..=end]),
            )
        })
        .collect();
    let series = [
        Series {
            name: "loss".into(),
            points: loss,
        },
        Series {
            name: format!("mean over {window}"),
            points: smooth,
        },
        Series {
            name: "auxiliary".into(),
            points: points("aux_loss"),
        },
    ];
    Ok(curves_svg(
        svg,
        "Training loss",
        ("iteration", "loss"),
        &series,
    )?)
}

/// At most `count` places spread over `0..len`.
pub(crate) fn spread(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |i| i * len / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_spread_over_the_split() {
        assert_eq!(spread(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(spread(2, 4).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(0, 4).count(), 0);
    }
}
