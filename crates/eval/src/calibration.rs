//! Whether probabilities are what they say.

use std::iter::StepBy;
use std::ops::Range;

use halfseg_data::{IGNORE, LabelMap};
use serde::{Deserialize, Serialize};

/// Pixels of a picture that are looked at, about: more would change no figure that is read.
const LOOKED_AT: usize = 1 << 16;

/// The probabilities that a network gave to the classes it chose, at the pixels of a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Confidences {
    width: usize,
    stride: usize,
    values: Vec<f32>,
}

impl Confidences {
    /// None yet, of a picture of `width` and `height` in pixels. The grid has every pixel of a small picture, and
    /// about 65,000 of a large one.
    pub fn new(width: usize, height: usize) -> Self {
        let pixels = width.saturating_mul(height);
        let stride = (pixels as f64 / LOOKED_AT as f64).sqrt().ceil() as usize;
        Self {
            width,
            stride: stride.max(1),
            values: Vec::new(),
        }
    }

    /// Distance between the grid's rows and columns, which begin with the picture's first, in pixels.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row by row; NaN where no class was chosen.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Columns of the grid.
    fn columns(&self) -> usize {
        self.width.div_ceil(self.stride)
    }

    /// The grid's rows among the `rows` rows of a band that begins at the picture's row `first`, counted from there.
    pub fn grid_rows(&self, first: usize, rows: usize) -> StepBy<Range<usize>> {
        grid_rows(first, rows, self.stride)
    }

    /// Adds the grid's rows of a band of the picture, which come in their order. `scores` has a value of each class
    /// for each of these pixels, `[classes, rows, columns]`: logits, or probabilities if `probabilities` says so.
    /// `chosen` has the class of each pixel of the band, whose first row is the picture's `first`.
    ///
    /// # Panics
    /// If the sizes do not fit each other.
    pub fn push_band(
        &mut self,
        scores: &[f32],
        chosen: &LabelMap,
        first: usize,
        probabilities: bool,
    ) {
        let rows = self.grid_rows(first, chosen.height);
        let area = rows.len() * self.columns();
        assert_eq!(chosen.width, self.width, "a band as wide as the picture");
        assert!(
            area > 0 && scores.len().is_multiple_of(area),
            "{} scores of {area} pixels",
            scores.len()
        );
        let pixels = rows.flat_map(|y| (0..self.width).step_by(self.stride).map(move |x| (y, x)));
        let chosen = pixels.map(|(y, x)| usize::from(chosen.data[y * chosen.width + x]));
        let values = chosen.enumerate().map(|(pixel, class)| {
            let Some(&own) = scores.get(class * area + pixel) else {
                return f32::NAN;
            };
            if probabilities {
                return own;
            }
            let all = scores[pixel..].iter().step_by(area);
            1.0 / all.map(|score| (score - own).exp()).sum::<f32>()
        });
        self.values.extend(values);
    }
}

fn grid_rows(first: usize, rows: usize, stride: usize) -> StepBy<Range<usize>> {
    let start = first.next_multiple_of(stride) - first;
    (start..rows.max(start)).step_by(stride)
}

/// How often a network is right where it gives its choice some probability, in [`BINS`](Self::BINS) bins of equal
/// width (Guo et al. 2017, *On Calibration of Modern Neural Networks*).
///
/// ```
/// use halfseg_eval::Calibration;
///
/// let mut calibration = Calibration::default();
/// calibration.add(0.9, true);
/// calibration.add(0.9, false);
/// assert!((calibration.expected_error().unwrap() - 0.4).abs() < 1e-6);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    bins: [CalibrationBin; Self::BINS],
}

/// The pixels of a bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// How many there are.
    pub pixels: u64,
    /// How many of them are of the class that was chosen.
    pub right: u64,
    /// The sum of their probabilities.
    pub confidence: f64,
}

impl CalibrationBin {
    /// Share of the pixels whose class is right; `None` without pixels.
    pub fn accuracy(&self) -> Option<f64> {
        (self.pixels > 0).then(|| self.right as f64 / self.pixels as f64)
    }

    /// Mean probability of the chosen class; `None` without pixels.
    pub fn mean_confidence(&self) -> Option<f64> {
        (self.pixels > 0).then(|| self.confidence / self.pixels as f64)
    }

    fn add(&mut self, other: &Self) {
        self.pixels += other.pixels;
        self.right += other.right;
        self.confidence += other.confidence;
    }
}

impl Calibration {
    /// How many bins there are: bin `i` has the probabilities above `i / BINS` up to `(i + 1) / BINS`.
    pub const BINS: usize = 15;

    /// Adds a pixel whose chosen class had the probability `confidence`, 0 to 1; one that is no number is left out.
    pub fn add(&mut self, confidence: f32, right: bool) {
        if confidence.is_nan() {
            return;
        }
        let confidence = f64::from(confidence.clamp(0.0, 1.0));
        let bin = (confidence * Self::BINS as f64).ceil() as usize;
        self.bins[bin.clamp(1, Self::BINS) - 1].add(&CalibrationBin {
            pixels: 1,
            right: right.into(),
            confidence,
        });
    }

    /// Adds the pixels of a picture's grid that are labelled.
    ///
    /// # Panics
    /// If the maps are not of one size, or `confidences` are those of another picture.
    pub fn update(&mut self, confidences: &Confidences, chosen: &LabelMap, label: &LabelMap) {
        let size = (chosen.width, chosen.height);
        assert_eq!(size, (label.width, label.height), "maps of one size");
        let rows = confidences.grid_rows(0, chosen.height);
        let expected = rows.len() * confidences.columns();
        assert_eq!(confidences.values.len(), expected, "of the same picture");
        let columns = || (0..chosen.width).step_by(confidences.stride);
        let pixels = rows.flat_map(|y| columns().map(move |x| y * chosen.width + x));
        for (pixel, confidence) in pixels.zip(&confidences.values) {
            if label.data[pixel] != IGNORE {
                self.add(*confidence, chosen.data[pixel] == label.data[pixel]);
            }
        }
    }

