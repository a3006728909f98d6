//! Scoring the validation split during a run.

use std::time::Instant;

use halfseg_data::{Dataset, IGNORE, check_labels};
use halfseg_devices::Ranks;
use halfseg_eval::{BoundaryCounts, ConfusionMatrix, by_class};
use halfseg_predict::{PredictError, Predictor};
use halfseg_segmentor::Segmentor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Trainer;
use super::about::scored;
use super::details::{Details, RunEvaluation};
use super::manifest::{Best, Evaluation};
use super::observer::Observer;
use super::together::together;
use crate::{Error, Metric};

impl Trainer {
    /// Whether the validation split is to be scored at this iteration and was not.
    pub(super) fn evaluation_is_due(&self) -> bool {
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

    /// Scores the validation split, of which each process takes every so many pictures. `false` when the
    /// observer stopped it. Pixels with scores that are not finite count as missed: an early network may
    /// overflow where a later one does not.
    pub(super) fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool, Error> {
        let Some(val) = self.data.val.clone() else {
            return Ok(true);
        };
        let ranks = self.learner.ranks().clone();
        let iteration = self.learner.iteration();
        let begun = Instant::now();
        let network = self.evaluated_network();
        let mut scorers = vec![self.scorer(&network)];
        if self.learner.has_averages() {
            scorers.push(self.scorer(&self.learner.inference()));
        }
        let mut not_finite = 0;
        let mut details = Details::default();
        for first in (0..val.len()).step_by(ranks.size()) {
            let index = first + ranks.rank();
            let own = match index < val.len() {
                true => score(&mut scorers, &*val, index, &mut details),
                false => Ok(0),
            };
            let own = together(&ranks, own)?;
            for (index, pixels) in (first..).zip(all_counts(&ranks, own)) {
                if pixels > 0 {
                    not_finite += pixels;
                    observer.not_finite(&val.source(index), pixels);
                }
            }
            let done = val.len().min(first + ranks.size());
            observer.evaluating(done, val.len());
            if done < val.len() && ranks.any(observer.stop()) {
                return Ok(false);
            }
        }
        let details = merged(&ranks, details, Details::merge);
        let mut evaluations = scorers.into_iter().map(|scorer| Evaluation {
            iteration,
            of: scored(&self.recipe, &self.data),
            matrix: Some(merged(&ranks, scorer.matrix, ConfusionMatrix::merge)),
            boundary: scorer
                .boundary
                .map(|counts| merged(&ranks, counts, BoundaryCounts::merge)),
        });
        let evaluation = evaluations.next().expect("there is a network");
        let plain = evaluations.next().and_then(|plain| plain.scores());
        let scores = evaluation.scores().expect("a matrix was counted");
        let so_far = self.best.as_ref();
        let metric = self.recipe.train.best_by;
        let score = metric.of(&scores);
        let best = so_far.is_none_or(|best| score > best.score());
        let names = &self.classes.names();
        if best {
            self.best = Some(Best {
                miou: scores.mean_iou,
                score: (metric != Metric::Miou).then_some(score),
                iteration,
                of: Some(evaluation.of.clone()),
            });
            if let Some(record) = &self.record {
                self.save_weights(&network, true, &record.folder.best())?;
            }
        }
        if let Some(record) = &self.record {
            RunEvaluation::new(&evaluation, &self.classes, details)
                .write(&record.folder.evaluation())?;
        }
        let mut line = json!({
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
        });
        if let Some(plain) = &plain {
            line["plain"] = json!({
                "miou": plain.mean_iou,
                "macc": plain.mean_accuracy,
                "aacc": plain.pixel_accuracy,
            });
        }
        self.log(&line)?;
        observer.logged(&line);
        self.evaluated = Some(evaluation);
        if self.saved == Some(iteration) {
            self.mark()?;
        }
        observer.evaluated(iteration, &scores, best);
        if let Some(plain) = &plain {
            observer.evaluated_plain(iteration, plain);
        }
        Ok(true)
    }

    pub(super) fn predictor(&self, network: &Segmentor) -> Predictor {
        let policy = self.learner.policy().clone();
        let predictor = Predictor::new(network, policy, self.recipe.eval.clone());
        predictor.with_pictures(self.data.train.format())
    }

    fn scorer(&self, network: &Segmentor) -> Scorer {
        let classes = self.recipe.model.num_classes;
        let outlines = self.recipe.train.best_by == Metric::MboundaryIou;
        Scorer {
            predictor: self.predictor(network),
            matrix: ConfusionMatrix::new(classes),
            boundary: outlines.then(|| BoundaryCounts::new(classes)),
        }
    }
}

/// A network and what it was found to predict.
struct Scorer {
    predictor: Predictor,
    matrix: ConfusionMatrix,
    /// Where outlines are scored, too.
    boundary: Option<BoundaryCounts>,
}

/// Adds a picture to the matrices, and what is known of it alone to `details`; of how many of its pixels the first
/// network's scores are not finite.
fn score(
    scorers: &mut [Scorer],
    val: &dyn Dataset,
    index: usize,
    details: &mut Details,
) -> Result<usize, Error> {
    let sample = val.get(index)?;
    let failed = |error: PredictError| error.of(&val.source(index));
    let mut not_finite = None;
    for scorer in scorers {
        // Of the network whose scores are the run's.
        let (prediction, confidences) = match not_finite {
            None => {
                let found = scorer.predictor.predict_confident(&sample.image);
                let (prediction, confidences) = found.map_err(failed)?;
                (prediction, Some(confidences))
            }
            Some(_) => {
                let found = scorer.predictor.predict(&sample.image);
                (found.map_err(failed)?, None)
            }
        };
        if let Some(label) = &sample.label {
            let name = || format!("the label map of {}", val.source(index));
            let Scorer {
                matrix, boundary, ..
            } = &mut *scorer;
            check_labels(&label.data, matrix.classes(), name)?;
            let mut one = ConfusionMatrix::new(matrix.classes());
            one.update(&prediction.map.data, &label.data, IGNORE)?;
            matrix.merge(&one);
            if let Some(confidences) = &confidences {
                details.add(index, &sample.name, &one.scores());
                let calibration = &mut details.calibration;
                calibration.update(confidences, &prediction.map, label);
            }
            if let Some(boundary) = boundary {
                boundary.update(&prediction.map, label)?;
            }
        }
        not_finite.get_or_insert(prediction.not_finite);
    }
    Ok(not_finite.unwrap_or(0))
}

fn all_counts(ranks: &Ranks, own: usize) -> Vec<usize> {
    let all = ranks.gather(&(own as u64).to_le_bytes());
    let count = |bytes: Vec<u8>| {
        let bytes = bytes.try_into().expect("each process gives eight bytes");
        u64::from_le_bytes(bytes) as usize
    };
    all.into_iter().map(count).collect()
}

/// The counts of all processes, which `add` adds up.
fn merged<T: Serialize + DeserializeOwned>(ranks: &Ranks, own: T, add: fn(&mut T, &T)) -> T {
    if ranks.size() == 1 {
        return own;
    }
    let json = serde_json::to_vec(&own).expect("counts are JSON");
    let parts = ranks.gather(&json).into_iter();
    let parts = parts.map(|one| serde_json::from_slice(&one).expect("another process wrote it"));
    let sum = parts.reduce(|mut sum, part| {
        add(&mut sum, &part);
        sum
    });
    sum.expect("there is a process")
}
