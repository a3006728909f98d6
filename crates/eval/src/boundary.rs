//! Boundary IoU: how well outlines agree.

use halfseg_data::{IGNORE, LabelMap};
use serde::{Deserialize, Serialize};

use crate::{EvalError, Scores};

/// Counts for the boundary IoU of each class (Cheng et al. 2021, arXiv:2103.16562).
///
/// It is the IoU of what of a class lies within some pixels of an outline: of the true class within that distance of
/// the true outline, and of the predicted class within that distance of the predicted one. The distance is 2 % of a
/// picture's diagonal, rounded, and at least a pixel; it is counted along rows, columns and diagonals alike, and the
/// edge of the picture is part of every outline, as in the authors' code (`boundary_iou/utils/boundary_utils.py`,
/// where it is the size of an erosion). Pixels that are ignored do not count. Counts are summed over pictures, as those
/// of the IoU are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundaryCounts {
    /// Of each class: true, predicted, and both.
    counts: Vec<[u64; 3]>,
}

/// Share of a picture's diagonal.
const DISTANCE: f64 = 0.02;

impl BoundaryCounts {
    /// No counts of so many classes yet.
    pub fn new(classes: usize) -> Self {
        Self {
            counts: vec![[0; 3]; classes],
        }
    }

    /// Adds a pair of maps. A prediction of [`IGNORE`] is a miss of the true class.
    ///
    /// # Errors
    /// If the maps differ in size or hold a value that is no class; nothing is added then.
    pub fn update(&mut self, prediction: &LabelMap, label: &LabelMap) -> Result<(), EvalError> {
        let size = |map: &LabelMap| (map.width, map.height);
        if size(prediction) != size(label) || prediction.data.len() != label.data.len() {
            return Err(EvalError::Size {
                expected: label.data.len(),
                found: prediction.data.len(),
            });
        }
        let counted = |(_, truth): &(&u8, &u8)| **truth != IGNORE;
        let pairs = || prediction.data.iter().zip(&label.data).filter(counted);
        let classes = self.counts.len();
        let strange = |value: &u8| *value != IGNORE && usize::from(*value) >= classes;
        for (map, pick) in [("label", 1), ("prediction", 0)] {
            let values = || pairs().map(move |(p, l)| [*p, *l][pick]);
            if let Some(value) = values().find(|value| strange(value)) {
                return Err(EvalError::OutOfRange {
                    map,
                    expected: classes,
                    ignore: IGNORE,
                    value,
                    pixels: values().filter(|other| *other == value).count() as u64,
                });
            }
        }
        let outlines = [prediction, label].map(outline);
        let places = prediction.data.iter().zip(&label.data).enumerate();
        for (place, (&predicted, &truth)) in places.filter(|(_, pair)| counted(pair)) {
            let [of_prediction, of_truth] = [0, 1].map(|map| outlines[map][place]);
            if of_truth {
                self.counts[usize::from(truth)][0] += 1;
            }
            if of_prediction && predicted != IGNORE {
                self.counts[usize::from(predicted)][1] += 1;
            }
            if of_truth && of_prediction && predicted == truth {
                self.counts[usize::from(truth)][2] += 1;
            }
        }
        Ok(())
    }

    /// Adds the counts of `other`.
    ///
    /// # Panics
    /// If the numbers of classes differ.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(
            self.counts.len(),
            other.counts.len(),
            "counts of different classes"
        );
        let ours = self.counts.iter_mut().flatten();
        ours.zip(other.counts.iter().flatten())
            .for_each(|(a, b)| *a += b);
    }

    /// The boundary IoU of each class, from 0 to 1; `None` for one without an outline anywhere.
    pub fn ious(&self) -> Vec<Option<f64>> {
        let iou = |[truth, predicted, both]: &[u64; 3]| {
            let union = truth + predicted - both;
            (union > 0).then(|| *both as f64 / union as f64)
        };
        self.counts.iter().map(iou).collect()
    }

    /// Puts the scores of the classes, and their mean, in their places.
    ///
    /// # Panics
    /// If `scores` are those of another number of classes.
    pub fn add_to(&self, scores: &mut Scores) {
        assert_eq!(
            self.counts.len(),
            scores.classes.len(),
            "counts of different classes"
        );
        for (class, iou) in scores.classes.iter_mut().zip(self.ious()) {
            class.boundary_iou = iou;
        }
        scores.mean_boundary_iou = Some(scores.mean(|class| class.boundary_iou));
    }
}

