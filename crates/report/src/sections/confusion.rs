//! Which classes are taken for which.

use super::not_evaluated;
use crate::matrix;
use crate::run::Run;

pub fn html(run: &Run) -> String {
    let Some(evaluation) = run.evaluation() else {
        return not_evaluated(run);
    };
    let names = run.class_names(evaluation.matrix.classes());
    format!(
        "<p class=\"dim\">Of the evaluation after iteration {}.</p>\n{}",
        evaluation.iteration,
        matrix::html(&evaluation.matrix, &names)
    )
}
