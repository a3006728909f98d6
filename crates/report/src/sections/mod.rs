//! The parts of a page. Each gives its HTML, in which what is missing is said in words; an empty text leaves the part
//! out.

pub mod calibration;
pub mod classes;
pub mod configuration;
pub mod confusion;
pub mod curves;
pub mod overview;
pub mod pictures;
pub mod precision;
pub mod slices;

use crate::html::note;
use crate::run::{Run, State};

/// What is said where scores are needed and there are none.
pub fn not_evaluated(run: &Run) -> String {
    let why = match (run.state(), run.record.recipe.as_ref()) {
        (State::Unfinished, _) if run.evaluations.is_empty() => {
            "The run was not evaluated so far: its first evaluation adds this."
        }
        (_, Some(_)) if run.evaluations.is_empty() => {
            "The run was not evaluated: it has no validation split."
        }
        _ if run.evaluations.is_empty() => "The run was not evaluated.",
        _ => {
            "The folder has no counts of the last evaluation (evaluation.json, or run.json of earlier versions): \
             evaluate again to get them."
        }
    };
    note(why)
}
