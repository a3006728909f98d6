//! Sliding-window and multi-scale inference over any network.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData, activation::softmax};
use halfseg_data::{IGNORE, LabelMap};
use rayon::prelude::*;

use crate::EvalError;

/// Logits from overlapping windows: sums divided by counts; windows at the right and lower edge
/// shift inward (mmsegmentation `encoder_decoder.py`, `slide_inference`).
///
/// # Shapes
/// - `image`: `[n, 3, h, w]`
/// - `crop`, `stride`: height and width in pixels; a crop larger than the image is cut to it
/// - output: `[n, classes, h, w]`
///
/// # Panics
/// If a crop or stride is 0, or a stride is larger than the crop: pixels between windows would have
/// no logits.
pub fn slide(
    network: &dyn Fn(Tensor<4>) -> Tensor<4>,
    image: Tensor<4>,
    crop: [usize; 2],
    stride: [usize; 2],
) -> Tensor<4> {
    let [n, channels, height, width] = image.dims();
    let windows = Windows {
        size: [height, width],
        crop,
        stride,
    };
    let logits = |[rows, columns]: [Range<usize>; 2]| {
        network(image.clone().slice([0..n, 0..channels, rows, columns]))
    };
    windows.logits(&logits)
}

/// Overlapping windows over an image; sizes are height and width in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Of the image.
    pub size: [usize; 2],
    /// Of a window; one larger than the image is cut to it.
    pub crop: [usize; 2],
    /// From one window to the next. Windows at the right and lower edge shift inward.
    pub stride: [usize; 2],
}

/// Rows whose logits [`Windows::for_each_band`] hands over at once, at most.
const BAND_ROWS: usize = 64;

/// Rows that the same windows cover.
struct Band {
    rows: Range<usize>,
    /// Sums of logits, once a window has been here.
    sums: Option<Tensor<4>>,
}

impl Windows {
    /// The logits of the image: `window` gives those of the rows and columns that it is called with,
    /// as [`slide`] does.
    ///
    /// # Panics
    /// As [`slide`].
    pub fn logits(&self, window: &dyn Fn([Range<usize>; 2]) -> Tensor<4>) -> Tensor<4> {
        let [height, width] = self.size;
        let mut all: Option<Tensor<4>> = None;
        self.for_each_band(window, |rows, band| {
            let [n, classes, ..] = band.dims();
            let whole = all.take().unwrap_or_else(|| {
                let shape = [n, classes, height, width];
                Tensor::zeros(shape, (&band.device(), band.dtype()))
            });
            all = Some(whole.slice_assign([0..n, 0..classes, rows, 0..width], band));
        });
        all.expect("there is at least one window")
    }

    /// The same logits from top to bottom, a band of rows after the other: `finished` is called with the
    /// rows and their logits `[n, classes, rows, width]` as soon as no window further down adds to
    /// them. So there are never more logits in memory than those of as many rows as a window has.
    ///
    /// # Panics
    /// As [`slide`].
    pub fn for_each_band(
        &self,
        window: &dyn Fn([Range<usize>; 2]) -> Tensor<4>,
        mut finished: impl FnMut(Range<usize>, Tensor<4>),
    ) {
        let (crop, stride) = (self.crop, self.stride);
        assert!(
            crop.iter().chain(&stride).all(|&v| v > 0),
            "crop and stride must not be 0"
        );
        assert!(
            stride[0] <= crop[0] && stride[1] <= crop[1],
            "windows of {crop:?} at a stride of {stride:?} leave gaps"
        );
        let [down, across] = [self.along(0), self.along(1)];
        let width = self.size[1];
        let mut counts = vec![0f32; width];
        for columns in &across {
            counts[columns.clone()].iter_mut().for_each(|c| *c += 1.0);
        }
        let mut bands = Band::below_each_other(&down);
        for (i, rows) in down.iter().enumerate() {
            for columns in &across {
                let logits = window([rows.clone(), columns.clone()]);
                for band in bands.iter_mut().take_while(|b| b.rows.start < rows.end) {
                    band.add(&logits, rows.start, columns.clone(), width);
                }
            }
            let next = down.get(i + 1).map_or(rows.end, |next| next.start);
            while let Some(done) = bands.pop_front_if(|band| band.rows.end <= next) {
                let covering = down.iter().filter(|rows| rows.contains(&done.rows.start));
                let often = covering.count() as f32;
                let counts = counts.iter().map(|count| count * often).collect();
                let sums = done.sums.expect("windows leave no gaps");
                let counts = TensorData::new(counts, [1, 1, 1, width]);
                let counts = Tensor::<4>::from_data(counts, &sums.device());
                finished(done.rows, sums / counts);
            }
        }
    }

