//! Benchmarks of halfseg.

/// Times of repeated passes over the same work.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// Seconds of each pass, in the order of measurement.
    pub seconds: Vec<f64>,
}

impl Times {
    /// Runs `pass` `warmup` times, then measures it `iterations` times.
    ///
    /// # Errors
    /// The first error of `pass`.
    pub fn measure<E>(
        warmup: usize,
        iterations: usize,
        mut pass: impl FnMut() -> Result<(), E>,
    ) -> Result<Self, E> {
        for _ in 0..warmup {
            pass()?;
        }
        let mut seconds = Vec::with_capacity(iterations);
        for _ in 0..iterations {
            let start = std::time::Instant::now();
            pass()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(Self { seconds })
    }

    /// The median in seconds.
    ///
    /// # Panics
    /// If nothing was measured.
    pub fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
    }

    /// Passes a second over all of them, for passes that differ in work.
    pub fn rate(&self) -> f64 {
        self.seconds.len() as f64 / self.seconds.iter().sum::<f64>()
    }
}
