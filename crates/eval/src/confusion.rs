//! Counting and scoring.

use serde::{Deserialize, Serialize};

use crate::EvalError;

/// How often each class was predicted where each class was true, and how often none was.
///
/// Memory is that of `classes` squared counters, however many images are added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct ConfusionMatrix {
    classes: usize,
    counts: Vec<u64>,
    /// True pixels of each class for which no class was predicted.
    unpredicted: Vec<u64>,
}

/// A matrix as it was read.
#[derive(Deserialize)]
struct Unchecked {
    classes: usize,
    counts: Vec<u64>,
    unpredicted: Vec<u64>,
}

impl TryFrom<Unchecked> for ConfusionMatrix {
    type Error = String;

    fn try_from(read: Unchecked) -> Result<Self, String> {
        let Unchecked {
            classes,
            counts,
            unpredicted,
        } = read;
        let fits = (1..=255).contains(&classes)
            && counts.len() == classes * classes
            && unpredicted.len() == classes;
        let total = counts.iter().chain(&unpredicted);
        let total = total.fold(0u128, |sum, count| sum + u128::from(*count));
        match fits && total <= u128::from(u64::MAX) / 2 {
            true => Ok(Self {
                classes,
                counts,
                unpredicted,
            }),
            false => Err(format!(
                "expected the counts of {classes} by {classes} classes, found {} and {}, {total} in all",
                counts.len(),
                unpredicted.len()
            )),
        }
    }
}

impl ConfusionMatrix {
    /// An empty matrix.
    ///
    /// # Panics
    /// If `classes` is 0 or above 255.
    pub fn new(classes: usize) -> Self {
        assert!(
            (1..=255).contains(&classes),
            "1 to 255 classes, not {classes}"
        );
        Self {
            classes,
            counts: vec![0; classes * classes],
            unpredicted: vec![0; classes],
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Pixels of class `truth` that were predicted as `predicted`.
    ///
    /// # Panics
    /// If either is no class.
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        assert!(
            truth < self.classes && predicted < self.classes,
            "no such class"
        );
        self.counts[truth * self.classes + predicted]
    }

    /// Adds one pair of maps; pixels labelled `ignore` are left out. A prediction of `ignore` is a
    /// miss of the true class and a false positive of none, as in the official scores.
    ///
    /// # Errors
    /// If the maps differ in size or hold a value that is no class; nothing is added then.
    pub fn update(&mut self, prediction: &[u8], label: &[u8], ignore: u8) -> Result<(), EvalError> {
        if prediction.len() != label.len() {
            return Err(EvalError::Size {
                expected: label.len(),
                found: prediction.len(),
            });
        }
        // Four histograms over pairs: neighbouring pixels mostly agree, and one counter
        // incremented twice in a row would wait for itself.
        let mut pairs = vec![0u32; 4 << 16];
        let (a, rest) = pairs.split_at_mut(1 << 16);
        let (b, rest) = rest.split_at_mut(1 << 16);
        let (c, d) = rest.split_at_mut(1 << 16);
        let pair = |l: u8, p: u8| (l as usize) << 8 | p as usize;
        let mut labels = label.chunks_exact(4);
        let mut predictions = prediction.chunks_exact(4);
        for (l, p) in labels.by_ref().zip(predictions.by_ref()) {
            a[pair(l[0], p[0])] += 1;
            b[pair(l[1], p[1])] += 1;
            c[pair(l[2], p[2])] += 1;
            d[pair(l[3], p[3])] += 1;
        }
        for (&l, &p) in labels.remainder().iter().zip(predictions.remainder()) {
            a[pair(l, p)] += 1;
        }
        let total = |l: usize, p: usize| -> u64 {
            [&*a, &*b, &*c, &*d]
                .iter()
                .map(|counts| counts[l << 8 | p] as u64)
                .sum()
        };
        self.check(&total, ignore)?;
        for truth in (0..self.classes).filter(|&truth| truth != ignore as usize) {
            for predicted in (0..self.classes).filter(|&p| p != ignore as usize) {
                self.counts[truth * self.classes + predicted] += total(truth, predicted);
            }
            self.unpredicted[truth] += total(truth, ignore as usize);
        }
        Ok(())
    }

    fn check(&self, total: &impl Fn(usize, usize) -> u64, ignore: u8) -> Result<(), EvalError> {
        let out_of_range = |map, value: usize, pixels| EvalError::OutOfRange {
            map,
            expected: self.classes,
            ignore,
            value: value as u8,
            pixels,
        };
        let kept = || (0..256).filter(|&l| l != ignore as usize);
        for value in kept().filter(|&l| l >= self.classes) {
            let pixels = (0..256).map(|p| total(value, p)).sum();
            if pixels > 0 {
                return Err(out_of_range("label", value, pixels));
            }
        }
        for value in kept().filter(|&p| p >= self.classes) {
            let pixels = kept().map(|l| total(l, value)).sum();
            if pixels > 0 {
                return Err(out_of_range("prediction", value, pixels));
            }
        }
        Ok(())
    }

    /// Adds the counts of `other`.
    ///
    /// # Panics
    /// If the numbers of classes differ.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.classes, other.classes, "matrices of different classes");
        let ours = self.counts.iter_mut().chain(&mut self.unpredicted);
        let theirs = other.counts.iter().chain(&other.unpredicted);
        ours.zip(theirs).for_each(|(a, b)| *a += b);
    }