    /// Where the windows are along a side of the image.
    fn along(&self, side: usize) -> Vec<Range<usize>> {
        let (size, crop) = (self.size[side], self.crop[side]);
        let last = size.saturating_sub(crop);
        let steps = last.div_ceil(self.stride[side]) + 1;
        let starts = (0..steps).map(|i| (i * self.stride[side]).min(last));
        starts
            .map(|start| start..(start + crop).min(size))
            .collect()
    }
}

impl Band {
    /// All rows of an image over which windows lie, parted where one begins or ends.
    fn below_each_other(down: &[Range<usize>]) -> VecDeque<Self> {
        let ends: BTreeSet<usize> = down
            .iter()
            .flat_map(|rows| [rows.start, rows.end])
            .collect();
        let parts = ends.iter().zip(ends.iter().skip(1));
        let bands = parts.flat_map(|(&start, &end)| {
            (start..end).step_by(BAND_ROWS).map(move |first| Self {
                rows: first..(first + BAND_ROWS).min(end),
                sums: None,
            })
        });
        bands.collect()
    }

    /// Adds the band's rows of the logits of a window that begins at the row `top` and has `columns` of
    /// `width`.
    fn add(&mut self, logits: &Tensor<4>, top: usize, columns: Range<usize>, width: usize) {
        let [n, classes, ..] = logits.dims();
        let rows = self.rows.start - top..self.rows.end - top;
        let logits_here = logits
            .clone()
            .slice([0..n, 0..classes, rows, 0..columns.len()]);
        let sums = self.sums.take().unwrap_or_else(|| {
            let shape = [n, classes, self.rows.len(), width];
            Tensor::zeros(shape, (&logits.device(), logits.dtype()))
        });
        let place = [0..n, 0..classes, 0..self.rows.len(), columns];
        let sum = sums.clone().slice(place.clone()) + logits_here;
        self.sums = Some(sums.slice_assign(place, sum));
    }
}

/// Class probabilities averaged over scales and mirrorings, at the size of `image`
/// (mmsegmentation `seg_tta.py`).
///
/// `logits_at` gives the logits **at the size of the unscaled image** for the image scaled by a
/// ratio and mirrored or not; it is called once for each view, and mirrored logits are mirrored
/// back here.
pub fn multi_scale_flip(
    logits_at: &dyn Fn(f64, bool) -> Tensor<4>,
    ratios: &[f64],
    mirrored: &[bool],
) -> Tensor<4> {
    assert!(
        !ratios.is_empty() && !mirrored.is_empty(),
        "at least one view is needed"
    );
    let mut sum: Option<Tensor<4>> = None;
    for &ratio in ratios {
        for &mirror in mirrored {
            let logits = logits_at(ratio, mirror).cast(DType::F32);
            let logits = if mirror { logits.flip([3]) } else { logits };
            let probabilities = softmax(logits, 1);
            sum = Some(match sum {
                Some(sum) => sum + probabilities,
                None => probabilities,
            });
        }
    }
    let views = (ratios.len() * mirrored.len()) as f64;
    let Some(sum) = sum else {
        unreachable!("there is at least one view")
    };
    sum / views
}

/// The classes of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The class of each pixel; [`IGNORE`] where a score is not finite.
    pub map: LabelMap,
    /// Pixels of which some score is not finite: NaN has no order, and an infinity stands for a sum
    /// that overflowed.
    pub not_finite: usize,
}

