//! Curves of bounded length.

/// A curve of a bounded number of points, however many are pushed: each is the mean of as many values as have to
/// share one, at the place of the last of them.
///
/// ```
/// use halfseg_eval::Curve;
///
/// let mut curve = Curve::new(4);
/// (1..=8).for_each(|i| curve.push((f64::from(i), f64::from(i))));
/// assert_eq!(curve.into_points(), [(4.0, 2.5), (8.0, 6.5)]);
/// ```
#[derive(Clone, Debug)]
pub struct Curve {
    points: Vec<(f64, f64)>,
    most: usize,
    /// Values that a point is the mean of: 2 to the power of it.
    halvings: u32,
    last: f64,
    sum: f64,
    summed: u64,
}

impl Curve {
    /// An empty curve of fewer than `most` points.
    ///
    /// # Panics
    /// If `most` is odd or 0: points are joined in pairs.
    pub fn new(most: usize) -> Self {
        assert!(
            most > 0 && most.is_multiple_of(2),
            "an even number of points, not {most}"
        );
        Self {
            points: Vec::new(),
            most,
            halvings: 0,
            last: 0.0,
            sum: 0.0,
            summed: 0,
        }
    }

    /// Adds a value after those before.
    pub fn push(&mut self, (x, y): (f64, f64)) {
        self.last = x;
        self.sum += y;
        self.summed += 1;
        if self.summed < self.shared() {
            return;
        }
        self.points.push((x, self.sum / self.summed as f64));
        (self.sum, self.summed) = (0.0, 0);
        if self.points.len() == self.most {
            let pairs = self.points.as_chunks::<2>().0.iter();
            self.points = pairs.map(|[(_, a), (x, b)]| (*x, (a + b) / 2.0)).collect();
            self.halvings += 1;
        }
    }

    /// Values that a point is the mean of.
    pub fn shared(&self) -> u64 {
        1 << self.halvings
    }

    /// The points, the mean of the last values among them.
    pub fn into_points(mut self) -> Vec<(f64, f64)> {
        if self.summed > 0 {
            self.points.push((self.last, self.sum / self.summed as f64));
        }
        self.points
    }
}

/// Each point with the mean of the last `window` values up to it, of fewer at the beginning.
///
/// # Panics
/// If `window` is 0 and there are points.
pub fn running_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    assert!(window > 0 || points.is_empty(), "a mean of some values");
    let mut sum = 0.0;
    let mean = |end: usize| {
        sum += points[end].1;
        if let Some(left) = end.checked_sub(window) {
            sum -= points[left].1;
        }
        (points[end].0, sum / window.min(end + 1) as f64)
    };
    (0..points.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_has_no_more_points_than_a_short_one() {
        let mut curve = Curve::new(4000);
        for i in 1..=100_000 {
            curve.push((f64::from(i), f64::from(i % 64)));
        }
        assert_eq!(curve.shared(), 32);
        let points = curve.into_points();
        assert_eq!(points.len(), 100_000 / 32);
        for (place, &(x, y)) in points.iter().enumerate() {
            assert_eq!(x, 32.0 * (place + 1) as f64);
            let values = (x as u32 - 31..=x as u32).map(|i| f64::from(i % 64));
            assert!((y - values.sum::<f64>() / 32.0).abs() < 1e-9, "{x}: {y}");
        }
    }

    #[test]
    fn the_last_values_are_not_left_out() {
        let mut curve = Curve::new(4);
        (0..5).for_each(|i| curve.push((f64::from(i), f64::from(i))));
        assert_eq!(curve.into_points(), [(1.0, 0.5), (3.0, 2.5), (4.0, 4.0)]);
    }
}
