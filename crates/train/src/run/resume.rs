//! How a run goes on from its last checkpoint.

use std::path::Path;

use halfseg_amp::GradScaler;

use super::Trainer;
use super::about::scored;
use super::folder::{Folder, ITERATION_KEY, RECIPE_KEY, read_recipe};
use super::manifest::{Best, Evaluation, Mark};
use super::state::{Position, RunState};
use crate::start::{Start, check_evaluation, check_memory, open_further};
use crate::{Error, Learner, Log, Recipe, Splits, check_classes, known_classes};

impl Trainer {
    /// Continues the run in the folder `out` from its last checkpoint, on the devices and with the
    /// data of the recipe that the checkpoint carries, after `change` has been at it.
    ///
    /// # Errors
    ///
    /// A folder without a checkpoint or in use by another process, damaged files, changes with which
    /// the run cannot be continued, and those of [`new`](Self::new).
    pub fn resume(
        out: &Path,
        change: impl FnOnce(Recipe) -> Result<Recipe, Error>,
    ) -> Result<Self, Error> {
        Self::resume_with_data(out, change, Splits::open)
    }

    /// As [`resume`](Self::resume), with the data that `open` has for the recipe.
    ///
    /// # Errors
    ///
    /// Those of [`resume`](Self::resume) and of `open`.
    pub fn resume_with_data(
        out: &Path,
        change: impl FnOnce(Recipe) -> Result<Recipe, Error>,
        open: impl FnOnce(&Recipe) -> Result<Splits, Error>,
    ) -> Result<Self, Error> {
        let (mut folder, iteration, mark) = Folder::open(out)?;
        let weights = folder.weights(iteration);
        let began = recipe_at(&weights, iteration)?;
        folder.note_config(&began);
        let recipe = change(began.clone())?;
        let memory = check_memory(&recipe)?;
        let data = open(&recipe)?;
        let classes = data.classes(recipe.model.num_classes);
        if let Some(trained) = known_classes(&weights)? {
            check_classes(
                &recipe.data.source.to_string(),
                &classes,
                &weights,
                &trained,
            )?;
        }
        folder.notes.extend(data.notes());
        let path = folder.state(iteration);
        let RunState { position, momentum } = RunState::load(&path)?;
        let wrong = |expected: &str, found: String| Error::State {
            path: path.clone(),
            expected: expected.into(),
            found,
        };
        if position.iteration != iteration {
            let expected = format!("the state of iteration {iteration}, as the weights beside it");
            return Err(wrong(
                &expected,
                format!("iteration {}", position.iteration),
            ));
        }
        check_continues(&position, &recipe, data.train.len())?;

        let device = recipe.device.open()?;
        check_evaluation(&recipe, data.val.as_deref(), &device)?;
        let start = Start::resumed(&recipe, &weights, &device.clone().autodiff())?;
        let further = open_further(&recipe)?;
        let mut learner =
            Learner::new(start.model, start.policy, &recipe).with_further_devices(further);
        let mut scaler: GradScaler = serde_json::from_value(position.scaler.clone())
            .map_err(|error| wrong("the state of a gradient scaler", error.to_string()))?;
        let expected = position.buffers.unwrap_or_else(|| {
            // Earlier versions did not count them.
            let some = iteration > scaler.skips() && began.optimizer.momentum != 0.0;
            momentum.len().max(usize::from(some))
        });
        if momentum.len() != expected {
            let expected = format!("the momentum of {expected} parameters or more");
            return Err(wrong(&expected, format!("that of {}", momentum.len())));
        }
        if scaler.scaling() != learner.scaler().scaling() {
            // Another precision or loss scale was asked for: it starts afresh.
            scaler = GradScaler::new(learner.scaler().scaling().clone());
        }
        let left = learner.restore(iteration, scaler, momentum, &device);
        if let Some(first) = left.first() {
            return Err(wrong("momentum for this network", format!("`{first}`")));
        }

        let of = scored(&recipe, &data);
        let iterations = recipe.schedule.iterations;
        let (log, mark) =
            continue_log(&mut folder, iteration, mark, &of, iterations, position.best)?;
        let best = mark.best.filter(|best| {
            let comparable = best.of.as_ref().is_none_or(|what| *what == of);
            if !comparable {
                folder.notes.push(format!(
                    "the best mIoU so far, {:.4} at iteration {}, was that of other pictures or \
                     settings of the evaluation: the best is looked for anew",
                    best.miou, best.iteration
                ));
            }
            comparable
        });
        let mut trainer = Self {
            recipe,
            device,
            folder,
            learner,
            data,
            classes,
            log,
            loaded: None,
            memory,
            skipped_in_a_row: position.skipped_in_a_row,
            line: mark.line,
            best,
            evaluated: mark.evaluated.filter(|evaluation| evaluation.of == of),
            finished: mark.finished,
            saved: Some(iteration),
        };
        trainer.folder.write_config(&trainer.recipe)?;
        trainer.mark()?;
        trainer.folder.prune(trainer.recipe.train.keep);
        Ok(trainer)
    }
}