impl Prediction {
    /// The map, if all scores of the image `name` were finite.
    ///
    /// # Errors
    /// [`EvalError::NotFinite`] if some were not.
    pub fn finite(self, name: &str) -> Result<LabelMap, EvalError> {
        match self.not_finite {
            0 => Ok(self.map),
            found => Err(EvalError::NotFinite {
                name: name.to_owned(),
                found,
                pixels: self.map.data.len(),
            }),
        }
    }
}

/// Pixels that are decided together: what is known of them stays in the first-level cache.
const PIXELS: usize = 2048;

/// The class of the largest value at each pixel, the first where several are equal: one prediction
/// for each image of `[n, classes, h, w]`.
///
/// # Panics
/// If there are more than 255 classes or the tensor cannot be read.
pub fn argmax(scores: Tensor<4>) -> Vec<Prediction> {
    let [_, classes, h, w] = scores.dims();
    assert!(
        (1..=255).contains(&classes),
        "1 to 255 classes, not {classes}"
    );
    let data = scores.into_data().convert::<f32>();
    let values = data.as_slice::<f32>().expect("converted to f32 above");
    let area = h * w;
    values
        .chunks_exact(classes * area)
        .map(|image| {
            let mut class = vec![0u8; area];
            let parts = class.par_chunks_mut(PIXELS).enumerate();
            let not_finite = parts.map(|(part, class)| {
                let (first, count) = (part * PIXELS, class.len());
                let scores = image
                    .chunks_exact(area)
                    .map(|plane| &plane[first..][..count]);
                decide(scores, class)
            });
            Prediction {
                not_finite: not_finite.sum(),
                map: LabelMap {
                    width: w,
                    height: h,
                    data: class,
                },
            }
        })
        .collect()
}

