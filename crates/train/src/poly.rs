//! The learning rate of each iteration.

use serde::{Deserialize, Serialize};

/// Polynomial decay from `lr` to `min_lr` over `iterations` steps.
///
/// Iteration `i` of `n` runs with `(lr - min_lr) * (1 - i / (n - 1))^power + min_lr`, so that the
/// first one uses `lr` and the last one exactly `min_lr`. This is the closed form of the recursion
/// that mmengine's `PolyLR` applies by iteration.
///
/// The position is the number of iterations *run*, not of optimizer steps *taken*: an iteration
/// whose step was skipped because of a gradient overflow also moves the schedule on, as it does in
/// mmengine, so that a run always ends at `min_lr`.
///
/// ```
/// use halfseg_train::PolySchedule;
///
/// let schedule = PolySchedule { lr: 0.01, min_lr: 1e-4, power: 0.9, iterations: 80_000 };
/// assert_eq!(schedule.at(0), 0.01);
/// assert_eq!(schedule.at(79_999), 1e-4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolySchedule {
    /// Learning rate of iteration 0.
    pub lr: f64,
    /// Learning rate of the last iteration.
    pub min_lr: f64,
    /// Exponent; 1 is a straight line.
    pub power: f64,
    /// Iterations of the whole run.
    pub iterations: u64,
}

impl PolySchedule {
    /// The learning rate of iteration `iteration`, counted from 0; `min_lr` after the end.
    pub fn at(&self, iteration: u64) -> f64 {
        if iteration == 0 {
            return self.lr;
        }
        let last = self.iterations.saturating_sub(1);
        if iteration >= last {
            return self.min_lr;
        }
        let left = 1.0 - iteration as f64 / last as f64;
        (self.lr - self.min_lr) * left.powf(self.power) + self.min_lr
    }
}

#[cfg(test)]
mod tests {
    use super::PolySchedule;

    /// mmengine's `PolyLR._get_value`, which derives each value from the one before.
    fn recursion(schedule: &PolySchedule) -> Vec<f64> {
        let total = schedule.iterations - 1;
        let mut lr = schedule.lr;
        let mut values = vec![lr];
        for step in 1..schedule.iterations {
            let factor = (1.0 - 1.0 / (total - step + 1) as f64).powf(schedule.power);
            lr = (lr - schedule.min_lr) * factor + schedule.min_lr;
            values.push(lr);
        }
        values
    }

    #[test]
    fn equals_the_recursion_of_mmengine_at_every_iteration() {
        for iterations in [2, 3, 600, 80_000] {
            let schedule = PolySchedule {
                lr: 0.01,
                min_lr: 1e-4,
                power: 0.9,
                iterations,
            };
            for (i, expected) in recursion(&schedule).into_iter().enumerate() {
                let found = schedule.at(i as u64);
                assert!(
                    (found - expected).abs() <= 1e-14,
                    "iteration {i} of {iterations}: {found} against {expected}"
                );
            }
        }
    }

    #[test]
    fn a_run_of_one_iteration_uses_the_initial_rate() {
        let schedule = PolySchedule {
            lr: 0.5,
            min_lr: 0.1,
            power: 0.9,
            iterations: 1,
        };
        assert_eq!(schedule.at(0), 0.5);
    }

    #[test]
    fn stays_at_the_minimum_after_the_end() {
        let schedule = PolySchedule {
            lr: 0.5,
            min_lr: 0.1,
            power: 0.9,
            iterations: 10,
        };
        assert_eq!(schedule.at(9), 0.1);
        assert_eq!(schedule.at(1000), 0.1);
    }
}
