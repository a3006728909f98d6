//! Runs that are stopped on the way.

use std::path::Path;

use halfseg_devices::DeviceChoice;
use halfseg_train::{Observer, Outcome, Recipe, Step, Timing, Trainer};

/// Stops after a number of iterations.
pub struct StopAt(u64, u64);

impl StopAt {
    /// After so many.
    pub fn iteration(iteration: u64) -> Self {
        Self(iteration, 0)
    }
}

impl Observer for StopAt {
    fn stepped(&mut self, step: &Step, _timing: &Timing) {
        self.1 = step.iteration;
    }

    fn stop(&mut self) -> bool {
        self.1 >= self.0
    }
}

/// A new run on the CPU, until it ends or `observer` stops it.
pub fn run(recipe: &Recipe, out: &Path, observer: &mut dyn Observer) -> Outcome {
    let device = DeviceChoice::Flex.open().unwrap();
    let mut trainer = Trainer::new(recipe.clone(), &device, out).unwrap();
    trainer.run(observer).unwrap()
}
