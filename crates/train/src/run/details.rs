//! What an evaluation tells beyond its scores: `evaluation.json`.

use std::path::Path;

use halfseg_data::Classes;
use halfseg_eval::{BoundaryCounts, Calibration, ConfusionMatrix, Scores};
use serde::{Deserialize, Serialize};

use super::manifest::{Evaluation, scores_of};
use crate::Error;
use crate::atomic::{read_json, write_text};

/// Raised when an old file cannot be read as a new one.
const FORMAT: u32 = 1;

/// The scores of one picture, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PictureScores {
    /// Its place in the split.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Mean IoU of the classes that occur in it or are predicted.
    pub miou: f64,
    /// Share of its pixels that are right.
    pub aacc: f64,
    /// IoU by class, of those classes.
    pub iou: Vec<Option<f64>>,
}

/// What is counted besides the matrix, by one process or by all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Details {
    pub calibration: Calibration,
    pub pictures: Vec<PictureScores>,
}

impl Details {
    /// Notes the scores of a picture, if it has labelled pixels.
    pub fn add(&mut self, index: usize, name: &str, scores: &Scores) {
        if scores.classes.iter().all(|class| class.pixels == 0) {
            return;
        }
        self.pictures.push(PictureScores {
            index,
            name: name.to_owned(),
            miou: scores.mean_iou,
            aacc: scores.pixel_accuracy,
            iou: scores.classes.iter().map(|class| class.iou).collect(),
        });
    }

    pub fn merge(&mut self, other: &Self) {
        self.calibration.merge(&other.calibration);
        self.pictures.extend_from_slice(&other.pictures);
        self.pictures.sort_by_key(|picture| picture.index);
    }
}

/// The last evaluation of a run: what was counted, not only the scores that follow from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunEvaluation {
    format: u32,
    /// Iterations that were run before it.
    pub iteration: u64,
    /// What the network's classes are called and shown in.
    pub classes: Option<Classes>,
    /// Pixels by true and predicted class.
    pub matrix: ConfusionMatrix,
    /// Where outlines were scored, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary: Option<BoundaryCounts>,
    /// How probable the predicted classes were; `None` where earlier versions did not count it.
    pub calibration: Option<Calibration>,
    /// The pictures that have labels, in the order of the split; empty where earlier versions did not keep them.
    pub pictures: Vec<PictureScores>,
}

impl RunEvaluation {
    pub(crate) fn new(evaluation: &Evaluation, classes: &Classes, details: Details) -> Self {
        let matrix = evaluation.matrix.clone();
        Self {
            format: FORMAT,
            iteration: evaluation.iteration,
            classes: Some(classes.clone()),
            matrix: matrix.expect("an evaluation that was just made has its matrix"),
            boundary: evaluation.boundary.clone(),
            calibration: Some(details.calibration),
            pictures: details.pictures,
        }
    }

    /// What a manifest keeps of an evaluation, also that of an earlier version.
    pub(crate) fn of_manifest(evaluation: &Evaluation) -> Option<Self> {
        Some(Self {
            format: FORMAT,
            iteration: evaluation.iteration,
            classes: None,
            matrix: evaluation.matrix.clone()?,
            boundary: evaluation.boundary.clone(),
            calibration: None,
            pictures: Vec::new(),
        })
    }

    /// That in the file at `path`; `None` if there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Error> {
        let expected = "an evaluation that halfseg writes";
        let wrong = |found: String| Error::state(path, expected, found);
        let Some(read) = read_json::<Self>(path, expected)? else {
            return Ok(None);
        };
        let classes = read.matrix.classes();
        if read.format != FORMAT {
            return Err(wrong(format!("format {} (this is {FORMAT})", read.format)));
        }
        let named = read.classes.as_ref().map_or(classes, Classes::len);
        let of_pictures = |picture: &PictureScores| picture.iou.len() == classes;
        if named != classes || !read.pictures.iter().all(of_pictures) {
            return Err(wrong(format!(
                "scores of other classes than the {classes} of the matrix"
            )));
        }
        Ok(Some(read))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let json = serde_json::to_string(self).expect("names and numbers are JSON");
        write_text(path, &(json + "\n"))
    }

    /// The scores that follow from the counts.
    pub fn scores(&self) -> Scores {
        scores_of(&self.matrix, self.boundary.as_ref())
    }

    /// The pictures from the lowest mIoU on.
    pub fn worst(&self) -> Vec<&PictureScores> {
        let mut pictures: Vec<_> = self.pictures.iter().collect();
        pictures.sort_by(|a, b| a.miou.total_cmp(&b.miou));
        pictures
    }

    /// The pictures from the highest mIoU on.
    pub fn best(&self) -> Vec<&PictureScores> {
        let mut pictures: Vec<_> = self.pictures.iter().collect();
        pictures.sort_by(|a, b| b.miou.total_cmp(&a.miou));
        pictures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation() -> RunEvaluation {
        let mut details = Details::default();
        let mut all = ConfusionMatrix::new(2);
        let maps: [(&str, [u8; 2], [u8; 2]); 3] = [
            ("b", [0, 0], [0, 0]),
            ("a", [1, 0], [0, 1]),
            ("unlabelled", [1, 1], [255, 255]),
        ];
        for (index, (name, predicted, label)) in maps.into_iter().enumerate() {
            let mut one = ConfusionMatrix::new(2);
            one.update(&predicted, &label, 255).unwrap();
            details.add(index, name, &one.scores());
            all.merge(&one);
        }
        details.calibration.add(0.75, true);
        let counted = Evaluation {
            iteration: 3,
            of: String::new(),
            matrix: Some(all),
            boundary: None,
        };
        let classes = Classes::new([("a<b".to_owned(), None), ("c".to_owned(), Some([1, 2, 3]))]);
        RunEvaluation::new(&counted, &classes, details)
    }

    #[test]
    fn what_was_counted_comes_back_and_tells_the_worst_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluation.json");
        assert!(RunEvaluation::read(&path).unwrap().is_none());
        let written = evaluation();
        written.write(&path).unwrap();
        let read = RunEvaluation::read(&path).unwrap().unwrap();
        assert_eq!(read, written);
        let names = |pictures: Vec<&PictureScores>| {
            let names = pictures.into_iter().map(|picture| picture.name.clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(read.worst()), ["a", "b"]);
        assert_eq!(names(read.best()), ["b", "a"]);
        assert_eq!(read.scores().pixel_accuracy, 0.5);
    }

    #[test]
    fn counts_that_do_not_fit_each_other_are_refused_by_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluation.json");
        let text = serde_json::to_string(&evaluation()).unwrap();
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("[1,2,3]", "[1,2]"),
            ("\"iou\":[1.0,null]", "\"iou\":[1.0]"),
            ("\"classes\":2", "\"classes\":3"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{from}");
            std::fs::write(&path, changed).unwrap();
            let error = RunEvaluation::read(&path).unwrap_err().to_string();
            assert!(error.contains("evaluation.json"), "{error}");
        }
    }
}
