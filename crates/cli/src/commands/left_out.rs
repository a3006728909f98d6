//! Pictures that a job goes on without.

use anyhow::{Result, bail};
use halfseg_data::LabelMap;
use halfseg_eval::Prediction;

use crate::failure::chain;

/// Why pictures were left out, one text each.
pub struct LeftOut {
    goes_on: bool,
    reasons: Vec<String>,
}

impl LeftOut {
    /// Nothing is left out so far; `goes_on` says whether anything may be.
    pub fn new(goes_on: bool) -> Self {
        Self {
            goes_on,
            reasons: Vec::new(),
        }
    }

    /// Leaves out a picture that `error` names, or ends the job with it.
    pub fn add(&mut self, error: anyhow::Error) -> Result<()> {
        self.push(Self::reason(self.goes_on, error)?);
        Ok(())
    }

    /// Why a picture is left out, if the job goes on without it, else the error.
    pub fn reason(goes_on: bool, error: anyhow::Error) -> Result<String> {
        match goes_on {
            true => Ok(chain(&error)),
            false => Err(error),
        }
    }

    /// Leaves out a picture for this reason.
    pub fn push(&mut self, reason: String) {
        self.reasons.push(reason);
    }

    /// How many were left out.
    pub fn count(&self) -> usize {
        self.reasons.len()
    }

    /// The end of a job over `total` pictures: fails with all that were left out.
    pub fn finish(self, total: usize) -> Result<()> {
        if self.reasons.is_empty() {
            return Ok(());
        }
        let list = self.reasons.join("\n  ");
        bail!(
            "{} of {total} pictures were left out:\n  {list}",
            self.reasons.len()
        )
    }
}

/// The classes of the picture `name`. Scores that are not finite fail it; where they are allowed their
/// pixels are ignored.
pub fn class_map(prediction: Prediction, name: &str, allow_nonfinite: bool) -> Result<LabelMap> {
    let (found, pixels) = (prediction.not_finite, prediction.map.data.len());
    if allow_nonfinite && found > 0 {
        warning!("{name}: scores of {found} of {pixels} pixels are not finite: they are ignored");
        return Ok(prediction.map);
    }
    Ok(prediction.finite(name)?)
}
