//! The state of PyTorch's gradient scaler.

use serde::{Deserialize, Serialize};

use crate::scale::ScaleState;
use crate::{AmpError, DynamicScale, GradScaler, Scaling};

/// What `torch.amp.GradScaler.state_dict()` holds, under the same keys.
///
/// `json.dump(scaler.state_dict(), file)` on the one side and serde on the other carry a run from
/// PyTorch to Burn in mid-interval, and back:
///
/// ```
/// use halfseg_amp::{GradScaler, TorchState};
///
/// let text = r#"{"scale": 4096.0, "growth_factor": 2.0, "backoff_factor": 0.5,
///                "growth_interval": 2000, "_growth_tracker": 17}"#;
/// let state: TorchState = serde_json::from_str(text)?;
/// let scaler = GradScaler::from_torch(&state)?;
/// assert_eq!(scaler.current_scale(), 4096.0);
/// assert_eq!(scaler.to_torch()?, state);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The state of a disabled scaler is empty in PyTorch, and is read as none here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorchState {
    /// The scale of the next step.
    pub scale: f64,
    /// Factor of a growth.
    pub growth_factor: f64,
    /// Factor after an overflow.
    pub backoff_factor: f64,
    /// Clean steps from one growth to the next.
    pub growth_interval: u32,
    /// Clean steps since the last growth or overflow.
    #[serde(rename = "_growth_tracker")]
    pub growth_tracker: u32,
}

impl GradScaler {
    /// A scaler that goes on where one of PyTorch's stopped. Its counts of steps begin at zero.
    ///
    /// # Errors
    ///
    /// [`AmpError::Setting`] names what is out of its range: PyTorch lets the scale reach 2^127 and
    /// fall to 0, here it stays between 2^-126 and 2^126.
    pub fn from_torch(state: &TorchState) -> Result<Self, AmpError> {
        let settings = DynamicScale::torch()
            .with_growth(state.growth_factor)
            .with_backoff(state.backoff_factor)
            .with_interval(state.growth_interval);
        let scaling = Scaling::Dynamic(settings);
        scaling.validate()?;
        let mut scale = ScaleState::new(scaling);
        scale.scale = state.scale as f32;
        scale.clean = state.growth_tracker;
        GradScaler::try_from(scale)
    }

    /// The state as PyTorch's `load_state_dict` takes it.
    ///
    /// # Errors
    ///
    /// [`AmpError::NotInTorch`] for what PyTorch's scaler lacks: it is never fixed, forgives no
    /// overflow and has no bounds, and the state of a disabled one says nothing.
    pub fn to_torch(&self) -> Result<TorchState, AmpError> {
        let not_in_torch = |what| Err(AmpError::NotInTorch { what });
        let dynamic = match self.scaling() {
            Scaling::Dynamic(dynamic) => dynamic,
            Scaling::Fixed(_) => return not_in_torch("a fixed scale"),
            Scaling::Disabled => return not_in_torch("the state of a disabled scaler"),
        };
        let torch = DynamicScale::torch();
        if dynamic.hysteresis != torch.hysteresis {
            return not_in_torch("a hysteresis");
        }
        if (dynamic.min, dynamic.max) != (torch.min, torch.max) {
            return not_in_torch("bounds of the scale");
        }
        Ok(TorchState {
            scale: self.current_scale().into(),
            growth_factor: dynamic.growth,
            backoff_factor: dynamic.backoff,
            growth_interval: dynamic.interval,
            growth_tracker: self.state.clean,
        })
    }
}
