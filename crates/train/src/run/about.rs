//! What a run's notes and its manifest say of it.

use std::path::Path;
use std::thread::available_parallelism;

use halfseg_data::Classes;
use halfseg_predict::known_classes;
use serde_json::json;

use super::manifest::Best;
use crate::{DataSource, Error, Metric, Recipe, Splits};

/// Workers that nobody is told are many: they wait for disks, too.
const USUAL_WORKERS: usize = 16;

/// What taking a batch in parts changes, beyond rounding.
fn parts_note(recipe: &Recipe, processes: usize) -> Option<String> {
    let parts = processes * (1 + recipe.further_devices.len()) * recipe.train.accumulate;
    (parts > 1 && !recipe.loss.objective().is_mean_of_parts()).then(|| {
        format!(
            "loss.dice, loss.lovasz and loss.ohem_threshold look at a part of the batch at a time, of {parts}: their sum is \
             another than that of the whole batch"
        )
    })
}

/// More threads that load than processors, as PyTorch's loader warns of.
pub(super) fn workers_note(recipe: &Recipe) -> Option<String> {
    let (workers, processors) = (recipe.data.workers, available_parallelism().ok()?);
    (workers > processors.get().max(USUAL_WORKERS)).then(|| {
        format!(
            "data.workers = {workers}, where {processors} threads run at a time: more than that take memory and \
             load no faster"
        )
    })
}

/// What whoever begins a run should know of its weights, and of its losses.
pub(super) fn beginning(
    recipe: &Recipe,
    classes: &Classes,
    processes: usize,
) -> Result<Vec<String>, Error> {
    let mut notes: Vec<_> = parts_note(recipe, processes).into_iter().collect();
    let random = recipe.checkpoint.is_empty() && recipe.backbone_weights.is_empty();
    if random && recipe.train.frozen().is_some() {
        notes.push(
            "train.frozen_stages leaves random weights as they are: name trained ones (--checkpoint or \
             --backbone-weights)"
                .to_owned(),
        );
    }
    if random && recipe.data.source != DataSource::Synthetic {
        notes.push(
            "training starts from random weights: few pictures get further from a trained network \
             (--checkpoint) or backbone (--backbone-weights)"
                .to_owned(),
        );
    }
    if !recipe.checkpoint.is_empty()
        && let Some(trained) = known_classes(Path::new(&recipe.checkpoint))?
        && trained.len() == classes.len()
        && trained.names() != classes.names()
    {
        notes.push(format!(
            "{}: its classifier tells apart {trained}, and is now to tell apart {classes}: as many, so that its \
             weights are taken over",
            recipe.checkpoint
        ));
    }
    Ok(notes)
}

/// What an evaluation scores, and how: scores of different ones cannot be compared.
pub(super) fn scored(recipe: &Recipe, data: &Splits) -> String {
    let source = &recipe.data;
    let generated = [source.synthetic_seed, source.synthetic_val as u64];
    let mut scored = json!({
        "source": source.source,
        "split": source.val_split,
        "pictures": data.val.as_ref().map(|val| val.len()),
        "generated": (source.source == DataSource::Synthetic).then(|| json!([generated, source.scale])),
        "eval": recipe.eval,
    });
    // Without it, as earlier versions wrote it.
    if recipe.train.best_by != Metric::Miou {
        scored["best_by"] = json!(recipe.train.best_by);
    }
    scored.to_string()
}

/// Whether as many evaluations as `train.patience` came after the best, at `iteration`.
pub(super) fn out_of_patience(recipe: &Recipe, best: Option<&Best>, iteration: u64) -> bool {
    let (patience, every) = (recipe.train.patience, recipe.train.eval_every);
    let since = best.map_or(0, |best| iteration.saturating_sub(best.iteration));
    patience > 0 && every > 0 && since / every >= patience
}