    /// The scores as MMSegmentation's `IoUMetric` defines them: a class that is neither true nor
    /// predicted anywhere has none and is left out of the means; accuracy asks for true pixels.
    pub fn scores(&self) -> Scores {
        let n = self.classes;
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let classes: Vec<ClassScore> = (0..n)
            .map(|k| {
                let hit = self.counts[k * n + k];
                let row = &self.counts[k * n..(k + 1) * n];
                let truth = row.iter().sum::<u64>() + self.unpredicted[k];
                let predicted: u64 = (0..n).map(|t| self.counts[t * n + k]).sum();
                ClassScore {
                    iou: ratio(hit, truth + predicted - hit),
                    accuracy: ratio(hit, truth),
                    precision: ratio(hit, predicted),
                    dice: ratio(2 * hit, truth + predicted),
                    boundary_iou: None,
                    pixels: truth,
                }
            })
            .collect();
        let total: u64 = classes.iter().map(|class| class.pixels).sum();
        let hits: u64 = (0..n).map(|k| self.counts[k * n + k]).sum();
        Scores {
            pixel_accuracy: ratio(hits, total).unwrap_or(0.0),
            mean_accuracy: mean(classes.iter().map(|class| class.accuracy)),
            mean_iou: mean(classes.iter().map(|class| class.iou)),
            mean_boundary_iou: None,
            constant_mean_iou: mean(constant_iou(&classes).into_iter()),
            classes,
        }
    }
}

/// The IoU of each class that occurs if the class with most pixels is predicted everywhere: the best of such predictions.
fn constant_iou(classes: &[ClassScore]) -> Vec<Option<f64>> {
    let pixels = || classes.iter().map(|class| class.pixels);
    let (total, most) = (pixels().sum::<u64>(), pixels().max());
    let predicted = pixels().position(|pixels| Some(pixels) == most);
    let iou = |(class, pixels): (usize, u64)| {
        (pixels > 0).then(|| match Some(class) == predicted {
            true => pixels as f64 / total as f64,
            false => 0.0,
        })
    };
    pixels().enumerate().map(iou).collect()
}

/// The mean of what classes have; 0 where none has any.
fn mean(values: impl Iterator<Item = Option<f64>>) -> f64 {
    let values: Vec<f64> = values.flatten().collect();
    match values.is_empty() {
        true => 0.0,
        false => values.iter().sum::<f64>() / values.len() as f64,
    }
}

