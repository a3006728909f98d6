//! How a run's checkpoints come about.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use halfseg_predict::PredictorSettings;
use halfseg_segmentor::Segmentor;

use super::folder::{DEFINITION_KEY, ITERATION_KEY, MIOU_KEY, RECIPE_KEY};
use super::manifest::Mark;
use super::observer::Observer;
use super::state::{Position, RunState};
use super::together::{check_same_weights, first};
use super::{Record, Trainer};
use crate::Error;
use crate::finite::unfit_weight;
use crate::optimizer::unfit_buffer;

impl Trainer {
    /// Writes `network`, this run's or that of its averages; `evaluated` says whether scores are those of it.
    pub(super) fn save_weights(
        &self,
        network: &Segmentor,
        evaluated: bool,
        path: &Path,
    ) -> Result<(), Error> {
        let policy = self.learner.policy().clone();
        let settings = PredictorSettings::new(policy, self.recipe.eval.clone())
            .with_pictures(self.data.train.format());
        // Nothing is known of those that are numbered.
        let known = self.data.train.classes().len() == self.classes.len();
        let settings = match known {
            true => settings.with_classes(self.classes.clone()),
            false => settings,
        };
        let mut metadata = BTreeMap::from([
            (RECIPE_KEY.to_owned(), self.recipe.to_toml()),
            (PredictorSettings::KEY.to_owned(), settings.to_json()),
            (
                ITERATION_KEY.to_owned(),
                self.learner.iteration().to_string(),
            ),
        ]);
        if let Some(text) = self.data.train.definition_text() {
            metadata.insert(DEFINITION_KEY.to_owned(), text.to_owned());
        }
        let iteration = self.learner.iteration();
        if let Some(best) = self
            .best
            .as_ref()
            .filter(|best| evaluated && best.iteration == iteration)
        {
            metadata.insert(MIOU_KEY.to_owned(), best.miou.to_string());
        }
        network.save_safetensors(path, metadata)?;
        Ok(())
    }

    /// The network that is evaluated: that of the averages, if the run has any.
    pub(super) fn evaluated_network(&self) -> Segmentor {
        let averaged = self.learner.averaged();
        averaged.unwrap_or_else(|| self.learner.inference())
    }

    /// Writes a checkpoint, unless this iteration's is there already: the first process does, for all. Its path
    /// is empty in the others.
    pub(super) fn save(&mut self, observer: &mut dyn Observer) -> Result<PathBuf, Error> {
        let iteration = self.learner.iteration();
        let path = |record: &Record| record.folder.weights(iteration);
        let weights = self.record.as_ref().map(path).unwrap_or_default();
        if self.saved == Some(iteration) {
            return Ok(weights);
        }
        let what = format!("weights after iteration {iteration}");
        check_same_weights(self.learner.ranks(), self.learner.model(), &what)?;
        // Before anything takes the place of a checkpoint that can be gone on from.
        let momentum = first(self.learner.ranks(), || self.finite_momentum())?;
        self.mark()?;
        if let (Some(record), Some(momentum)) = (&self.record, momentum) {
            let averaged = self.learner.averaged();
            self.save_weights(&self.learner.inference(), averaged.is_none(), &weights)?;
            self.save_state(&record.folder.state(iteration), momentum)?;
            if let Some(averaged) = averaged {
                self.save_weights(&averaged, true, &record.folder.averages(iteration))?;
            }
        }
        if let Some(Record { folder, .. }) = &mut self.record {
            folder.complete(iteration)?;
            folder.prune(self.recipe.train.keep);
            observer.saved(&weights);
        }
        self.saved = Some(iteration);
        Ok(weights)
    }

    /// Notes in the folder what is known at this iteration besides weights and optimizer.
    pub(super) fn mark(&mut self) -> Result<(), Error> {
        let Some(record) = &mut self.record else {
            return Ok(());
        };
        let mark = Mark {
            log_bytes: record.log.sync()?,
            line: self.line.clone(),
            best: self.best.clone(),
            evaluated: self.evaluated.clone(),
            finished: self.finished,
            averaged: self.learner.has_averages(),
        };
        record.folder.mark(self.learner.iteration(), mark)
    }

    /// The optimizer's buffers, if they and the weights are numbers to go on from.
    fn finite_momentum(&self) -> Result<BTreeMap<String, TensorData>, Error> {
        let momentum = self.learner.momentum();
        let found = unfit_weight(self.learner.model()).or_else(|| unfit_buffer(&momentum));
        match found {
            None => Ok(momentum),
            Some(found) => Err(Error::Diverged {
                iteration: self.learner.iteration(),
                loss: self.loss,
                found: format!("the last step left {found}"),
            }),
        }
    }

    /// Writes the training state that belongs beside the weights.
    fn save_state(&self, path: &Path, momentum: BTreeMap<String, TensorData>) -> Result<(), Error> {
        let (iteration, batch) = (self.learner.iteration(), self.recipe.train.batch);
        let mut position = Position::new(iteration, self.recipe.seed, self.learner.scaler());
        position.sample = iteration * batch as u64;
        position.skipped_in_a_row = self.skipped_in_a_row;
        position.best = self.best.as_ref().map(|best| (best.miou, best.iteration));
        position.batch = Some(batch);
        position.train_images = Some(self.data.train.len());
        position.buffers = Some(momentum.len());
        RunState { position, momentum }.save(path)
    }
}