/// The recipe in the weights of iteration `iteration`.
fn recipe_at(weights: &Path, iteration: u64) -> Result<Recipe, Error> {
    let wrong = |expected: String, found: String| Error::State {
        path: weights.to_owned(),
        expected,
        found,
    };
    let metadata = halfseg_segmentor::read_metadata(weights)?;
    let written = metadata.get(ITERATION_KEY);
    if let Some(written) = written.filter(|written| **written != iteration.to_string()) {
        let expected = format!("weights of iteration {iteration}, as its name says");
        return Err(wrong(expected, format!("those of iteration {written}")));
    }
    read_recipe(weights)?.ok_or_else(|| {
        wrong(
            "a checkpoint that halfseg wrote in training".into(),
            format!("no `{RECIPE_KEY}` in its metadata"),
        )
    })
}

/// Refuses changes that would repeat or leave out data, or make another run of it.
fn check_continues(position: &Position, recipe: &Recipe, train_images: usize) -> Result<(), Error> {
    let check = |key: &str, began: Option<u64>, now: u64, what: &str| match began {
        Some(began) if began != now => Err(Error::Value {
            key: key.into(),
            origin: "the resumed run".into(),
            expected: format!("{began}, {what}"),
            found: now.to_string(),
        }),
        _ => Ok(()),
    };
    check(
        "seed",
        Some(position.seed),
        recipe.seed,
        "as the run began with: it decides the order of the data",
    )?;
    check(
        "train.batch",
        position.batch(),
        recipe.train.batch as u64,
        "as the run began with: its place in the data is counted in batches",
    )?;
    check(
        "data.train_split",
        position.train_images.map(|images| images as u64),
        train_images as u64,
        "as many pictures as the run began with: their number decides their order",
    )?;
    if recipe.schedule.iterations < position.iteration {
        return Err(Error::Value {
            key: "schedule.iterations".into(),
            origin: "the resumed run".into(),
            expected: format!("{} or more, since so many were run", position.iteration),
            found: recipe.schedule.iterations.to_string(),
        });
    }
    Ok(())
}

/// The log up to `iteration`, and what is known of this iteration: its mark, or what can be told of
/// a run that an earlier version wrote.
fn continue_log(
    folder: &mut Folder,
    iteration: u64,
    mark: Option<Mark>,
    of: &str,
    iterations: u64,
    best: Option<(f64, u64)>,
) -> Result<(Log, Mark), Error> {
    let path = folder.log();
    if let Some(mark) = mark {
        if let Some(log) = Log::continued(&path, mark.log_bytes)? {
            return Ok((log, mark));
        }
        folder.notes.push(format!(
            "{} is not the log that this run wrote: lines may be missing",
            path.display()
        ));
        let log = Log::filtered(&path, iteration, |line| {
            line["event"] != "end" || mark.finished
        })?;
        return Ok((log, mark));
    }
    // Evaluations came before checkpoints.
    let of_this = |line: &serde_json::Value| line["iteration"] == iteration;
    let lines = Log::read(&path, "eval").unwrap_or_default();
    let evaluated = lines.iter().any(of_this) && iteration < iterations;
    let log = Log::filtered(&path, iteration, |line| match line["event"].as_str() {
        Some("eval") => evaluated,
        event => event != Some("end"),
    })?;
    let best = best.map(|(miou, iteration)| Best {
        miou,
        score: None,
        iteration,
        of: None,
    });
    let evaluated = evaluated.then(|| Evaluation {
        iteration,
        of: of.to_owned(),
        matrix: None,
    });
    let mark = Mark {
        best,
        evaluated,
        ..Mark::default()
    };
    Ok((log, mark))
}
