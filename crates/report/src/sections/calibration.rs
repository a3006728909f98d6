//! Whether probabilities are what they say.

use super::not_evaluated;
use crate::html::note;
use crate::reliability;
use crate::run::Run;

pub fn html(run: &Run) -> String {
    let Some(evaluation) = run.evaluation() else {
        return not_evaluated(run);
    };
    match &evaluation.calibration {
        Some(calibration) if calibration.total().pixels > 0 => reliability::html(calibration),
        Some(_) => note("No labelled pixel with a finite probability was evaluated."),
        None => note(
            "This folder is of an earlier version, which did not count how probable predicted classes were: the next \
             evaluation of the run adds it.",
        ),
    }
}
