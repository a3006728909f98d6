//! How a loss is scaled: the settings of a scaler.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::AmpError;

/// The largest scale: its inverse is still a normal f32, so unscaling loses nothing. The smallest
/// is the smallest normal f32, whose inverse is finite.
pub(crate) const MAX_SCALE: f32 = f32::from_bits((126 + 127) << 23);

/// How a loss is scaled.
///
/// ```
/// use halfseg_amp::Scaling;
///
/// assert_eq!("mmcv-static".parse::<Scaling>()?, Scaling::Fixed(512.0));
/// assert_eq!("none".parse::<Scaling>()?, Scaling::Disabled);
/// assert!(matches!("torch".parse::<Scaling>()?, Scaling::Dynamic(_)));
/// # Ok::<(), halfseg_amp::AmpError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scaling {
    /// No scaling, no check of gradients, no skipped steps: for f32 and bf16.
    Disabled,
    /// One scale for ever. Steps with non-finite gradients are still skipped.
    Fixed(f32),
    /// A scale that grows until gradients overflow, and backs off.
    Dynamic(DynamicScale),
}

impl Scaling {
    /// The static scale of the published mixed-precision segmentation models: 512.
    pub fn mmcv_static() -> Self {
        Scaling::Fixed(512.0)
    }

    /// # Errors
    ///
    /// [`AmpError::Setting`] names the first setting that is out of its range.
    pub fn validate(&self) -> Result<(), AmpError> {
        match self {
            Scaling::Disabled => Ok(()),
            Scaling::Fixed(scale) => check(
                "scale",
                f64::from(*scale),
                "a number from 2^-126 to 2^126",
                (f32::MIN_POSITIVE..=MAX_SCALE).contains(scale),
            ),
            Scaling::Dynamic(dynamic) => dynamic.validate(),
        }
    }
}

fn check(
    setting: &'static str,
    found: f64,
    expected: &'static str,
    ok: bool,
) -> Result<(), AmpError> {
    if ok {
        Ok(())
    } else {
        Err(AmpError::Setting {
            setting,
            found,
            expected,
        })
    }
}

impl FromStr for Scaling {
    type Err = AmpError;

    /// Reads `none`, a fixed scale such as `512`, or the name of a preset.
    fn from_str(text: &str) -> Result<Self, AmpError> {
        let scaling = match text {
            "none" => Scaling::Disabled,
            "mmcv-static" => Scaling::mmcv_static(),
            "torch" => Scaling::Dynamic(DynamicScale::torch()),
            "megatron" => Scaling::Dynamic(DynamicScale::megatron()),
            "flax" => Scaling::Dynamic(DynamicScale::flax()),
            "apex" => Scaling::Dynamic(DynamicScale::apex()),
            "keras" => Scaling::Dynamic(DynamicScale::keras()),
            _ => match text.parse() {
                Ok(scale) => Scaling::Fixed(scale),
                Err(_) => {
                    return Err(AmpError::UnknownScaling {
                        found: text.to_owned(),
                    });
                }
            },
        };
        scaling.validate()?;
        Ok(scaling)
    }
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scaling::Disabled => f.write_str("none"),
            Scaling::Fixed(scale) => write!(f, "{scale}"),
            Scaling::Dynamic(dynamic) => {
                type Preset = (&'static str, fn() -> DynamicScale);
                let presets: [Preset; 5] = [
                    ("torch", DynamicScale::torch),
                    ("megatron", DynamicScale::megatron),
                    ("flax", DynamicScale::flax),
                    ("apex", DynamicScale::apex),
                    ("keras", DynamicScale::keras),
                ];
                match presets.iter().find(|(_, preset)| preset() == *dynamic) {
                    Some((name, _)) => f.write_str(name),
                    None => write!(f, "dynamic from {}", dynamic.init),
                }
            }
        }
    }
}

