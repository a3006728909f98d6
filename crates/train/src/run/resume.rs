//! How a run goes on from its last checkpoint.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use halfseg_amp::GradScaler;
use halfseg_devices::Ranks;
use halfseg_predict::known_classes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Trainer;
use super::about::scored;
use super::folder::{Folder, ITERATION_KEY, RECIPE_KEY, read_recipe};
use super::manifest::{Best, Evaluation, Mark};
use super::state::{Position, RunState};
use super::together::{check_same, first, together};
use super::{Record, notes};
use crate::start::{Prepared, Start, open_device};
use crate::{Error, Log, Recipe, Splits, check_classes};

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
        let ranks = Ranks::current();
        let mut opened = first(&ranks, || Opened::read(out))?;
        let at = opened
            .as_ref()
            .map(|opened| (opened.iteration, opened.began.to_toml()));
        let (iteration, began): (u64, String) = from_first(&ranks, at);
        let state = opened
            .as_mut()
            .map(|opened| std::mem::take(&mut opened.state));
        let state = ranks.broadcast(state.unwrap_or_default());

        let prepare = || {
            let began = Recipe::parse(&began, "the checkpoint")?;
            let recipe = change(began.clone())?;
            let data = open(&recipe)?;
            let classes = data.classes(recipe.model.num_classes);
            if let Some(opened) = &opened {
                let weights = opened.folder.weights(iteration);
                if let Some(trained) = known_classes(&weights)? {
                    let source = recipe.data.source.to_string();
                    check_classes(&source, &classes, &weights, &trained)?;
                }
            }
            let path = opened
                .as_ref()
                .map_or_else(|| out.to_owned(), |opened| opened.folder.state(iteration));
            let RunState { position, momentum } = RunState::parse(&path, &state)?;
            let wrong = |expected: &str, found: String| Error::State {
                path: path.clone(),
                expected: expected.into(),
                found,
            };
            if position.iteration != iteration {
                let expected =
                    format!("the state of iteration {iteration}, as the weights beside it");
                return Err(wrong(
                    &expected,
                    format!("iteration {}", position.iteration),
                ));
            }
            check_continues(&position, &recipe, data.train.len())?;
            let scaler: GradScaler = serde_json::from_value(position.scaler.clone())
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
            let device = open_device(&recipe, &ranks)?;
            let start = |training: &Device| match &opened {
                Some(opened) => {
                    let weights = opened.folder.weights(iteration);
                    let averages = opened.averages(&recipe);
                    Start::resumed(&recipe, &weights, averages.as_deref(), training)
                }
                // With the weights of the first process in place of these.
                None => Start::of(&recipe, training, &ranks),
            };
            let prepared = Prepared::of(&recipe, &data, &device, &ranks, start)?;
            Ok((
                recipe, data, path, position, momentum, scaler, device, prepared,
            ))
        };
        let (recipe, data, path, position, momentum, mut scaler, device, prepared) =
            together(&ranks, prepare())?;
        check_same(&ranks, &recipe, &data.all())?;

        let memory = prepared.memory;
        let mut learner = prepared.learner(&recipe, ranks.clone());
        if scaler.scaling() != learner.scaler().scaling() {
            // Another precision or loss scale was asked for: it starts afresh.
            scaler = GradScaler::new(learner.scaler().scaling().clone());
        }
        let left = learner.restore(iteration, scaler, momentum, &device);
        let fits = match left.first() {
            Some(first) => Err(Error::State {
                path,
                expected: "momentum for this network".into(),
                found: format!("`{first}`"),
            }),
            None => Ok(()),
        };
        together(&ranks, fits)?;

        let of = scored(&recipe, &data);
        let iterations = recipe.schedule.iterations;
        let best = position.best;
        let opened = together(
            &ranks,
            opened
                .map(|opened| opened.continued(&of, iterations, best))
                .transpose(),
        )?;
        ranks.begin();
        let (record, mark) = opened.unzip();
        let mark: Mark = from_first(&ranks, mark);
        let mut notes = notes(&recipe, &data, &ranks, record.as_ref());
        let moved = iteration > learner.scaler().skips();
        if recipe.train.ema > 0.0 && moved && !learner.has_averages() {
            notes.push(
                "train.ema: no averages were kept so far, they begin with the next step".to_owned(),
            );
        }
        let classes = data.classes(recipe.model.num_classes);
        let best = mark.best.filter(|best| {
            let comparable = best.of.as_ref().is_none_or(|what| *what == of);
            if !comparable {
                notes.push(format!(
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
            record,
            notes,
            learner,
            data,
            classes,
            loaded: None,
            memory,
            skipped_in_a_row: position.skipped_in_a_row,
            loss: f64::NAN,
            line: mark.line,
            best,
            evaluated: mark.evaluated.filter(|evaluation| evaluation.of == of),
            finished: mark.finished,
            saved: Some(iteration),
        };
        if let Some(Record { folder, .. }) = &trainer.record {
            folder.write_config(&trainer.recipe)?;
        }
        trainer.mark()?;
        if let Some(Record { folder, .. }) = &mut trainer.record {
            folder.prune(trainer.recipe.train.keep);
        }
        Ok(trainer)
    }
}

/// What the first process finds in the folder of a run.
struct Opened {
    folder: Folder,
    iteration: u64,
    mark: Option<Mark>,
    /// The recipe that the checkpoint carries.
    began: Recipe,
    /// The bytes of the training state.
    state: Vec<u8>,
}

impl Opened {
    fn read(out: &Path) -> Result<Self, Error> {
        let (mut folder, iteration, mark) = Folder::open(out)?;
        let began = recipe_at(&folder.weights(iteration), iteration)?;
        folder.note_config(&began);
        let state = RunState::read(&folder.state(iteration))?;
        Ok(Self {
            folder,
            iteration,
            mark,
            began,
            state,
        })
    }

    /// The file of the averages that a run with `recipe` goes on with.
    fn averages(&self, recipe: &Recipe) -> Option<PathBuf> {
        let mark = self.mark.as_ref();
        let averaged = recipe.train.ema > 0.0 && mark.is_some_and(|mark| mark.averaged);
        averaged.then(|| self.folder.averages(self.iteration))
    }

    /// The record of the run, from where its last checkpoint left it, and what is known at that.
    fn continued(
        self,
        of: &str,
        iterations: u64,
        best: Option<(f64, u64)>,
    ) -> Result<(Record, Mark), Error> {
        let (mut folder, at) = (self.folder, self.iteration);
        let (log, mark) = continue_log(&mut folder, at, self.mark, of, iterations, best)?;
        Ok((Record { folder, log }, mark))
    }
}

/// What the first process has, in all of them.
fn from_first<T: Serialize + DeserializeOwned>(ranks: &Ranks, own: Option<T>) -> T {
    let json = own
        .as_ref()
        .map(|own| serde_json::to_vec(own).expect("plain values are JSON"));
    let json = ranks.broadcast(json.unwrap_or_default());
    own.unwrap_or_else(|| serde_json::from_slice(&json).expect("the first process wrote it"))
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
        boundary: None,
    });
    let mark = Mark {
        best,
        evaluated,
        ..Mark::default()
    };
    Ok((log, mark))
}
