//! Plots of a run.

use std::collections::BTreeSet;
use std::path::Path;

use halfseg_eval::{Curve, Series, curves_svg, running_mean};

use super::details::RunEvaluation;
use crate::{Error, Log};

/// Iterations that a point of the smoothed loss averages at least.
const SMOOTH: usize = 20;

/// Points of a curve at most: more than there are pixels, however long a run is.
const MOST_POINTS: usize = 4000;

/// Draws the losses of the log at `log`, and their running mean, as SVG.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn draw_curves(log: &Path, svg: &Path) -> Result<(), Error> {
    let [mut loss, mut auxiliary] = [(); 2].map(|()| Curve::new(MOST_POINTS));
    Log::each(log, "train", |line| {
        let point = |key: &str| Some((line["iteration"].as_f64()?, line[key].as_f64()?));
        for (curve, key) in [(&mut loss, "loss"), (&mut auxiliary, "aux_loss")] {
            point(key).into_iter().for_each(|point| curve.push(point));
        }
    })?;
    let (shared, loss) = (loss.shared(), loss.into_points());
    let window = SMOOTH.max(loss.len() / 50);
    let smooth = running_mean(&loss, window);
    let series = [
        Series {
            name: "loss".into(),
            points: loss,
        },
        Series {
            name: format!("mean over {}", window as u64 * shared),
            points: smooth,
        },
        Series {
            name: "auxiliary".into(),
            points: auxiliary.into_points(),
        },
    ];
    Ok(curves_svg(
        svg,
        "Training loss",
        ("iteration", "loss"),
        &series,
    )?)
}

/// The pictures that are drawn of a split of `len` with `train.pictures = count`: so many spread over it, and half
/// as many of those with the lowest and of those with the highest mIoU, where these are known.
pub(crate) fn shown(
    len: usize,
    count: usize,
    details: Option<&RunEvaluation>,
) -> impl Iterator<Item = usize> {
    let mut shown: BTreeSet<usize> = spread(len, count).collect();
    if let Some(details) = details {
        let ends = [details.worst(), details.best()];
        let ends = ends
            .into_iter()
            .flat_map(|pictures| pictures.into_iter().take(count.div_ceil(2)));
        shown.extend(
            ends.map(|picture| picture.index)
                .filter(|index| *index < len),
        );
    }
    shown.into_iter()
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
    fn curves_are_drawn_of_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let (log, svg) = (folder.path().join("log"), folder.path().join("svg"));
        let line =
            |i: u64| format!(r#"{{"event":"train","iteration":{i},"loss":{i}.5,"aux_loss":null}}"#);
        let lines: Vec<_> = (1..=3000).map(line).collect();
        std::fs::write(&log, lines.join("\n") + "\nno JSON\n{\"event\":\"end\"}\n").unwrap();
        draw_curves(&log, &svg).unwrap();
        let drawn = std::fs::read_to_string(svg).unwrap();
        assert!(
            drawn.contains("mean over 60") && drawn.contains("<polyline"),
            "{drawn}"
        );
    }

    #[test]
    fn pictures_are_spread_over_the_split() {
        assert_eq!(spread(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(spread(2, 4).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(0, 4).count(), 0);
    }
}