/// The class of some pixels, given their scores class by class; none where one of them is not finite. How many these are.
fn decide<'a>(scores: impl Iterator<Item = &'a [f32]>, class: &mut [u8]) -> usize {
    // Zero times a finite value is zero.
    let mut sums = [0.0; PIXELS];
    let mut largest = [f32::NEG_INFINITY; PIXELS];
    // As wide as scores, so that the compiler takes several side by side.
    let mut found = [0u32; PIXELS];
    for (k, plane) in (0..).zip(scores) {
        let pixels = largest.iter_mut().zip(&mut found).zip(&mut sums);
        for (((largest, found), sum), &score) in pixels.zip(plane) {
            *sum += score * 0.0;
            let is_larger = score > *largest;
            *largest = if is_larger { score } else { *largest };
            *found = if is_larger { k } else { *found };
        }
    }
    for (class, found) in class.iter_mut().zip(found) {
        *class = found as u8;
    }
    let pixels = class.iter_mut().zip(sums);
    let wrong = pixels.filter(|(_, sum)| !sum.is_finite());
    wrong.map(|(class, _)| *class = IGNORE).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn a_pointwise_network_gives_the_same_logits_in_windows() {
        let image = Tensor::<4>::random([2, 3, 23, 37], Distribution::Default, &Device::flex());
        let network = |x: Tensor<4>| Tensor::cat(vec![x.clone() * 2.0, x], 1);
        let expected = network(image.clone());
        let windows = slide(&network, image, [10, 16], [7, 9]);
        let error = (windows - expected).abs().max().into_scalar::<f32>();
        assert!(error < 1e-6, "{error}");
    }

    /// Sums in the order of the windows and one division, pixel by pixel.
    fn summed(
        windows: Windows,
        classes: usize,
        value: impl Fn(usize, usize, usize) -> f32,
    ) -> Vec<f32> {
        let [height, width] = windows.size;
        let mut out = vec![0f32; classes * height * width];
        let mut counts = vec![0f32; height * width];
        for rows in windows.along(0) {
            for columns in windows.along(1) {
                // Each window gives other logits for the same pixel.
                let salt = rows.start * 31 + columns.start;
                for (y, x) in rows
                    .clone()
                    .flat_map(|y| columns.clone().map(move |x| (y, x)))
                {
                    counts[y * width + x] += 1.0;
                    for k in 0..classes {
                        out[(k * height + y) * width + x] += value(salt + k, y, x);
                    }
                }
            }
        }
        let area = height * width;
        out.iter_mut()
            .enumerate()
            .for_each(|(i, v)| *v /= counts[i % area]);
        out
    }

    #[test]
    fn bands_are_what_sums_over_whole_images_are() {
        let value = |salt: usize, y: usize, x: usize| {
            let hash = (salt * 7919 + y * 104_729 + x * 1_299_709) % 10_007;
            hash as f32 / 97.0 - 50.0
        };
        for (size, crop, stride) in [
            ([150, 37], [70, 16], [33, 9]),
            ([64, 64], [64, 64], [64, 64]),
            ([20, 30], [512, 1024], [341, 683]),
            ([201, 11], [130, 11], [1, 5]),
            ([5, 7], [2, 3], [2, 3]),
            ([1, 1], [1, 1], [1, 1]),
        ] {
            let windows = Windows { size, crop, stride };
            let window = |[rows, columns]: [Range<usize>; 2]| {
                let salt = rows.start * 31 + columns.start;
                let shape = [1, 3, rows.len(), columns.len()];
                let values = (0..3)
                    .flat_map(|k| rows.clone().map(move |y| (k, y)))
                    .flat_map(|(k, y)| columns.clone().map(move |x| value(salt + k, y, x)));
                let data = TensorData::new(values.collect::<Vec<_>>(), shape);
                Tensor::<4>::from_data(data, &Device::flex())
            };
            let expected = summed(windows, 3, value);
            let found = windows.logits(&window).into_data();
            assert_eq!(found.as_slice::<f32>().unwrap(), expected, "{windows:?}");

            let next = std::cell::Cell::new(0);
            windows.for_each_band(
                &|[rows, columns]| {
                    assert!(
                        rows.end - next.get() <= crop[0],
                        "more rows than a window has"
                    );
                    window([rows, columns])
                },
                |rows, band| {
                    assert_eq!(rows.start, next.replace(rows.end));
                    assert_eq!(band.dims(), [1, 3, rows.len(), size[1]]);
                },
            );
            assert_eq!(next.get(), size[0]);
        }
    }

    #[test]
    fn mirrored_views_are_mirrored_back() {
        let image = Tensor::<4>::random([1, 4, 5, 6], Distribution::Default, &Device::flex());
        let source = image.clone();
        let view = move |_: f64, mirror: bool| {
            if mirror {
                source.clone().flip([3])
            } else {
                source.clone()
            }
        };
        let mean = multi_scale_flip(&view, &[0.5, 1.0], &[false, true]);
        let error = (mean - softmax(image, 1)).abs().max().into_scalar::<f32>();
        assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn argmax_takes_the_first_of_equal_values() {
        let values = [[[[1.0, 5.0]], [[1.0, 2.0]], [[0.0, 5.5]]]];
        let maps = argmax(Tensor::<4>::from_floats(values, &Device::flex()));
        assert_eq!(
            (&maps[0].map.data[..], maps[0].not_finite),
            (&[0, 2][..], 0)
        );
        assert_eq!((maps[0].map.width, maps[0].map.height), (2, 1));
    }

    #[test]
    fn pixels_with_a_score_that_is_not_finite_are_counted_and_get_no_class() {
        // More pixels than are decided together, too.
        let sizes = [(1, 0), (8, 3), (37, 36), (PIXELS, 7), (PIXELS + 1, PIXELS)];
        for (size, wrong) in sizes {
            for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for plane in 0..3 {
                    let mut scores = vec![1.0; 2 * 3 * size];
                    scores[2 * size] = 2.0;
                    scores[(3 + plane) * size + wrong] = value;
                    let data = TensorData::new(scores, [2, 3, 1, size]);
                    let found = argmax(Tensor::<4>::from_data(data, &Device::flex()));
                    assert_eq!((found[0].map.data[0], found[0].not_finite), (2, 0));
                    let mut expected = vec![0; size];
                    expected[wrong] = IGNORE;
                    assert_eq!((&found[1].map.data, found[1].not_finite), (&expected, 1));
                }
            }
        }
    }
}
