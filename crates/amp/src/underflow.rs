//! The underflow report: which gradients half precision would lose at which scale.

use std::fmt;

use serde::Serialize;

use crate::grads::read_back;
use crate::{Precision, UnscaledGrads};

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

impl UnscaledGrads {
    /// What `precision` would make of each parameter's gradient at each of `scales`.
    ///
    /// Take the gradients from a step in f32, or in half precision at a scale that suits: what was
    /// already lost in the backward pass cannot be counted. Waits for the device once. Counts are
    /// exact up to 2^24 values per parameter and rounded to f32 beyond.
    ///
    /// # Panics
    ///
    /// If `precision` is [`Precision::Input`].
    pub fn underflow(&self, precision: Precision, scales: &[f32]) -> UnderflowReport {
        let dtype = precision
            .dtype()
            .expect("a report needs a precision to report on");
        let mut counts = Vec::new();
        if let Some(first) = self.grads.first() {
            let device = first.value.device();
            for grad in &self.grads {
                counts.push(grad.value.non_zero(&device));
                let losses = scales
                    .iter()
                    .map(|scale| grad.value.losses(dtype, *scale, &device));
                counts.extend(losses);
            }
            let data = read_back(counts);
            let rows = self.grads.iter().zip(data.chunks(1 + 3 * scales.len()));
            let rows = rows.map(|(grad, counts)| {
                let (non_zero, counts) = counts.split_first().expect("a chunk is not empty");
                let fraction = |count: f32| f64::from(count) / f64::from(*non_zero).max(1.0);
                UnderflowRow {
                    path: grad.path.clone(),
                    elements: grad.value.elements() as u64,
                    non_zero: *non_zero as u64,
                    at: counts
                        .chunks(3)
                        .map(|count| Losses {
                            flushed: fraction(count[0]),
                            subnormal: fraction(count[1]),
                            overflowed: fraction(count[2]),
                        })
                        .collect(),
                }
            });
            return UnderflowReport {
                precision,
                scales: scales.to_vec(),
                rows: rows.collect(),
            };
        }
        UnderflowReport {
            precision,
            scales: scales.to_vec(),
            rows: Vec::new(),
        }
    }
}
