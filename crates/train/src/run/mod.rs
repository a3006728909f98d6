//! A whole run: data, steps, evaluation, checkpoints and results in one folder.

mod about;
pub(crate) mod details;
mod evaluate;
pub(crate) mod folder;
pub(crate) mod log;
mod manifest;
pub(crate) mod observer;
pub(crate) mod record;
pub(crate) mod results;
mod resume;
mod save;
pub(crate) mod state;
pub(crate) mod together;

use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use halfseg_amp::StepOutcome;
use halfseg_data::{Classes, Loader, LoaderConfig};
use halfseg_devices::{Bytes, ExchangePrecision, Ranks, resident_memory};
use halfseg_eval::{confusion_svg, scores_json};
use halfseg_predict::draw_prediction;
use halfseg_segmentor::{LoadReport, count_parameters};
use serde_json::{Value, json};

use crate::start::{Prepared, Start};
use crate::{Error, Learner, Log, Recipe, Splits, Step, pipeline_for};
use about::{beginning, out_of_patience, workers_note};
use details::RunEvaluation;
use folder::{Existing, Folder, can_resume, check_free, holds_run};
use log::{LogLine, number};
use manifest::{Best, Evaluation};
use observer::{Observer, Outcome, Started, Timing};
use together::{check_same, first, together};

/// A run in a folder of its own.
///
/// The folder holds `config.toml`, `log.jsonl`, the last checkpoints (`iter_N.safetensors` with the
/// weights under MMSegmentation's names, `iter_N.state.safetensors` with everything else, and the
/// file `last_checkpoint` that names the last), `best.safetensors`, `run.json`, which says what of
/// this belongs to the run, and at the end `scores.json`, `loss.svg`, `confusion.svg` and pictures.
///
/// A checkpoint counts once `last_checkpoint` names it, which is renamed into place after both
/// files are on the disk; older ones are removed after that. So a full disk or a crash at any
/// moment leaves a checkpoint to resume from, and resuming takes the same steps, bit for bit, as
/// a run that was never interrupted. While a trainer exists, its folder is locked.
///
/// The processes that [`Ranks::start`] has joined train one network together: each makes a trainer with the
/// same arguments and runs it. The first of them alone opens and writes the folder. What one of them returns as
/// an error, all do; a process that ends otherwise has to end the others ([`Ranks::abort`]).
pub struct Trainer {
    recipe: Recipe,
    device: Device,
    /// Of the first process.
    record: Option<Record>,
    /// What whoever runs it should know.
    notes: Vec<String>,
    learner: Learner,
    data: Splits,
    /// Of the network.
    classes: Classes,
    loaded: Option<LoadReport>,
    memory: Bytes,
    skipped_in_a_row: u64,
    /// That of the last iteration; no number before the first.
    loss: f64,
    /// Sums of the iterations since the last line of the log.
    line: LogLine,
    best: Option<Best>,
    evaluated: Option<Evaluation>,
    /// Whether results and log are those of the finished run.
    finished: bool,
    /// Iteration of the last checkpoint on the disk.
    saved: Option<u64>,
}

/// What a run leaves on the disk.
struct Record {
    folder: Folder,
    log: Log,
}

impl Trainer {
    /// Prepares a new run in the folder `out`, on `device` (without autodiff), with the data that
    /// the recipe names.
    ///
    /// # Errors
    ///
    /// Data that is missing or wrong, weights that do not fit, a folder that holds a run already or
    /// is in use by another process, and a step that cannot fit into memory.
    pub fn new(recipe: Recipe, device: &Device, out: &Path) -> Result<Self, Error> {
        let ranks = Ranks::current();
        first(&ranks, || check_free(out, &recipe))?;
        let data = together(&ranks, Splits::open(&recipe))?;
        Self::with_data(recipe, data, device, out, Existing::Refused)
    }

    /// As [`new`](Self::new), with data of one's own in place of the recipe's, and in place of
    /// another run in the folder if `existing` says so.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    ///
    /// # Panics
    ///
    /// If there is no picture to train on.
    pub fn with_data(
        recipe: Recipe,
        data: Splits,
        device: &Device,
        out: &Path,
        existing: Existing,
    ) -> Result<Self, Error> {
        let ranks = Ranks::current();
        if existing == Existing::Refused {
            first(&ranks, || check_free(out, &recipe))?;
        }
        let start = |training: &Device| Start::of(&recipe, training, &ranks);
        let prepared = Prepared::of(&recipe, &data, device, &ranks, start);
        let prepared = together(&ranks, prepared)?;
        check_same(&ranks, &recipe, &data.all())?;
        let classes = data.classes(recipe.model.num_classes);
        let record = first(&ranks, || {
            let notes = beginning(&recipe, &classes, ranks.size())?;
            let mut folder = Folder::claim(out, &recipe, existing)?;
            folder.notes.extend(notes);
            let log = Log::create(&folder.log())?;
            Ok(Record { folder, log })
        })?;
        ranks.begin();
        let notes = notes(&recipe, &data, &ranks, record.as_ref());
        let (memory, loaded) = (prepared.memory, prepared.loaded.clone());
        let learner = prepared.learner(&recipe, ranks);
        Ok(Self {
            device: device.clone(),
            record,
            notes,
            learner,
            classes,
            recipe,
            data,
            loaded,
            memory,
            skipped_in_a_row: 0,
            loss: f64::NAN,
            line: LogLine::default(),
            best: None,
            evaluated: None,
            finished: false,
            saved: None,
        })
    }

