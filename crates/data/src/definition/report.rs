//! What a look at a data set gives.

use serde::Serialize;

use super::Definition;
use super::facts::Facts;
use super::finding::{Finding, Severity};
use crate::{Classes, Crop, IGNORE};

/// Multiples that recommended crops have.
const MULTIPLE: usize = 32;
/// The largest crop that is recommended: that of the published recipe.
const LARGEST: Crop = Crop {
    height: 512,
    width: 1024,
};

/// Numbers of a split while it is read.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    pub name: String,
    pub pictures: usize,
    pub read: usize,
    pub labelled: usize,
    pub ignored: u64,
    /// Pixels of each class.
    pub pixels: Vec<u64>,
    /// Pictures that have the class, and all pixels of these that count.
    with: Vec<(u64, u64)>,
    sizes: Vec<(usize, usize)>,
    /// Sum and sum of squares of each channel.
    moments: [Vec<u128>; 2],
    values: u64,
}

impl Totals {
    pub(super) fn new(name: &str, pictures: usize, classes: usize) -> Self {
        Self {
            name: name.to_owned(),
            pictures,
            read: 0,
            labelled: 0,
            ignored: 0,
            pixels: vec![0; classes],
            with: vec![(0, 0); classes],
            sizes: Vec::new(),
            moments: [Vec::new(), Vec::new()],
            values: 0,
        }
    }

    pub(super) fn add(&mut self, facts: &Facts) {
        self.read += 1;
        self.sizes.push(facts.size);
        self.values += (facts.size.0 * facts.size.1) as u64;
        for (all, of_picture) in self.moments.iter_mut().zip(&facts.moments) {
            all.resize(of_picture.len(), 0);
            all.iter_mut()
                .zip(of_picture)
                .for_each(|(all, v)| *all += u128::from(*v));
        }
        let Some(mask) = &facts.mask else { return };
        self.labelled += 1;
        let of_classes = || mask.classes.iter().filter(|(class, _)| *class != IGNORE);
        let counted: u64 = of_classes().map(|(_, pixels)| pixels).sum();
        for (class, pixels) in of_classes() {
            let class = usize::from(*class);
            self.pixels[class] += pixels;
            self.with[class].0 += 1;
            self.with[class].1 += counted;
        }
        let ignored = mask.classes.iter().find(|(class, _)| *class == IGNORE);
        self.ignored += ignored.map_or(0, |(_, pixels)| *pixels);
    }

    /// Whether all of it was read.
    pub(super) fn is_complete(&self) -> bool {
        self.read == self.pictures
    }
}

/// A split in numbers.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SplitReport {
    /// Its name.
    pub name: String,
    /// Its pictures.
    pub pictures: usize,
    /// Those of them that were read, and are sound.
    pub read: usize,
    /// Smallest and largest width and height, in pixels.
    pub sizes: Option<[(usize, usize); 2]>,
    /// Ignored pixels.
    pub ignored: u64,
    /// Pixels of each class.
    pub pixels: Vec<u64>,
    /// Pictures that have each class.
    pub pictures_with: Vec<u64>,
}

/// A data set in numbers, with all that is wrong with it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Worst first.
    pub findings: Vec<Finding>,
    /// Names and colours of the classes.
    pub classes: Classes,
    /// Splits, in the order that they were asked for.
    pub splits: Vec<SplitReport>,
    /// Mean of each channel of the split that is trained on, in the values of files; else of the first.
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of each channel.
    pub std: Option<Vec<f64>>,
    /// A weight for each class: the median of all classes' shares over its own, each share among the pixels of
    /// the pictures that have the class (median frequency balancing, Eigen and Fergus 2015). Nothing for a
    /// class that does not occur.
    pub weights: Vec<Option<f64>>,
    /// A crop that most pictures fill, written `HEIGHTxWIDTH`.
    pub crop: Option<Crop>,
}