/// The settings of a dynamic scale.
///
/// After `interval` clean steps in a row the scale is multiplied by `growth`, unless that would
/// pass `max`. A step with overflow multiplies it by `backoff`, down to `min`; with `hysteresis`
/// above 1 the first `hysteresis - 1` overflows since the last growth are forgiven.
///
/// Start from a preset:
///
/// ```
/// use halfseg_amp::DynamicScale;
///
/// let scale = DynamicScale::torch().with_init(1024.0).with_interval(500);
/// assert_eq!(scale.backoff, 0.5);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DynamicScale {
    /// The first scale; one above `max` starts at `max`.
    pub init: f32,
    /// Factor of a growth, above 1.
    pub growth: f64,
    /// Factor after an overflow, between 0 and 1.
    pub backoff: f64,
    /// Clean steps from one growth to the next, at least 1.
    pub interval: u32,
    /// The scale never falls below this; at least the smallest normal f32.
    pub min: f32,
    /// The scale never grows above this; at most 2^126.
    pub max: f32,
    /// Overflows up to and including the one that backs off, at least 1.
    pub hysteresis: u32,
}

impl DynamicScale {
    /// `torch.amp.GradScaler`: from 65536, doubled after 2000 clean steps, halved at overflow.
    ///
    /// PyTorch lets the scale reach 2^127 and fall to 0; here it stays between 2^-126 and 2^126.
    pub fn torch() -> Self {
        Self {
            init: 65536.0,
            growth: 2.0,
            backoff: 0.5,
            interval: 2000,
            min: f32::MIN_POSITIVE,
            max: MAX_SCALE,
            hysteresis: 1,
        }
    }

    /// `megatron.core.optimizer.DynamicGradScaler` as Megatron's arguments set it: from 2^32,
    /// window 1000, hysteresis 2, not below 1.
    pub fn megatron() -> Self {
        Self {
            init: 4294967296.0,
            interval: 1000,
            min: 1.0,
            hysteresis: 2,
            ..Self::torch()
        }
    }

    /// `flax.training.dynamic_scale.DynamicScale`: as PyTorch's, but the clean step *after*
    /// `growth_interval` (2000) others grows.
    pub fn flax() -> Self {
        Self {
            interval: 2001,
            ..Self::torch()
        }
    }

    /// NVIDIA Apex: from 2^16, window 2000, not above 2^24.
    pub fn apex() -> Self {
        Self {
            max: 16777216.0,
            ..Self::torch()
        }
    }

    /// Keras' `LossScaleOptimizer`: from 2^15, window 2000.
    pub fn keras() -> Self {
        Self {
            init: 32768.0,
            ..Self::torch()
        }
    }

    /// Sets the first scale.
    pub fn with_init(mut self, init: f32) -> Self {
        self.init = init;
        self
    }

    /// Sets the factor of a growth.
    pub fn with_growth(mut self, growth: f64) -> Self {
        self.growth = growth;
        self
    }

    /// Sets the factor after an overflow.
    pub fn with_backoff(mut self, backoff: f64) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the number of clean steps from one growth to the next.
    pub fn with_interval(mut self, interval: u32) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the lower bound.
    pub fn with_min(mut self, min: f32) -> Self {
        self.min = min;
        self
    }

    /// Sets the upper bound.
    pub fn with_max(mut self, max: f32) -> Self {
        self.max = max;
        self
    }

    /// Sets the number of overflows up to the one that backs off.
    pub fn with_hysteresis(mut self, hysteresis: u32) -> Self {
        self.hysteresis = hysteresis;
        self
    }

    fn validate(&self) -> Result<(), AmpError> {
        check("init", self.init.into(), "a positive finite number", {
            self.init > 0.0 && self.init.is_finite()
        })?;
        check("growth", self.growth, "a finite number above 1", {
            self.growth > 1.0 && self.growth.is_finite()
        })?;
        check("backoff", self.backoff, "a number between 0 and 1", {
            self.backoff > 0.0 && self.backoff < 1.0
        })?;
        check(
            "interval",
            self.interval.into(),
            "at least 1",
            self.interval >= 1,
        )?;
        check(
            "hysteresis",
            self.hysteresis.into(),
            "at least 1",
            self.hysteresis >= 1,
        )?;
        check(
            "min",
            self.min.into(),
            "at least 2^-126 and at most init",
            self.min >= f32::MIN_POSITIVE && self.min <= self.init,
        )?;
        check("max", self.max.into(), "at least min and at most 2^126", {
            self.max >= self.min && self.max <= MAX_SCALE
        })
    }
}
