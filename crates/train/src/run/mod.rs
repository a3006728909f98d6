//! A whole run: data, steps, evaluation, checkpoints and results in one folder.

pub(crate) mod folder;
pub(crate) mod log;
pub(crate) mod observer;
pub(crate) mod results;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use halfseg_amp::{GradScaler, StepOutcome};
use halfseg_data::{Loader, LoaderConfig, check_labels};
use halfseg_devices::{Bytes, resident_memory};
use halfseg_eval::{ConfusionMatrix, by_class, confusion_svg, scores_json};
use halfseg_predict::{Predictor, PredictorSettings, draw_prediction};
use halfseg_segmentor::LoadReport;
use serde_json::json;

use crate::start::{Start, check_memory, open_further};
use crate::{Error, Learner, Log, Recipe, Splits, Step, class_names, parameters, pipeline};
use folder::{
    BEST, CONFIG, LAST, LOG, RECIPE_KEY, last_checkpoint, read_recipe, state_path, write_text,
};
use log::{LogLine, number};
use observer::{Observer, Outcome, Started, Timing};
use state::{Position, RunState};

/// A run in a folder of its own.
///
/// The folder holds `config.toml`, `log.jsonl`, the last checkpoint (`iter_N.safetensors` with the
/// weights under MMSegmentation's names, `iter_N.state.safetensors` with everything else, and the
/// file `last_checkpoint` that names it), `best.safetensors`, and at the end `scores.json`,
/// `loss.svg`, `confusion.svg` and pictures.
///
/// A checkpoint counts once `last_checkpoint` names it, which is renamed into place after both
/// files are on the disk; the one before is removed after that. So a full disk or a crash at any
/// moment leaves a checkpoint to resume from, and resuming takes the same steps, bit for bit, as
/// a run that was never interrupted.
pub struct Trainer {
    recipe: Recipe,
    device: Device,
    out: PathBuf,
    learner: Learner,
    data: Splits,
    log: Log,
    loaded: Option<LoadReport>,
    memory: Bytes,
    skipped_in_a_row: u64,
    best: Option<(f64, u64)>,
    /// Iteration of the last checkpoint on the disk.
    saved: Option<u64>,
    last_matrix: Option<(u64, ConfusionMatrix)>,
}

impl Trainer {
    /// Prepares a new run in the folder `out`, on `device` (without autodiff), with the data that
    /// the recipe names.
    ///
    /// # Errors
    ///
    /// Data that is missing or wrong, weights that do not fit, a folder that already holds a run,
    /// and a step that cannot fit into memory.
    pub fn new(recipe: Recipe, device: &Device, out: &Path) -> Result<Self, Error> {
        let data = Splits::open(&recipe)?;
        Self::with_data(recipe, data, device, out)
    }

