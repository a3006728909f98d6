//! Plots of a run.

use std::path::Path;

use halfseg_eval::{Series, curves_svg};

use crate::{Error, Log};

/// Iterations that a point of the smoothed loss averages at least.
const SMOOTH: usize = 20;

/// Points of a curve at most: more than there are pixels, however long a run is.
const MOST_POINTS: usize = 4000;

/// A curve of bounded length: each point is the mean of as many values as have to share one.
#[derive(Default)]
struct Curve {
    points: Vec<(f64, f64)>,
    /// Values that a point is the mean of: 2 to the power of it.
    halvings: u32,
    sum: f64,
    summed: u64,
}

impl Curve {
    fn push(&mut self, (x, y): (f64, f64)) {
        self.sum += y;
        self.summed += 1;
        if self.summed < self.shared() {
            return;
        }
        self.points.push((x, self.sum / self.summed as f64));
        (self.sum, self.summed) = (0.0, 0);
        if self.points.len() == MOST_POINTS {
            let pairs = self.points.as_chunks::<2>().0.iter();
            self.points = pairs.map(|[(_, a), (x, b)]| (*x, (a + b) / 2.0)).collect();
            self.halvings += 1;
        }
    }

    fn shared(&self) -> u64 {
        1 << self.halvings
    }
}

/// Draws the losses of the log at `log`, and their running mean, as SVG.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn draw_curves(log: &Path, svg: &Path) -> Result<(), Error> {
    let (mut loss, mut auxiliary) = (Curve::default(), Curve::default());
    Log::each(log, "train", |line| {
        let point = |key: &str| Some((line["iteration"].as_f64()?, line[key].as_f64()?));
        for (curve, key) in [(&mut loss, "loss"), (&mut auxiliary, "aux_loss")] {
            point(key).into_iter().for_each(|point| curve.push(point));
        }
    })?;
    let (shared, loss) = (loss.shared(), loss.points);
    let window = SMOOTH.max(loss.len() / 50);
    let mut sum = 0.0;
    let smooth = (0..loss.len()).map(|end| {
        sum += loss[end].1;
        if let Some(left) = end.checked_sub(window) {
            sum -= loss[left].1;
        }
        (loss[end].0, sum / window.min(end + 1) as f64)
    });
    let smooth = smooth.collect();
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
            points: auxiliary.points,
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
    fn a_long_run_has_no_more_points_than_a_short_one() {
        let mut curve = Curve::default();
        for i in 1..=100_000 {
            curve.push((f64::from(i), f64::from(i % 64)));
        }
        assert_eq!(curve.shared(), 32);
        assert_eq!(curve.points.len(), 100_000 / 32);
        assert!(curve.points.capacity() <= 2 * MOST_POINTS);
        for (place, &(x, y)) in curve.points.iter().enumerate() {
            assert_eq!(x, 32.0 * (place + 1) as f64);
            let values = (x as u32 - 31..=x as u32).map(|i| f64::from(i % 64));
            assert!((y - values.sum::<f64>() / 32.0).abs() < 1e-9, "{x}: {y}");
        }
    }

    #[test]
    fn pictures_are_spread_over_the_split() {
        assert_eq!(spread(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(spread(2, 4).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(0, 4).count(), 0);
    }
}