/// The scores of one class, each from 0 to 1, or nothing where its denominator is 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// Intersection over union.
    pub iou: Option<f64>,
    /// Recall.
    pub accuracy: Option<f64>,
    /// Precision.
    pub precision: Option<f64>,
    /// Dice coefficient, which is the F-score with equal weight of precision and recall.
    pub dice: Option<f64>,
    /// IoU near outlines, where it was measured; see [`BoundaryCounts`](crate::BoundaryCounts).
    #[serde(default)]
    pub boundary_iou: Option<f64>,
    /// True pixels.
    pub pixels: u64,
}

/// The scores of a data set, each from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// aAcc: share of pixels that are right.
    pub pixel_accuracy: f64,
    /// mAcc: mean accuracy of the classes that occur.
    pub mean_accuracy: f64,
    /// mIoU: mean IoU of the classes that occur or are predicted.
    pub mean_iou: f64,
    /// Mean IoU near outlines, where it was measured, of the classes that have any.
    #[serde(default)]
    pub mean_boundary_iou: Option<f64>,
    /// The mIoU of the best prediction of one class everywhere.
    pub constant_mean_iou: f64,
    /// By class.
    pub classes: Vec<ClassScore>,
}

impl Scores {
    /// The IoU of each class under the best prediction of one class everywhere, that of the class with most pixels;
    /// `None` for a class without pixels.
    pub fn constant_iou(&self) -> Vec<Option<f64>> {
        constant_iou(&self.classes)
    }

    /// The mean over the classes that have this score; 0 where none has.
    pub fn mean(&self, of: impl Fn(&ClassScore) -> Option<f64>) -> f64 {
        mean(self.classes.iter().map(of))
    }

