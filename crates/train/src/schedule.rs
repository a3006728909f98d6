//! The learning rate of each iteration: how it decays, and how it begins.

use serde::{Deserialize, Serialize};

use crate::PolySchedule;

/// How the learning rate goes from its first value to its last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// As a power of what is left of the run; see [`PolySchedule`].
    #[default]
    Poly,
    /// Along half a cosine.
    Cosine,
    /// By a factor at each of some iterations.
    Step,
    /// Not at all.
    Constant,
}

/// The learning rate over a run.
///
/// A warm-up multiplies it: iteration `i` of a warm-up of `n` has `factor + (1 - factor) i / n` of what the decay
/// says, as PyTorch's `LinearLR(start_factor=factor, total_iters=n)` beside the other scheduler.
///
/// ```
/// use halfseg_train::{Decay, PolySchedule, Schedule};
///
/// let poly = PolySchedule { lr: 0.01, min_lr: 1e-4, power: 0.9, iterations: 1000 };
/// let schedule = Schedule { decay: Decay::Cosine, warmup: 10, warmup_factor: 0.1, ..Schedule::of(poly) };
/// assert!((schedule.at(0) - 0.001).abs() < 1e-12);
/// assert_eq!(schedule.at(999), 1e-4);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// How it decays.
    pub decay: Decay,
    /// First and last learning rate, length, and the exponent of [`Decay::Poly`].
    pub poly: PolySchedule,
    /// Iterations of the warm-up; 0 for none.
    pub warmup: u64,
    /// Share of the learning rate that the warm-up begins with.
    pub warmup_factor: f64,
    /// Iterations at which [`Decay::Step`] multiplies by `gamma`, in order.
    pub milestones: Vec<u64>,
    /// That factor.
    pub gamma: f64,
}

impl Schedule {
    /// The polynomial decay alone.
    pub fn of(poly: PolySchedule) -> Self {
        Self {
            decay: Decay::Poly,
            poly,
            warmup: 0,
            warmup_factor: 0.1,
            milestones: Vec::new(),
            gamma: 0.1,
        }
    }

    /// Iterations of the whole run.
    pub fn iterations(&self) -> u64 {
        self.poly.iterations
    }

    /// The learning rate of iteration `iteration`, counted from 0; that of the last after the end.
    pub fn at(&self, iteration: u64) -> f64 {
        let PolySchedule {
            lr,
            min_lr,
            iterations,
            ..
        } = self.poly;
        let decayed = match self.decay {
            Decay::Poly => self.poly.at(iteration),
            Decay::Constant => lr,
            Decay::Cosine => {
                let last = iterations.saturating_sub(1).max(1);
                let done = iteration.min(last) as f64 / last as f64;
                match iteration >= last {
                    true => min_lr,
                    false => {
                        min_lr + (lr - min_lr) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
                    }
                }
            }
            Decay::Step => {
                let passed = self
                    .milestones
                    .iter()
                    .filter(|at| **at <= iteration)
                    .count();
                lr * self.gamma.powi(i32::try_from(passed).unwrap_or(i32::MAX))
            }
        };
        if iteration >= self.warmup {
            return decayed;
        }
        let done = iteration as f64 / self.warmup as f64;
        decayed * (self.warmup_factor + (1.0 - self.warmup_factor) * done)
    }
}
