//! The underflow report: which gradients half precision would lose at which scale.

use std::fmt;

use serde::Serialize;

use crate::Precision;

/// What happens to the gradient of one parameter at each scale of an [`UnderflowReport`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct UnderflowRow {
    /// The path of the parameter.
    pub path: String,
    /// Its number of values.
    pub elements: u64,
    /// Gradient values that are not zero; the fractions below are of these.
    pub non_zero: u64,
    /// One entry per scale.
    pub at: Vec<Losses>,
}

/// Fractions of the non-zero gradient values of a parameter, between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Losses {
    /// Values that become zero.
    pub flushed: f64,
    /// Values that become subnormal, which costs bits.
    pub subnormal: f64,
    /// Values that become infinite.
    pub overflowed: f64,
}

/// Per parameter, the fraction of its gradient that half precision would lose at chosen scales;
/// from [`UnscaledGrads::underflow`](crate::UnscaledGrads::underflow).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct UnderflowReport {
    /// The half precision.
    pub precision: Precision,
    /// The scales.
    pub scales: Vec<f32>,
    /// One row per parameter, in the order of the model.
    pub rows: Vec<UnderflowRow>,
}

impl UnderflowReport {
    /// The losses at each scale over all parameters.
    pub fn total(&self) -> Vec<Losses> {
        let non_zero: f64 = self.rows.iter().map(|row| row.non_zero as f64).sum();
        let mean = |place: usize, of: fn(&Losses) -> f64| {
            let lost: f64 = self
                .rows
                .iter()
                .map(|row| of(&row.at[place]) * row.non_zero as f64)
                .sum();
            lost / non_zero.max(1.0)
        };
        (0..self.scales.len())
            .map(|place| Losses {
                flushed: mean(place, |losses| losses.flushed),
                subnormal: mean(place, |losses| losses.subnormal),
                overflowed: mean(place, |losses| losses.overflowed),
            })
            .collect()
    }

    /// The scale at which the fewest values are flushed, among those without overflow; the smallest
    /// such scale if several flush as few. `None` if every scale overflows.
    pub fn best_scale(&self) -> Option<f32> {
        let total = self.total();
        let mut fits: Vec<_> = self
            .scales
            .iter()
            .zip(total)
            .filter(|(_, losses)| losses.overflowed == 0.0)
            .map(|(scale, losses)| (losses.flushed, *scale))
            .collect();
        fits.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        fits.first().map(|(_, scale)| *scale)
    }
}

impl fmt::Display for UnderflowReport {
    /// A table of percentages of flushed values, with `!` where some value overflows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .rows
            .iter()
            .map(|row| row.path.len())
            .max()
            .unwrap_or(0)
            .max(5);
        write!(f, "{:width$}", "")?;
        for scale in &self.scales {
            write!(f, "  {scale:>9}")?;
        }
        writeln!(f)?;
        let mut line = |name: &str, at: &[Losses]| {
            write!(f, "{name:width$}")?;
            for losses in at {
                let mark = if losses.overflowed > 0.0 { '!' } else { '%' };
                write!(f, "  {:>8.3}{mark}", 100.0 * losses.flushed)?;
            }
            writeln!(f)
        };
        for row in &self.rows {
            line(&row.path, &row.at)?;
        }
        line("total", &self.total())
    }
}