    /// Whether `out` holds a checkpoint that [`resume`](Self::resume) can continue from.
    pub fn can_resume(out: &Path) -> bool {
        can_resume(out)
    }

    /// Whether `out` holds what another run left, so that a new one is refused there.
    pub fn holds_run(out: &Path) -> bool {
        holds_run(out)
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What the network's classes are called and shown in.
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// The network in training.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Runs to the end, or until the observer stops it.
    ///
    /// # Errors
    ///
    /// Unreadable data, a full disk, or gradients that stay infinite. The last checkpoint stays
    /// usable; unreadable data leaves one of the iteration that it was met at.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Outcome, Error> {
        let outcome = self.run_to_end(observer);
        // Of training and of evaluation, here or in another process.
        let bad_data = matches!(
            outcome,
            Err(Error::Data(_) | Error::Predict(_) | Error::Rank(_))
        );
        if bad_data && self.learner.iteration() > 0 {
            self.save(observer)?;
        }
        outcome
    }

    fn run_to_end(&mut self, observer: &mut dyn Observer) -> Result<Outcome, Error> {
        let left = self
            .learner
            .iterations()
            .saturating_sub(self.learner.iteration());
        self.finished &= left == 0 && !self.evaluation_is_due();
        self.start(observer)?;
        // One that was interrupted.
        if self.evaluation_is_due() && !self.evaluate(observer)? {
            return self.interrupted(observer);
        }
        let batch_size = self.recipe.train.batch;
        let ranks = self.learner.ranks().clone();
        let loader = Loader::of_places(
            self.data.train.clone(),
            pipeline_for(&self.recipe, &*self.data.train),
            LoaderConfig {
                batch: batch_size,
                seed: self.recipe.seed,
                workers: self.recipe.data.workers,
                queue: self.recipe.data.queue.max(1),
                start_at: self.learner.iteration(),
            },
            self.learner.places(batch_size),
        );
        let training = self.device.clone().autodiff();
        let mut begun = Instant::now();
        for batch in loader.take(usize::try_from(left).unwrap_or(usize::MAX)) {
            let classes = self.recipe.model.num_classes;
            let batch = batch.and_then(|batch| batch.check_labels(classes).map(|()| batch));
            let batch = together(&ranks, batch.map_err(Error::from))?;
            let (images, labels) = batch.to_tensors(&training);
            let step = self.learner.step(images, labels);
            let timing = Timing {
                waited: batch.waited,
                total: begun.elapsed(),
                images: batch_size,
            };
            drop(batch);

            observer.stepped(&step, &timing);
            self.line.add(&step, &timing);
            let iteration = step.iteration;
            if iteration.is_multiple_of(self.recipe.train.log_every) {
                let line = std::mem::take(&mut self.line).json(&step);
                self.log(&line)?;
                observer.logged(&line);
            }
            self.check_finite(&step)?;

            let every = |period: u64| period > 0 && iteration.is_multiple_of(period);
            let last = iteration == self.learner.iterations();
            let checkpoint_every = self.recipe.train.checkpoint_every;
            let evaluates = !last && self.evaluation_is_due();
            // The weights are safe before an evaluation begins.
            if !last && (every(checkpoint_every) || evaluates && checkpoint_every > 0) {
                self.save(observer)?;
            }
            if evaluates && !self.evaluate(observer)? {
                return self.interrupted(observer);
            }
            if !last && ranks.any(observer.stop()) {
                return self.interrupted(observer);
            }
            if evaluates && out_of_patience(&self.recipe, self.best.as_ref(), iteration) {
                break;
            }
            // Evaluating and saving is not part of the next iteration.
            begun = Instant::now();
        }
        self.save(observer)?;
        if self.evaluation_is_due() && !self.evaluate(observer)? {
            return self.interrupted(observer);
        }
        self.finish()
    }

    fn start(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let started = Started {
            recipe: &self.recipe,
            iteration: self.learner.iteration(),
            train_images: self.data.train.len(),
            val_images: self.data.val.as_ref().map_or(0, |val| val.len()),
            parameters: count_parameters(self.learner.model()),
            loaded: self.loaded.as_ref(),
            memory: self.memory,
            route: self.learner.route(),
            notes: &self.notes,
            ranks: self.learner.ranks().size(),
        };
        observer.started(&started);
        if self.finished {
            return Ok(());
        }
        let line = json!({
            "event": "start",
            "iteration": started.iteration,
            "version": env!("CARGO_PKG_VERSION"),
            "processes": started.ranks,
            "parameters": started.parameters,
            "train_images": started.train_images,
            "val_images": started.val_images,
            "loss_scaling": self.recipe.precision.scaling().to_string(),
            "recipe": self.recipe,
        });
        self.log(&line)
    }

