//! The scale from step to step.

use serde::{Deserialize, Serialize};

use crate::{AmpError, Scaling};

/// What is saved of a scaler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScaleState {
    pub scaling: Scaling,
    pub scale: f32,
    /// Clean steps since the last growth or overflow.
    pub clean: u32,
    /// Overflows left to forgive, plus one.
    pub hysteresis_left: u32,
    pub steps: u64,
    pub skips: u64,
}

impl ScaleState {
    /// The state before the first step.
    pub fn new(scaling: Scaling) -> Self {
        let (scale, hysteresis_left) = match &scaling {
            Scaling::Disabled => (1.0, 1),
            Scaling::Fixed(scale) => (*scale, 1),
            Scaling::Dynamic(dynamic) => (dynamic.init.min(dynamic.max), dynamic.hysteresis),
        };
        Self {
            scaling,
            scale,
            clean: 0,
            hysteresis_left,
            steps: 0,
            skips: 0,
        }
    }

    /// Refuses what no run can have led to.
    pub fn validate(&self) -> Result<(), AmpError> {
        self.scaling.validate()?;
        let (min, max) = match &self.scaling {
            Scaling::Disabled => (1.0, 1.0),
            Scaling::Fixed(scale) => (*scale, *scale),
            Scaling::Dynamic(dynamic) => (dynamic.min, dynamic.max),
        };
        if !(min..=max).contains(&self.scale) {
            return Err(AmpError::Setting {
                setting: "saved scale",
                found: self.scale.into(),
                expected: "a scale that the saved settings can lead to",
            });
        }
        Ok(())
    }

    pub fn count(&mut self, overflow: bool) {
        if overflow {
            self.skips += 1;
        } else {
            self.steps += 1;
        }
    }

    /// The state after a step, and whether the lower bound held the scale up.
    pub fn after(&self, overflow: bool) -> (ScaleState, bool) {
        let mut next = self.clone();
        next.count(overflow);
        let Scaling::Dynamic(dynamic) = &self.scaling else {
            return (next, false);
        };
        if overflow {
            next.clean = 0;
            next.hysteresis_left = self.hysteresis_left.saturating_sub(1);
            if next.hysteresis_left > 0 {
                return (next, false);
            }
            // In f64 and rounded once, as PyTorch computes it.
            let scale = (f64::from(self.scale) * dynamic.backoff) as f32;
            next.scale = scale.max(dynamic.min);
            return (next, scale < dynamic.min);
        }
        next.clean += 1;
        if next.clean >= dynamic.interval {
            next.clean = 0;
            next.hysteresis_left = dynamic.hysteresis;
            let scale = f64::from(self.scale) * dynamic.growth;
            if scale <= f64::from(dynamic.max) {
                next.scale = scale as f32;
            }
        }
        (next, false)
    }
}