    /// As [`new`](Self::new), with data of one's own in place of the recipe's.
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
    ) -> Result<Self, Error> {
        if Self::can_resume(out) {
            return Err(Error::FolderInUse {
                path: out.to_owned(),
                found: LAST,
            });
        }
        let memory = check_memory(&recipe)?;
        fs::create_dir_all(out).map_err(|source| Error::Write {
            path: out.to_owned(),
            source,
        })?;

        let Start {
            model,
            policy,
            loaded,
        } = Start::of(&recipe, &device.clone().autodiff())?;
        let further = open_further(&recipe)?;
        let learner = Learner::new(model, policy, &recipe).with_further_devices(further);
        write_text(&out.join(CONFIG), &recipe.to_toml())?;
        let log = Log::create(&out.join(LOG))?;
        Ok(Self {
            recipe,
            device: device.clone(),
            out: out.to_owned(),
            learner,
            data,
            log,
            loaded,
            memory,
            skipped_in_a_row: 0,
            best: None,
            saved: None,
            last_matrix: None,
        })
    }

    /// The recipe that the last checkpoint of the run in the folder `out` carries, with the devices
    /// that it ran on.
    ///
    /// # Errors
    ///
    /// A folder without a checkpoint, and one that training did not write.
    pub fn recorded_recipe(out: &Path) -> Result<Recipe, Error> {
        let weights = last_checkpoint(out)?;
        read_recipe(&weights)?.ok_or_else(|| Error::State {
            path: weights,
            expected: "a checkpoint that halfseg wrote in training".into(),
            found: format!("no `{RECIPE_KEY}` in its metadata"),
        })
    }

    /// Continues the run in the folder `out` from its last checkpoint, with the recipe that the
    /// checkpoint carries after `change` has been at it.
    ///
    /// # Errors
    ///
    /// A folder without a checkpoint, damaged files, and those of [`new`](Self::new).
    pub fn resume(
        device: &Device,
        out: &Path,
        change: impl FnOnce(Recipe) -> Result<Recipe, Error>,
    ) -> Result<Self, Error> {
        let weights = last_checkpoint(out)?;
        let recipe = change(Self::recorded_recipe(out)?)?;
        let memory = check_memory(&recipe)?;
        let data = Splits::open(&recipe)?;
        let training = device.clone().autodiff();
        let start = Start::resumed(&recipe, &weights, &training)?;
        let further = open_further(&recipe)?;
        let mut learner =
            Learner::new(start.model, start.policy, &recipe).with_further_devices(further);
        let path = state_path(&weights);
        let RunState { position, momentum } = RunState::load(&path)?;
        let wrong = |expected: &str, found: String| Error::State {
            path: path.clone(),
            expected: expected.into(),
            found,
        };
        if position.seed != recipe.seed {
            let expected = format!("seed {}, as the run began with", position.seed);
            return Err(wrong(&expected, recipe.seed.to_string()));
        }
        let mut scaler: GradScaler = serde_json::from_value(position.scaler)
            .map_err(|error| wrong("the state of a gradient scaler", error.to_string()))?;
        if scaler.scaling() != learner.scaler().scaling() {
            // Another precision or loss scale was asked for: it starts afresh.
            scaler = GradScaler::new(learner.scaler().scaling().clone());
        }
        let left = learner.restore(position.iteration, scaler, momentum, device);
        if let Some(first) = left.first() {
            return Err(wrong("momentum for this network", format!("`{first}`")));
        }
        let log = Log::resume(&out.join(LOG), position.iteration)?;
        write_text(&out.join(CONFIG), &recipe.to_toml())?;
        Ok(Self {
            recipe,
            device: device.clone(),
            out: out.to_owned(),
            learner,
            data,
            log,
            loaded: None,
            memory,
            skipped_in_a_row: position.skipped_in_a_row,
            best: position.best,
            saved: Some(position.iteration),
            last_matrix: None,
        })
    }

    /// Whether `out` holds a checkpoint that [`resume`](Self::resume) can continue from.
    pub fn can_resume(out: &Path) -> bool {
        out.join(LAST).is_file()
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
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
        let bad_data = matches!(outcome, Err(Error::Data(_)));
        if bad_data && self.learner.iteration() > 0 {
            self.save(observer)?;
        }
        outcome
    }

    fn run_to_end(&mut self, observer: &mut dyn Observer) -> Result<Outcome, Error> {
        self.start(observer)?;
        let batch_size = self.recipe.train.batch;
        let loader = Loader::new(
            self.data.train.clone(),
            pipeline(&self.recipe),
            LoaderConfig {
                batch: batch_size,
                seed: self.recipe.seed,
                workers: self.recipe.data.workers.max(1),
                queue: self.recipe.data.queue.max(1),
                start_at: self.learner.iteration(),
            },
        );
        let training = self.device.clone().autodiff();
        let left = self
            .learner
            .iterations()
            .saturating_sub(self.learner.iteration());
        let mut line = LogLine::default();
        let mut begun = Instant::now();
        for batch in loader.take(usize::try_from(left).unwrap_or(usize::MAX)) {
            let batch = batch?;
            let classes = self.recipe.model.num_classes;
            check_labels(&batch.labels, classes, || {
                format!(
                    "a label map in the batch of iteration {}",
                    batch.iteration + 1
                )
            })?;
            let (images, labels) = batch.to_tensors(&training);
            let step = self.learner.step(images, labels);
            let timing = Timing {
                waited: batch.waited,
                total: begun.elapsed(),
                images: batch_size,
            };
            drop(batch);

            observer.stepped(&step, &timing);
            line.add(&step, &timing);
            let iteration = step.iteration;
            if iteration.is_multiple_of(self.recipe.train.log_every) {
                self.log.write(&std::mem::take(&mut line).json(&step))?;
            }
            self.check_finite(&step)?;

            let every = |period: u64| period > 0 && iteration.is_multiple_of(period);
            let last = iteration == self.learner.iterations();
            if !last && every(self.recipe.train.eval_every) && !self.evaluate(observer)? {
                return self.interrupted(observer);
            }
            if !last && every(self.recipe.train.checkpoint_every) {
                self.save(observer)?;
            }
            if observer.stop() && !last {
                return self.interrupted(observer);
            }
            // Evaluating and saving is not part of the next iteration.
            begun = Instant::now();
        }
        // The weights are safe before the last evaluation begins.
        let weights = self.save(observer)?;
        if !self.evaluate(observer)? {
            return self.interrupted(observer);
        }
        // The evaluation may have changed which iteration is the best.
        self.save_state(&weights)?;
        self.finish()
    }

    fn start(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let started = Started {
            recipe: &self.recipe,
            iteration: self.learner.iteration(),
            train_images: self.data.train.len(),
            val_images: self.data.val.as_ref().map_or(0, |val| val.len()),
            parameters: parameters(self.learner.model()),
            loaded: self.loaded.as_ref(),
            memory: self.memory,
            route: self.learner.route(),
        };
        observer.started(&started);
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
            self.skipped_in_a_row += 1;
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

    /// Scores the validation split. `false` when the observer stopped it.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool, Error> {
        let Some(val) = self.data.val.clone() else {
            return Ok(true);
        };
        let iteration = self.learner.iteration();
        let predictor = self.predictor();
        let begun = Instant::now();
        let mut finished = true;
        let matrix = predictor.evaluate(&*val, |evaluated| {
            observer.evaluating(evaluated.index + 1, val.len());
            finished = evaluated.index + 1 == val.len() || !observer.stop();
            Ok(finished)
        })?;
        drop(predictor);
        if !finished {
            return Ok(false);
        }
        let scores = matrix.scores();
        let best = self.best.is_none_or(|(best, _)| scores.mean_iou > best);
        self.log.write(&json!({
            "event": "eval",
            "iteration": iteration,
            "miou": scores.mean_iou,
            "macc": scores.mean_accuracy,
            "aacc": scores.pixel_accuracy,
            "constant_miou": scores.constant_mean_iou,
            "iou": by_class(&scores, &class_names(), |class| class.iou),
            "seconds": begun.elapsed().as_secs_f64(),
            "best": best,
        }))?;
        if best {
            self.best = Some((scores.mean_iou, iteration));
            self.save_weights(&self.out.join(BEST))?;
        }
        self.last_matrix = Some((iteration, matrix));
        observer.evaluated(iteration, &scores, best);
        Ok(true)
    }

    fn predictor(&self) -> Predictor {
        let policy = self.learner.policy().clone();
        Predictor::new(self.learner.model(), policy, self.recipe.eval.clone())
    }

    fn save_weights(&self, path: &Path) -> Result<(), Error> {
        let policy = self.learner.policy().clone();
        let settings = PredictorSettings::new(policy, self.recipe.eval.clone());
        let mut metadata = BTreeMap::from([
            (RECIPE_KEY.to_owned(), self.recipe.to_toml()),
            (PredictorSettings::KEY.to_owned(), settings.to_json()),
            (
                "halfseg.iteration".to_owned(),
                self.learner.iteration().to_string(),
            ),
        ]);
        if let Some((miou, _)) = self.best.filter(|(_, at)| *at == self.learner.iteration()) {
            metadata.insert("halfseg.miou".to_owned(), miou.to_string());
        }
        self.learner.inference().save_safetensors(path, metadata)?;
        Ok(())
    }

    /// Writes a checkpoint, unless this iteration's is there already.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<PathBuf, Error> {
        let iteration = self.learner.iteration();
        let name = format!("iter_{iteration}.safetensors");
        let weights = self.out.join(&name);
        if self.saved == Some(iteration) {
            return Ok(weights);
        }
        let previous = last_checkpoint(&self.out).ok();
        self.save_weights(&weights)?;
        self.save_state(&weights)?;
        write_text(&self.out.join(LAST), &name)?;
        if let Some(previous) = previous.filter(|previous| *previous != weights) {
            // What is left behind here costs space, nothing else.
            let _ = fs::remove_file(state_path(&previous));
            let _ = fs::remove_file(previous);
        }
        self.saved = Some(iteration);
        observer.saved(&weights);
        Ok(weights)
    }

    /// Writes everything but the weights beside them.
    fn save_state(&self, weights: &Path) -> Result<(), Error> {
        let iteration = self.learner.iteration();
        let sample = iteration * self.recipe.train.batch as u64;
        let mut position =
            Position::new(iteration, sample, self.recipe.seed, self.learner.scaler());
        position.skipped_in_a_row = self.skipped_in_a_row;
        position.best = self.best;
        let momentum = self.learner.momentum();
        RunState { position, momentum }.save(&state_path(weights))
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
        results::draw_curves(&self.out.join(LOG), &self.out.join("loss.svg"))?;
        let mut scores = None;
        if let Some((_, matrix)) = self.last_matrix.take() {
            let found = matrix.scores();
            let mut json = scores_json(&found, &class_names());
            json["iteration"] = iteration.into();
            if let Some((miou, at)) = self.best {
                json["best"] = json!({ "miou": miou, "iteration": at });
            }
            write_text(&self.out.join("scores.json"), &format!("{json:#}\n"))?;
            confusion_svg(&self.out.join("confusion.svg"), &matrix, &class_names())?;
            scores = Some(Box::new(found));
        }
        if let Some(val) = &self.data.val {
            let folder = self.out.join("pictures");
            let predictor = self.predictor();
            for index in results::spread(val.len(), self.recipe.train.pictures) {
                let sample = val.get(index)?;
                let map = predictor.predict(&sample.image)?.map;
                draw_prediction(&folder, &sample, &map)?;
            }
        }
        let (now, peak) = resident_memory().unwrap_or((Bytes(0), Bytes(0)));
        self.log.write(&json!({
            "event": "end",
            "iteration": iteration,
            "skipped_steps": self.learner.scaler().skips(),
            "rss_mib": now.0 >> 20,
            "peak_rss_mib": peak.0 >> 20,
        }))?;
        Ok(Outcome::Finished(scores))
    }
}
