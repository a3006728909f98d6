//! The scale from step to step.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{AmpError, Scaling};

/// The version of a saved state. States without one are of the first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Version(u32);

impl Version {
    const NEWEST: u32 = 1;
}

impl Default for Version {
    fn default() -> Self {
        Self(Self::NEWEST)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            1..=Self::NEWEST => Ok(Self(Self::NEWEST)),
            found => Err(D::Error::custom(AmpError::Version {
                found,
                supported: Self::NEWEST,
            })),
        }
    }
}

/// What is saved of a scaler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScaleState {
    /// First, so that a state of a later version is told apart before a field that it added. A field
    /// that is added needs a default, or states that were saved before cannot be read.
    #[serde(default)]
    version: Version,
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
            version: Version::default(),
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
        let (clean, hysteresis) = match &self.scaling {
            // An overflow that backed off leaves none to forgive until the scale grows.
            Scaling::Dynamic(dynamic) => (dynamic.interval - 1, 0..=dynamic.hysteresis),
            _ => (0, 1..=1),
        };
        if self.clean > clean {
            return Err(AmpError::Setting {
                setting: "saved number of clean steps",
                found: self.clean.into(),
                expected: "fewer than the interval of the saved settings",
            });
        }
        if !hysteresis.contains(&self.hysteresis_left) {
            return Err(AmpError::Setting {
                setting: "saved hysteresis",
                found: self.hysteresis_left.into(),
                expected: "at most the hysteresis of the saved settings",
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