impl Report {
    pub(super) fn new(
        definition: &Definition,
        splits: Vec<Totals>,
        findings: Vec<Finding>,
        train: Option<&str>,
    ) -> Self {
        let main = splits
            .iter()
            .find(|split| train == Some(&split.name))
            .or(splits.first());
        let moments = main.filter(|split| split.values > 0).map(|split| {
            let n = split.values as f64;
            let [mean, squares] = [0, 1].map(|power: usize| {
                let sums = split.moments[power].iter();
                sums.map(|sum| *sum as f64 / n).collect::<Vec<_>>()
            });
            let both = mean.iter().zip(squares);
            let std = both.map(|(mean, square)| (square - mean * mean).max(0.0).sqrt());
            let std = std.collect::<Vec<_>>();
            (mean, std)
        });
        Self {
            findings,
            classes: definition.classes().clone(),
            mean: moments.as_ref().map(|(mean, _)| mean.clone()),
            std: moments.map(|(_, std)| std),
            weights: main.map(weights).unwrap_or_default(),
            crop: main.and_then(|split| crop(&split.sizes)),
            splits: splits.into_iter().map(SplitReport::from).collect(),
        }
    }

    /// Whether training would fail or its scores lie.
    pub fn has_errors(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }
}

impl From<Totals> for SplitReport {
    fn from(totals: Totals) -> Self {
        let bounds = |of: fn(usize, usize) -> usize| {
            let sizes = totals.sizes.iter().copied();
            sizes.reduce(|a, b| (of(a.0, b.0), of(a.1, b.1)))
        };
        Self {
            sizes: bounds(usize::min)
                .zip(bounds(usize::max))
                .map(|(a, b)| [a, b]),
            name: totals.name,
            pictures: totals.pictures,
            read: totals.read,
            ignored: totals.ignored,
            pixels: totals.pixels,
            pictures_with: totals.with.iter().map(|(pictures, _)| *pictures).collect(),
        }
    }
}

fn weights(split: &Totals) -> Vec<Option<f64>> {
    let shares = split.pixels.iter().zip(&split.with);
    let shares =
        shares.map(|(pixels, (_, all))| (*pixels > 0).then(|| *pixels as f64 / *all as f64));
    let shares: Vec<Option<f64>> = shares.collect();
    let mut sorted: Vec<f64> = shares.iter().flatten().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let median = match sorted.len() {
        0 => return shares,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    };
    shares
        .into_iter()
        .map(|share| share.map(|share| median / share))
        .collect()
}

/// The size that half of the pictures have at least, on either side.
fn crop(sizes: &[(usize, usize)]) -> Option<Crop> {
    let side = |of: fn(&(usize, usize)) -> usize, largest: usize| {
        let mut sides: Vec<_> = sizes.iter().map(of).collect();
        sides.sort_unstable();
        let median = *sides.get(sides.len().checked_sub(1)? / 2)?;
        Some((median.min(largest) / MULTIPLE * MULTIPLE).max(MULTIPLE))
    };
    Some(Crop {
        height: side(|size| size.1, LARGEST.height)?,
        width: side(|size| size.0, LARGEST.width)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_balance_classes_by_their_median() {
        let mut split = Totals::new("train", 2, 4);
        split.pixels = vec![80, 20, 0, 10];
        split.with = vec![(2, 100), (1, 50), (0, 0), (1, 100)];
        let expected = [Some(0.4 / 0.8), Some(1.0), None, Some(4.0)];
        for (found, expected) in weights(&split).iter().zip(expected) {
            assert_eq!(found.is_some(), expected.is_some());
            assert!((found.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < 1e-12);
        }
    }

    #[test]
    fn crops_are_as_large_as_most_pictures() {
        assert_eq!(crop(&[]), None);
        let found = crop(&[(480, 360), (100, 400), (500, 500)]).unwrap();
        assert_eq!(found.to_string(), "384x480");
        assert_eq!(crop(&[(9000, 20)]).unwrap().to_string(), "32x1024");
    }
}