    /// Writes a line of the log, if this process has it.
    fn log(&mut self, line: &Value) -> Result<(), Error> {
        let record = self.record.as_mut();
        record.map_or(Ok(()), |record| record.log.write(line))
    }

    /// Gives up when numbers have left the range for good.
    fn check_finite(&mut self, step: &Step) -> Result<(), Error> {
        self.loss = step.loss;
        let diverged = |found: String| Error::Diverged {
            iteration: step.iteration,
            loss: step.loss,
            found,
        };
        if let StepOutcome::Skipped { .. } = &step.outcome {
            self.skipped_in_a_row = self.skipped_in_a_row.saturating_add(1);
            let mut line = serde_json::to_value(&step.outcome).expect("an outcome is JSON");
            line["event"] = "skip".into();
            line["iteration"] = step.iteration.into();
            line["loss"] = number(step.loss);
            line["outcome"] = step.outcome.to_string().into();
            self.log(&line)?;
            if self.skipped_in_a_row >= self.recipe.train.max_skipped {
                return Err(diverged(format!(
                    "{} steps in a row were {}",
                    self.skipped_in_a_row, step.outcome
                )));
            }
        } else {
            self.skipped_in_a_row = 0;
            if !step.loss.is_finite() {
                return Err(diverged("the loss is not finite".into()));
            }
        }
        Ok(())
    }

    fn interrupted(&mut self, observer: &mut dyn Observer) -> Result<Outcome, Error> {
        let checkpoint = self.save(observer)?;
        Ok(Outcome::Interrupted {
            iteration: self.learner.iteration(),
            checkpoint,
        })
    }

    /// Scores, plots and pictures of the finished run.
    fn finish(&mut self) -> Result<Outcome, Error> {
        let iteration = self.learner.iteration();
        let names = &self.classes.names();
        let evaluated = self.evaluated.as_ref();
        let evaluated = evaluated.filter(|evaluation| evaluation.iteration == iteration);
        let matrix = evaluated.and_then(|evaluation| evaluation.matrix.as_ref());
        let scores = evaluated.and_then(Evaluation::scores).map(Box::new);
        let Some(Record { folder, .. }) = &self.record else {
            return Ok(Outcome::Finished(scores));
        };
        results::draw_curves(&folder.log(), &folder.curves())?;
        if let (Some(matrix), Some(scores)) = (matrix, &scores) {
            let mut json = scores_json(scores, names);
            json["iteration"] = iteration.into();
            if let Some(best) = &self.best {
                json["best"] = json!({ "miou": best.miou, "iteration": best.iteration });
            }
            folder.write_scores(&json)?;
            confusion_svg(&folder.confusion(), matrix, names)?;
        }
        if let Some(val) = &self.data.val {
            let pictures = folder.pictures();
            let predictor = self.predictor(&self.evaluated_network());
            let details = RunEvaluation::read(&folder.evaluation())
                .ok()
                .flatten()
                .filter(|details| details.iteration == iteration);
            for index in results::shown(val.len(), self.recipe.train.pictures, details.as_ref()) {
                let mut sample = val.get(index)?;
                let map = predictor.predict(&sample.image)?.map;
                let shown = predictor.pictures().shown(&sample.image).into_owned();
                sample.image = shown.into();
                draw_prediction(&pictures, &sample, &map, self.classes.colors())?;
            }
        }
        if self.finished {
            return Ok(Outcome::Finished(scores));
        }
        let (now, peak) = resident_memory().unwrap_or((Bytes(0), Bytes(0)));
        let line = json!({
            "event": "end",
            "iteration": iteration,
            "early": iteration < self.learner.iterations(),
            "skipped_steps": self.learner.scaler().skips(),
            "rss_mib": now.0 >> 20,
            "peak_rss_mib": peak.0 >> 20,
        });
        self.log(&line)?;
        self.finished = true;
        self.mark()?;
        Ok(Outcome::Finished(scores))
    }
}

/// What whoever runs `recipe` here should know.
fn notes(recipe: &Recipe, data: &Splits, ranks: &Ranks, record: Option<&Record>) -> Vec<String> {
    let mut notes = record.map_or(Vec::new(), |record| record.folder.notes.clone());
    notes.extend(data.notes());
    notes.extend(workers_note(recipe));
    let format = data.train.format();
    if recipe.data.photometric && !format.is_rgb() {
        notes.push(format!(
            "data.photometric = true has no effect on pictures of {format}: it distorts RGB of 8 bits"
        ));
    }
    let precision = recipe.train.exchange_precision;
    if ranks.size() == 1 && precision != ExchangePrecision::F32 {
        notes.push(format!(
            "train.exchange_precision = \"{precision}\" has no effect in a single process"
        ));
    }
    notes
}
