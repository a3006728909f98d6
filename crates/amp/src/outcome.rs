//! What a step did.

use serde::Serialize;

/// What a step did. In JSON it is an object whose `result` is `stepped` or `skipped`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
#[must_use = "a skipped step must not advance schedules"]
#[non_exhaustive]
pub enum StepOutcome {
    /// The parameters were updated.
    #[non_exhaustive]
    Stepped {
        /// The scale of the gradients of this step.
        scale: f32,
        /// The global l2 norm of the gradients before clipping, if it was computed: a disabled
        /// scaler computes it for clipping only.
        grad_norm: Option<f32>,
        /// Whether clipping changed the gradients.
        clipped: bool,
        /// The loss before scaling, the sum over micro-batches, if the scaler is enabled.
        loss: Option<f32>,
    },
    /// Gradients were infinite or NaN; nothing was changed.
    #[non_exhaustive]
    Skipped {
        /// The scale of the gradients of this step.
        scale: f32,
        /// The scale that the overflow leads to.
        next_scale: f32,
        /// The paths of the parameters whose gradients overflowed, in the order of the model.
        culprits: Vec<String>,
        /// Where the overflow began.
        pass: OverflowPass,
        /// What the forward pass left infinite or NaN: `loss`, or paths of running statistics, the
        /// first of which is near the origin.
        non_finite_forward: Vec<String>,
        /// Whether the lower bound kept the scale from backing off fully.
        at_floor: bool,
    },
}

impl StepOutcome {
    /// Whether the parameters were updated.
    pub fn stepped(&self) -> bool {
        matches!(self, StepOutcome::Stepped { .. })
    }
}

impl std::fmt::Display for StepOutcome {
    /// One line: `stepped, scale 512, gradient norm 1.2`, or `skipped, backward overflow at scale
    /// 65536 (now 32768) in head.weight, head.bias`. Of more than three parameters it names the
    /// first, the last and their number, and after a forward overflow what it began with.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StepOutcome::Stepped {
                scale,
                grad_norm: Some(norm),
                ..
            } => {
                write!(f, "stepped, scale {scale}, gradient norm {norm}")
            }
            StepOutcome::Stepped { scale, .. } => write!(f, "stepped, scale {scale}"),
            StepOutcome::Skipped {
                scale,
                next_scale,
                culprits,
                pass,
                non_finite_forward,
                at_floor,
            } => {
                let pass = match pass {
                    OverflowPass::Forward => "forward",
                    OverflowPass::Backward => "backward",
                };
                // An f32 is printed with the digits that tell it apart, 2^32 as 4294967300.
                let [scale, next_scale] = [scale, next_scale].map(|scale| f64::from(*scale));
                write!(
                    f,
                    "skipped, {pass} overflow at scale {scale} (now {next_scale}) in "
                )?;
                match culprits.as_slice() {
                    [] => f.write_str("no parameter"),
                    [first, _, _, .., last] if culprits.len() > 3 => {
                        write!(f, "{} gradients from {first} to {last}", culprits.len())
                    }
                    few => f.write_str(&few.join(", ")),
                }?;
                if let Some(first) = non_finite_forward.first() {
                    write!(f, "; the forward pass was not finite from {first} on")?;
                }
                match at_floor {
                    true => f.write_str("; the scale is at its lower bound"),
                    false => Ok(()),
                }
            }
        }
    }
}

/// The pass in which an overflow began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OverflowPass {
    /// The loss or a running statistic was not finite: a smaller scale will not help.
    Forward,
    /// Only gradients were not finite.
    Backward,
}

/// What [`GradScaler::update`](crate::GradScaler::update) did to the scale.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ScaleUpdate {
    /// The scale of the step that ended.
    pub from: f32,
    /// The scale of the next step.
    pub to: f32,
    /// Whether any gradients of the step overflowed.
    pub overflow: bool,
    /// Whether the lower bound kept the scale from backing off fully.
    pub at_floor: bool,
}
