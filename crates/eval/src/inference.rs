//! Sliding-window and multi-scale inference over any network.

use burn::tensor::{DType, Tensor, TensorData, activation::softmax};
use halfseg_data::{IGNORE, LabelMap};

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
    assert!(
        crop.iter().chain(&stride).all(|&v| v > 0),
        "crop and stride must not be 0"
    );
    assert!(
        stride[0] <= crop[0] && stride[1] <= crop[1],
        "windows of {crop:?} at a stride of {stride:?} leave gaps"
    );
    let [n, _, height, width] = image.dims();
    let starts = |size: usize, crop: usize, stride: usize| -> Vec<usize> {
        let steps = size.saturating_sub(crop).div_ceil(stride) + 1;
        (0..steps)
            .map(|i| (i * stride).min(size.saturating_sub(crop)))
            .collect()
    };
    let device = image.device();
    let mut sums: Option<Tensor<4>> = None;
    let mut counts = vec![0f32; height * width];
    for &y in &starts(height, crop[0], stride[0]) {
        for &x in &starts(width, crop[1], stride[1]) {
            let (bottom, right) = ((y + crop[0]).min(height), (x + crop[1]).min(width));
            let logits = network(image.clone().slice([0..n, 0..3, y..bottom, x..right]));
            let classes = logits.dims()[1];
            let window = [0..n, 0..classes, y..bottom, x..right];
            let all = sums.unwrap_or_else(|| {
                Tensor::zeros([n, classes, height, width], (&device, logits.dtype()))
            });
            let part = all.clone().slice(window.clone()) + logits;
            sums = Some(all.slice_assign(window, part));
            for row in y..bottom {
                counts[row * width + x..row * width + right]
                    .iter_mut()
                    .for_each(|c| *c += 1.0);
            }
        }
    }
    let counts = Tensor::<1>::from_data(TensorData::new(counts, [height * width]), &device);
    let Some(sums) = sums else {
        unreachable!("there is at least one window")
    };
    sums / counts.reshape([1, 1, height, width])
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
            let mut best = image[..area].to_vec();
            let mut class = vec![0u8; area];
            for (k, plane) in image.chunks_exact(area).enumerate().skip(1) {
                for ((best, class), &value) in best.iter_mut().zip(&mut class).zip(plane) {
                    if value > *best {
                        *best = value;
                        *class = k as u8;
                    }
                }
            }
            let not_finite = ignore_not_finite(image, &mut class);
            Prediction {
                map: LabelMap {
                    width: w,
                    height: h,
                    data: class,
                },
                not_finite,
            }
        })
        .collect()
}

/// Takes the class from pixels with a score that is not finite, and counts them.
fn ignore_not_finite(scores: &[f32], class: &mut [u8]) -> usize {
    // Zero times a finite value is zero; sums of eight, so that the compiler takes them side by side.
    let (blocks, rest) = scores.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for block in blocks {
        sums.iter_mut()
            .zip(block)
            .for_each(|(sum, v)| *sum += v * 0.0);
    }
    if sums.iter().chain(rest).all(|v| v.is_finite()) {
        return 0;
    }
    let mut finite = vec![true; class.len()];
    for plane in scores.chunks_exact(class.len()) {
        finite
            .iter_mut()
            .zip(plane)
            .for_each(|(finite, v)| *finite &= v.is_finite());
    }
    let wrong = class.iter_mut().zip(finite).filter(|(_, finite)| !finite);
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
        // More pixels than one block, so that each place in it and the rest are met.
        for (size, wrong) in [(1, 0), (8, 3), (37, 36), (40, 0), (41, 40)] {
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
