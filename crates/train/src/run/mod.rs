//! A whole run: data, steps, evaluation, checkpoints and results in one folder.

mod about;
pub(crate) mod folder;
pub(crate) mod log;
mod manifest;
pub(crate) mod observer;
pub(crate) mod results;
mod resume;
mod save;
pub(crate) mod state;

use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use halfseg_amp::StepOutcome;
use halfseg_data::{Classes, IGNORE, Loader, LoaderConfig, check_labels};
use halfseg_devices::{Bytes, resident_memory};
use halfseg_eval::{ConfusionMatrix, by_class, confusion_svg, scores_json};
use halfseg_predict::{Predictor, draw_prediction};
use halfseg_segmentor::{LoadReport, count_parameters};
use serde_json::json;

use crate::start::{Start, check_evaluation, check_memory, open_further};
use crate::{Error, Learner, Log, Metric, Recipe, Splits, Step, pipeline};
use about::{beginning, out_of_patience, scored};
use folder::{Existing, Folder, can_resume, check_free, holds_run};
use log::{LogLine, number};
use manifest::{Best, Evaluation};
use observer::{Observer, Outcome, Started, Timing};

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
pub struct Trainer {
    recipe: Recipe,
    device: Device,
    folder: Folder,
    learner: Learner,
    data: Splits,
    /// Of the network.
    classes: Classes,
    log: Log,
    loaded: Option<LoadReport>,
    memory: Bytes,
    skipped_in_a_row: u64,
    /// Sums of the iterations since the last line of the log.
    line: LogLine,
    best: Option<Best>,
    evaluated: Option<Evaluation>,
    /// Whether results and log are those of the finished run.
    finished: bool,
    /// Iteration of the last checkpoint on the disk.
    saved: Option<u64>,
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
        check_free(out, &recipe)?;
        let data = Splits::open(&recipe)?;
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
        recipe.check("the recipe of this run")?;
        if existing == Existing::Refused {
            check_free(out, &recipe)?;
        }
        let memory = check_memory(&recipe)?;
        check_evaluation(&recipe, data.val.as_deref(), device)?;
        let Start {
            model,
            policy,
            loaded,
        } = Start::of(&recipe, &device.clone().autodiff())?;
        let classes = data.classes(recipe.model.num_classes);
        let notes = beginning(&recipe, &classes)?;
        let further = open_further(&recipe)?;
        let learner = Learner::new(model, policy, &recipe).with_further_devices(further);
        let mut folder = Folder::claim(out, &recipe, existing)?;
        folder.notes.extend(data.notes());
        folder.notes.extend(notes);
        let log = Log::create(&folder.log())?;
        Ok(Self {
            device: device.clone(),
            folder,
            learner,
            classes,
            recipe,
            data,
            log,
            loaded,
            memory,
            skipped_in_a_row: 0,
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
        // Of training and of evaluation.
        let bad_data = matches!(outcome, Err(Error::Data(_) | Error::Predict(_)));
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
        let loader = Loader::new(
            self.data.train.clone(),
            pipeline(&self.recipe),
            LoaderConfig {
                batch: batch_size,
                seed: self.recipe.seed,
                workers: self.recipe.data.workers,
                queue: self.recipe.data.queue.max(1),
                start_at: self.learner.iteration(),
            },
        );
        let training = self.device.clone().autodiff();
        let mut begun = Instant::now();
        for batch in loader.take(usize::try_from(left).unwrap_or(usize::MAX)) {
            let batch = batch?;
            let classes = self.recipe.model.num_classes;
            batch.check_labels(classes)?;
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
                self.log
                    .write(&std::mem::take(&mut self.line).json(&step))?;
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
            if observer.stop() && !last {
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
            notes: &self.folder.notes,
        };
        observer.started(&started);
        if self.finished {
            return Ok(());
        }
        self.log.write(&json!({
            "event": "start",
            "iteration": started.iteration,
            "version": env!("CARGO_PKG_VERSION"),
            "parameters": started.parameters,
            "train_images": started.train_images,
            "val_images": started.val_images,
            "loss_scaling": self.recipe.precision.scaling().to_string(),
            "recipe": self.recipe,
        }))
    }

    /// Gives up when numbers have left the range for good.
    fn check_finite(&mut self, step: &Step) -> Result<(), Error> {
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
            self.log.write(&line)?;
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

    /// Whether the validation split is to be scored at this iteration and was not.
    fn evaluation_is_due(&self) -> bool {
        let iteration = self.learner.iteration();
        let last = iteration >= self.learner.iterations();
        let every = self.recipe.train.eval_every;
        let wanted = last || every > 0 && iteration > 0 && iteration.is_multiple_of(every);
        let done = self.evaluated.as_ref().is_some_and(|evaluation| {
            // The scores at the end are asked for, too.
            evaluation.iteration == iteration && (evaluation.matrix.is_some() || !last)
        });
        self.data.val.is_some() && wanted && !done
    }

    /// Scores the validation split. `false` when the observer stopped it. Pixels with scores that are
    /// not finite count as missed: an early network may overflow where a later one does not.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool, Error> {
        let Some(val) = self.data.val.clone() else {
            return Ok(true);
        };
        let iteration = self.learner.iteration();
        let predictor = self.predictor();
        let begun = Instant::now();
        let classes = self.recipe.model.num_classes;
        let (mut matrix, mut not_finite) = (ConfusionMatrix::new(classes), 0);
        for index in 0..val.len() {
            let sample = val.get(index)?;
            let prediction = predictor.predict(&sample.image);
            let prediction = prediction.map_err(|error| error.of(&val.source(index)))?;
            if prediction.not_finite > 0 {
                not_finite += prediction.not_finite;
                observer.not_finite(&val.source(index), prediction.not_finite);
            }
            if let Some(label) = &sample.label {
                let name = || format!("the label map of {}", val.source(index));
                check_labels(&label.data, classes, name)?;
                matrix.update(&prediction.map.data, &label.data, IGNORE)?;
            }
            observer.evaluating(index + 1, val.len());
            if index + 1 < val.len() && observer.stop() {
                return Ok(false);
            }
        }
        drop(predictor);
        let scores = matrix.scores();
        let so_far = self.best.as_ref();
        let metric = self.recipe.train.best_by;
        let score = metric.of(&scores);
        let best = so_far.is_none_or(|best| score > best.score());
        let of = scored(&self.recipe, &self.data);
        let names = &self.classes.names();
        if best {
            self.best = Some(Best {
                miou: scores.mean_iou,
                score: (metric != Metric::Miou).then_some(score),
                iteration,
                of: Some(of.clone()),
            });
            self.save_weights(&self.folder.best())?;
        }
        self.log.write(&json!({
            "event": "eval",
            "iteration": iteration,
            "miou": scores.mean_iou,
            "macc": scores.mean_accuracy,
            "aacc": scores.pixel_accuracy,
            "constant_miou": scores.constant_mean_iou,
            "iou": by_class(&scores, names, |class| class.iou),
            "not_finite": not_finite,
            "seconds": begun.elapsed().as_secs_f64(),
            "best": best,
        }))?;
        self.evaluated = Some(Evaluation {
            iteration,
            of,
            matrix: Some(matrix),
        });
        if self.saved == Some(iteration) {
            self.mark()?;
        }
        observer.evaluated(iteration, &scores, best);
        Ok(true)
    }

    fn predictor(&self) -> Predictor {
        let policy = self.learner.policy().clone();
        Predictor::new(self.learner.model(), policy, self.recipe.eval.clone())
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
        results::draw_curves(&self.folder.log(), &self.folder.curves())?;
        let names = &self.classes.names();
        let mut scores = None;
        let evaluated = self.evaluated.as_ref();
        let evaluated = evaluated.filter(|evaluation| evaluation.iteration == iteration);
        if let Some(matrix) = evaluated.and_then(|evaluation| evaluation.matrix.as_ref()) {
            let found = matrix.scores();
            let mut json = scores_json(&found, names);
            json["iteration"] = iteration.into();
            if let Some(best) = &self.best {
                json["best"] = json!({ "miou": best.miou, "iteration": best.iteration });
            }
            self.folder.write_scores(&json)?;
            confusion_svg(&self.folder.confusion(), matrix, names)?;
            scores = Some(Box::new(found));
        }
        if let Some(val) = &self.data.val {
            let folder = self.folder.pictures();
            let predictor = self.predictor();
            for index in results::spread(val.len(), self.recipe.train.pictures) {
                let sample = val.get(index)?;
                let map = predictor.predict(&sample.image)?.map;
                draw_prediction(&folder, &sample, &map, self.classes.colors())?;
            }
        }
        if self.finished {
            return Ok(Outcome::Finished(scores));
        }
        let (now, peak) = resident_memory().unwrap_or((Bytes(0), Bytes(0)));
        self.log.write(&json!({
            "event": "end",
            "iteration": iteration,
            "early": iteration < self.learner.iterations(),
            "skipped_steps": self.learner.scaler().skips(),
            "rss_mib": now.0 >> 20,
            "peak_rss_mib": peak.0 >> 20,
        }))?;
        self.finished = true;
        self.mark()?;
        Ok(Outcome::Finished(scores))
    }
}