    /// A table in percent: a row for each class of `names` with IoU, accuracy (recall), precision and Dice
    /// coefficient (F-score), and the boundary IoU if it was measured; then the means.
    pub fn table(&self, names: &[&str]) -> String {
        let percent = |v: Option<f64>| v.map_or("-".into(), |v| format!("{:.2}", 100.0 * v));
        let near = self.mean_boundary_iou;
        let boundary = |text: String| near.map_or(String::new(), |_| format!("{text:>8}"));
        let mut out = format!(
            "{:<16}{:>8}{:>8}{:>8}{:>8}{}{:>14}\n",
            "class",
            "IoU",
            "Acc",
            "Prec",
            "Dice",
            boundary("BIoU".into()),
            "pixels"
        );
        for (i, class) in self.classes.iter().enumerate() {
            let name = names
                .get(i)
                .map_or(format!("class_{i}"), ToString::to_string);
            let scores = [class.iou, class.accuracy, class.precision, class.dice].map(percent);
            let scores: String = scores.iter().map(|score| format!("{score:>8}")).collect();
            let boundary = boundary(percent(class.boundary_iou));
            out += &format!("{name:<16}{scores}{boundary}{:>14}\n", class.pixels);
        }
        let boundary = near.map_or(String::new(), |iou| format!("  mBIoU {:.2}", 100.0 * iou));
        out + &format!(
            "mIoU {:.2}  mAcc {:.2}  aAcc {:.2}  mPrec {:.2}  mDice {:.2}{boundary}  (best constant prediction: mIoU \
             {:.2})\n",
            100.0 * self.mean_iou,
            100.0 * self.mean_accuracy,
            100.0 * self.pixel_accuracy,
            100.0 * self.mean(|class| class.precision),
            100.0 * self.mean(|class| class.dice),
            100.0 * self.constant_mean_iou
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_matrix_that_is_not_square_is_not_read() {
        let mut matrix = ConfusionMatrix::new(3);
        matrix.update(&[0, 1, 255], &[0, 2, 1], 255).unwrap();
        let text = serde_json::to_string(&matrix).unwrap();
        assert_eq!(
            serde_json::from_str::<ConfusionMatrix>(&text).unwrap(),
            matrix
        );
        for (classes, counts) in [(4, "[0,0,0]"), (0, "[]"), (300, "[0]")] {
            let text =
                format!("{{\"classes\":{classes},\"counts\":{counts},\"unpredicted\":{counts}}}");
            let error = serde_json::from_str::<ConfusionMatrix>(&text).unwrap_err();
            assert!(error.to_string().contains("classes, found"), "{error}");
        }
    }

    #[test]
    fn absent_classes_are_left_out_and_predicted_ones_score_zero() {
        let mut matrix = ConfusionMatrix::new(4);
        matrix
            .update(&[0, 0, 1, 2, 3], &[0, 0, 1, 1, 255], 255)
            .unwrap();
        let scores = matrix.scores();
        assert_eq!(scores.classes[0].iou, Some(1.0));
        assert_eq!(scores.classes[1].iou, Some(0.5));
        assert_eq!(scores.classes[2].iou, Some(0.0));
        assert_eq!(scores.classes[2].accuracy, None);
        assert_eq!(scores.classes[3].iou, None);
        assert_eq!(scores.mean_iou, 0.5);
        assert_eq!(scores.pixel_accuracy, 0.75);
        assert_eq!(scores.mean_accuracy, 0.75);
        assert_eq!(scores.constant_mean_iou, 0.25);
    }

    #[test]
    fn pixels_without_a_prediction_are_missed() {
        let mut matrix = ConfusionMatrix::new(2);
        matrix
            .update(&[0, 255, 255, 1], &[0, 0, 255, 1], 255)
            .unwrap();
        let scores = matrix.scores();
        assert_eq!(scores.classes[0].iou, Some(0.5));
        assert_eq!(
            (scores.classes[0].accuracy, scores.classes[0].pixels),
            (Some(0.5), 2)
        );
        assert_eq!(scores.classes[0].precision, Some(1.0));
        assert_eq!(scores.classes[1].iou, Some(1.0));
        assert_eq!(scores.pixel_accuracy, 2.0 / 3.0);
        let twice = &mut matrix.clone();
        twice.merge(&matrix);
        assert_eq!(twice.scores().classes[0].pixels, 4);
    }

    #[test]
    fn values_that_are_no_class_are_refused_and_nothing_is_added() {
        let mut matrix = ConfusionMatrix::new(3);
        let label = matrix
            .update(&[0, 0], &[7, 7], 255)
            .unwrap_err()
            .to_string();
        assert!(
            label.contains("label map") && label.contains("2 pixels of 7"),
            "{label}"
        );
        let prediction = matrix
            .update(&[9, 0], &[0, 0], 255)
            .unwrap_err()
            .to_string();
        assert!(prediction.contains("1 pixels of 9"), "{prediction}");
        assert!(matrix.update(&[0], &[0, 1], 255).is_err());
        assert_eq!(matrix, ConfusionMatrix::new(3));
    }

    proptest! {
        #[test]
        fn parts_merge_to_one_pass_and_to_the_naive_count(
            pairs in prop::collection::vec((0u8..5, prop_oneof![4 => 0u8..5, 1 => Just(255u8)]), 1..400),
            cut in 0usize..400,
        ) {
            let (p, l): (Vec<u8>, Vec<u8>) = pairs.iter().copied().unzip();
            let cut = cut.min(p.len());
            let mut whole = ConfusionMatrix::new(5);
            whole.update(&p, &l, 255).unwrap();
            let (mut a, mut b) = (ConfusionMatrix::new(5), ConfusionMatrix::new(5));
            a.update(&p[..cut], &l[..cut], 255).unwrap();
            b.update(&p[cut..], &l[cut..], 255).unwrap();
            a.merge(&b);
            prop_assert_eq!(&a, &whole);
            for t in 0..5u8 {
                for q in 0..5u8 {
                    let naive = pairs.iter().filter(|&&pair| pair == (q, t)).count() as u64;
                    prop_assert_eq!(whole.count(t as usize, q as usize), naive);
                }
            }
        }
    }
}