    /// Adds the pixels of `other`.
    pub fn merge(&mut self, other: &Self) {
        let bins = self.bins.iter_mut().zip(&other.bins);
        bins.for_each(|(ours, theirs)| ours.add(theirs));
    }

    /// From the least probable to the most.
    pub fn bins(&self) -> &[CalibrationBin; Self::BINS] {
        &self.bins
    }

    /// All pixels together.
    pub fn total(&self) -> CalibrationBin {
        let mut total = CalibrationBin::default();
        self.bins.iter().for_each(|bin| total.add(bin));
        total
    }

    /// The expected calibration error: by how much accuracy and mean probability differ in a bin, averaged over all
    /// pixels, from 0 to 1; `None` without pixels.
    pub fn expected_error(&self) -> Option<f64> {
        let pixels = self.total().pixels;
        let gap = |bin: &CalibrationBin| (bin.right as f64 - bin.confidence).abs();
        (pixels > 0).then(|| self.bins.iter().map(gap).sum::<f64>() / pixels as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_of_bins_belong_to_the_lower_one() {
        let mut calibration = Calibration::default();
        for confidence in [0.0, 1.0, f32::NAN, 0.2, 1.0 / 15.0 + 1e-6] {
            calibration.add(confidence, true);
        }
        let pixels = calibration.bins().map(|bin| bin.pixels);
        assert_eq!(pixels, [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(Calibration::default().expected_error(), None);
    }

    #[test]
    fn a_large_picture_is_looked_at_in_a_grid() {
        let small = Confidences::new(256, 256);
        assert_eq!(small.stride(), 1);
        let mut large = Confidences::new(2048, 1024);
        assert_eq!(large.stride(), 6);
        // Rows 0, 6 of the first band and 12 of the next.
        for (first, rows) in [(0, 11), (11, 3)] {
            let band = LabelMap::filled(2048, rows, [1]);
            let count = grid_rows(first, rows, 6).len() * large.columns();
            let scores = [vec![0.0; count], vec![3.0f32.ln(); count]].concat();
            large.push_band(&scores, &band, first, false);
        }
        assert_eq!(large.values().len(), 3 * 342);
        assert!(
            large
                .values()
                .iter()
                .all(|value| (value - 0.75).abs() < 1e-6)
        );
    }

    proptest! {
        #[test]
        fn the_error_is_that_of_a_direct_computation(
            pixels in prop::collection::vec((0f32..=1.0, any::<bool>()), 1..300),
            cut in 0usize..300,
        ) {
            let (mut whole, mut parts) = (Calibration::default(), [(); 2].map(|()| Calibration::default()));
            for (place, &(confidence, right)) in pixels.iter().enumerate() {
                whole.add(confidence, right);
                parts[usize::from(place < cut)].add(confidence, right);
            }
            let mut error = 0.0;
            for bin in 0..15 {
                let inside = |value: f32| {
                    let value = f64::from(value) * 15.0;
                    value > f64::from(bin) && value <= f64::from(bin) + 1.0 || bin == 0 && value == 0.0
                };
                let held: Vec<_> = pixels.iter().filter(|pixel| inside(pixel.0)).collect();
                if held.is_empty() {
                    continue;
                }
                let count = held.len() as f64;
                let accuracy = held.iter().filter(|pixel| pixel.1).count() as f64 / count;
                let mean = held.iter().map(|pixel| f64::from(pixel.0)).sum::<f64>() / count;
                error += count / pixels.len() as f64 * (accuracy - mean).abs();
            }
            prop_assert!((whole.expected_error().unwrap() - error).abs() < 1e-9);
            let [mut merged, other] = parts;
            merged.merge(&other);
            prop_assert!((merged.expected_error().unwrap() - error).abs() < 1e-9);
            prop_assert_eq!(merged.total().pixels, pixels.len() as u64);
        }

        #[test]
        fn confidences_are_softmax_of_the_chosen_class(
            scores in prop::collection::vec(-8f32..8.0, 3 * 20),
            classes in prop::collection::vec(prop_oneof![0u8..3, Just(IGNORE)], 20),
            labels in prop::collection::vec(prop_oneof![0u8..3, Just(IGNORE)], 20),
        ) {
            let map = |data| LabelMap { width: 5, height: 4, data };
            let (chosen, label) = (map(classes), map(labels));
            let mut confidences = Confidences::new(5, 4);
            confidences.push_band(&scores, &chosen, 0, false);
            let mut expected = Calibration::default();
            for pixel in 0..20 {
                let class = chosen.data[pixel] as usize;
                if class == 255 {
                    prop_assert!(confidences.values()[pixel].is_nan());
                    continue;
                }
                let sum: f32 = (0..3).map(|k| scores[k * 20 + pixel].exp()).sum();
                let softmax = scores[class * 20 + pixel].exp() / sum;
                prop_assert!((confidences.values()[pixel] - softmax).abs() < 1e-5);
                if label.data[pixel] != IGNORE {
                    expected.add(confidences.values()[pixel], chosen.data[pixel] == label.data[pixel]);
                }
            }
            let mut found = Calibration::default();
            found.update(&confidences, &chosen, &label);
            prop_assert_eq!(found, expected);
        }
    }
}