/// Which pixels lie within the distance of an outline.
fn outline(map: &LabelMap) -> Vec<bool> {
    let (width, height) = (map.width, map.height);
    let diagonal = ((width * width + height * height) as f64).sqrt();
    let distance = ((DISTANCE * diagonal).round_ties_even() as usize).max(1);
    // Sums over the rectangle that ends before a place, of how often neighbours differ: across columns and across rows.
    let stride = width + 1;
    let mut sums = vec![[0u32; 2]; stride * (height + 1)];
    for y in 0..height {
        let mut row = [0; 2];
        for x in 0..width {
            let value = map.data[y * width + x];
            let left = x > 0 && map.data[y * width + x - 1] != value;
            let above = y > 0 && map.data[(y - 1) * width + x] != value;
            row = [row[0] + u32::from(left), row[1] + u32::from(above)];
            let before = sums[y * stride + x + 1];
            sums[(y + 1) * stride + x + 1] = [before[0] + row[0], before[1] + row[1]];
        }
    }
    let sum = |kind: usize, [top, bottom]: [usize; 2], [left, right]: [usize; 2]| {
        let at = |y: usize, x: usize| sums[y * stride + x][kind];
        at(bottom, right) + at(top, left) - at(top, right) - at(bottom, left)
    };
    let mut found = vec![true; width * height];
    for y in distance..height.saturating_sub(distance) {
        for x in distance..width.saturating_sub(distance) {
            let (rows, columns) = (
                [y - distance, y + distance + 1],
                [x - distance, x + distance + 1],
            );
            // Those of the first column and of the first row are with pixels outside.
            let across = sum(0, rows, [columns[0] + 1, columns[1]]);
            let down = sum(1, [rows[0] + 1, rows[1]], columns);
            found[y * width + x] = across + down > 0;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(width: usize, data: Vec<u8>) -> LabelMap {
        LabelMap {
            width,
            height: data.len() / width,
            data,
        }
    }

    /// By the definition: a pixel of another value within the distance, or the edge.
    fn looked_for(map: &LabelMap, distance: usize) -> Vec<bool> {
        let (width, height, d) = (map.width as i64, map.height as i64, distance as i64);
        let value = |y: i64, x: i64| {
            let inside = (0..height).contains(&y) && (0..width).contains(&x);
            inside.then(|| map.data[(y * width + x) as usize])
        };
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
        pixels
            .map(|(y, x)| {
                let around = (y - d..=y + d).flat_map(|v| (x - d..=x + d).map(move |u| (v, u)));
                around.into_iter().any(|(v, u)| value(v, u) != value(y, x))
            })
            .collect()
    }

    #[test]
    fn outlines_are_those_of_the_definition() {
        let mut state = 7u32;
        let mut draw = |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % bound
        };
        for (width, height) in [(1, 1), (2, 9), (31, 17), (120, 90), (3, 200)] {
            let mut one = map(width, vec![0; width * height]);
            for _ in 0..4 {
                let [left, top] = [width, height].map(|side| draw(side as u32) as usize);
                let value = draw(3) as u8;
                for y in top..height.min(top + 30) {
                    for x in left..width.min(left + 40) {
                        one.data[y * width + x] = value;
                    }
                }
            }
            let diagonal = ((width * width + height * height) as f64).sqrt();
            let distance = ((0.02 * diagonal).round() as usize).max(1);
            assert_eq!(
                outline(&one),
                looked_for(&one, distance),
                "{width}x{height}"
            );
        }
    }

    #[test]
    fn what_is_ignored_does_not_count_and_what_is_no_class_is_refused() {
        let label = map(3, vec![0, 0, 1, 0, 255, 1, 0, 0, 1]);
        let mut counts = BoundaryCounts::new(2);
        counts.update(&label, &label).unwrap();
        assert_eq!(counts.ious(), [Some(1.0), Some(1.0)]);
        let mut other = label.clone();
        // An ignored pixel, and one of the right class that is not predicted.
        (other.data[4], other.data[0]) = (7, IGNORE);
        let mut missed = BoundaryCounts::new(2);
        missed.update(&other, &label).unwrap();
        assert_eq!(missed.ious(), [Some(4.0 / 5.0), Some(1.0)]);
        let mut twice = missed.clone();
        twice.merge(&missed);
        assert_eq!(twice.ious(), missed.ious());

        other.data[0] = 2;
        let error = missed.update(&other, &label).unwrap_err().to_string();
        assert!(error.contains("1 pixels of 2"), "{error}");
        assert!(missed.update(&map(9, other.data), &label).is_err());
        assert_eq!(BoundaryCounts::new(1).ious(), [None]);
    }
}
