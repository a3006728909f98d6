//! The training pipeline: resize, crop, flip, distort, normalise, pad.

use std::ops::Range;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::resize::{count_nearest, resize_bilinear_mirrored, resize_nearest_into, source_rows};
use crate::{DataError, IGNORE, LabelMap, Photometric, Plane, RgbImage, Sample, scaled_size};

/// Mean of each channel of ImageNet, RGB, on values from 0 to 255.
pub const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// Standard deviation of each channel of ImageNet, RGB.
pub const STD: [f32; 3] = [58.395, 57.12, 57.375];

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropBox {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Width.
    pub width: usize,
    /// Height.
    pub height: usize,
}

/// Cuts `region` out.
///
/// # Panics
/// If `region` leaves the plane.
pub fn crop<const C: usize>(plane: &Plane<C>, region: CropBox) -> Plane<C> {
    let columns = region.left * C..(region.left + region.width) * C;
    let data = (region.top..region.top + region.height)
        .flat_map(|y| plane.row(y)[columns.clone()].iter().copied())
        .collect();
    Plane {
        width: region.width,
        height: region.height,
        data,
    }
}

/// Mirrors left and right in place.
pub fn flip<const C: usize>(plane: &mut Plane<C>) {
    for row in plane.data.chunks_exact_mut(plane.width * C) {
        row.reverse();
        row.chunks_exact_mut(C).for_each(|pixel| pixel.reverse());
    }
}

/// `(value - mean) / std` of each channel in f32, channel by channel: `[3, height, width]`.
pub fn normalize(image: &RgbImage) -> Vec<f32> {
    let mut planes = vec![0.0; 3 * image.width * image.height];
    normalize_into(image, &mut planes, (image.width, image.height));
    planes
}

/// [`normalize`] into the upper left corner of three planes of `size` (width, height).
fn normalize_into(image: &RgbImage, planes: &mut [f32], size: (usize, usize)) {
    let (red, rest) = planes.split_at_mut(size.0 * size.1);
    let (green, blue) = rest.split_at_mut(size.0 * size.1);
    for y in 0..image.height {
        let out = y * size.0..y * size.0 + image.width;
        let out = [
            &mut red[out.clone()],
            &mut green[out.clone()],
            &mut blue[out],
        ];
        vectorized!(move out => normalize_row(image.row(y), out));
    }
}

#[inline(always)]
fn normalize_row(row: &[u8], [red, green, blue]: [&mut [f32]; 3]) {
    let pixels = row.as_chunks::<3>().0;
    for (((pixel, r), g), b) in pixels.iter().zip(red).zip(green).zip(blue) {
        *r = (pixel[0] as f32 - MEAN[0]) / STD[0];
        *g = (pixel[1] as f32 - MEAN[1]) / STD[1];
        *b = (pixel[2] as f32 - MEAN[2]) / STD[2];
    }
}

/// Extends `channels` planes of `from` (width, height) to `to` with `value`, at right and bottom.
pub fn pad<T: Copy>(
    planes: &[T],
    channels: usize,
    from: (usize, usize),
    to: (usize, usize),
    value: T,
) -> Vec<T> {
    let mut out = vec![value; channels * to.0 * to.1];
    for c in 0..channels {
        for y in 0..from.1 {
            let source = (c * from.1 + y) * from.0;
            let target = (c * to.1 + y) * to.0;
            out[target..target + from.0].copy_from_slice(&planes[source..source + from.0]);
        }
    }
    out
}

/// A sample as the network takes it.
#[derive(Clone, Debug)]
pub struct Transformed {
    /// `[3, height, width]`, normalised, padded with 0.
    pub image: Vec<f32>,
    /// `[height, width]` trainIds, padded with 255.
    pub label: Vec<u8>,
}

/// Every random choice of one pass through a [`Pipeline`]: the same choices give the same values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    /// Width and height after the resize, in pixels.
    pub size: (usize, usize),
    /// What is kept of it.
    pub region: CropBox,
    /// Whether it is mirrored left to right.
    pub flip: bool,
    /// How its colours change; the default leaves them.
    pub photometric: Photometric,
}

impl Choices {
    /// Resizes, cuts, mirrors and distorts: the 8-bit half of the pipeline.
    ///
    /// # Panics
    /// If the region does not lie inside the size.
    pub fn apply(&self, image: &RgbImage, label: &LabelMap) -> (RgbImage, LabelMap) {
        let mut map = LabelMap::filled(self.region.width, self.region.height, [0]);
        let stride = map.width;
        resize_nearest_into(
            label,
            self.size,
            self.region,
            self.flip,
            &mut map.data,
            stride,
        );
        (self.apply_image(image), map)
    }

    fn apply_image(&self, image: &RgbImage) -> RgbImage {
        let mut out = resize_bilinear_mirrored(image, self.size, self.region, self.flip);
        self.photometric.apply(&mut out);
        out
    }

    /// The rows of a picture `height` high that these choices read.
    pub fn source_rows(&self, height: usize) -> Range<usize> {
        let wanted = self.region.top..self.region.top + self.region.height;
        source_rows(height, self.size.1, wanted)
    }
}

/// The published training pipeline (mmsegmentation `configs/_base_/datasets/cityscapes.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Width and height that the ratio scales, in pixels.
    pub scale: (usize, usize),
    /// Bounds of the ratio.
    pub ratio: (f64, f64),
    /// Height and width of the crop, in pixels.
    pub crop: (usize, usize),
    /// A crop is drawn again, at most ten times, while one class has this share of it or more.
    pub max_category_share: f64,
    /// Probability of mirroring.
    pub flip: f64,
    /// Whether brightness, contrast, saturation and hue are distorted.
    pub photometric: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            scale: (2048, 1024),
            ratio: (0.5, 2.0),
            crop: (512, 1024),
            max_category_share: 0.75,
            flip: 0.5,
            photometric: true,
        }
    }
}

impl Pipeline {
    /// Panics, naming the value, if a value makes no sense.
    pub(crate) fn check(&self) {
        let positive = |pair: (usize, usize)| pair.0 > 0 && pair.1 > 0;
        assert!(positive(self.crop), "the crop {:?} is empty", self.crop);
        assert!(positive(self.scale), "the scale {:?} is empty", self.scale);
        let (low, high) = self.ratio;
        assert!(
            low > 0.0 && low <= high && high.is_finite(),
            "the ratio {low} to {high} is no range of positive numbers"
        );
        assert!(
            (0.0..=1.0).contains(&self.flip),
            "the probability of a flip is {}, not in 0 to 1",
            self.flip
        );
    }

    /// The size that an image of `size` (width, height) has after a resize by `ratio`.
    pub fn resized(&self, size: (usize, usize), ratio: f64) -> (usize, usize) {
        let bound = |edge: usize| ((edge as f64 * ratio) as usize).max(1);
        scaled_size(size, (bound(self.scale.0), bound(self.scale.1)))
    }

    /// Draws every choice for an image that has `label`.
    pub fn choose(&self, label: &LabelMap, rng: &mut impl Rng) -> Choices {
        let ratio = match self.ratio.0 < self.ratio.1 {
            true => rng.random_range(self.ratio.0..self.ratio.1),
            false => self.ratio.0,
        };
        let size = self.resized((label.width, label.height), ratio);
        let region = self.choose_region(label, size, rng);
        Choices {
            size,
            region,
            flip: rng.random_bool(self.flip),
            photometric: match self.photometric {
                true => Photometric::sample(rng),
                false => Photometric::default(),
            },
        }
    }

    fn choose_region(&self, label: &LabelMap, size: (usize, usize), rng: &mut impl Rng) -> CropBox {
        let (width, height) = (self.crop.1.min(size.0), self.crop.0.min(size.1));
        let mut draw = || CropBox {
            top: rng.random_range(0..=size.1 - height),
            left: rng.random_range(0..=size.0 - width),
            width,
            height,
        };
        let mut region = draw();
        if self.max_category_share >= 1.0 {
            return region;
        }
        // As the peer: the last box is taken unchecked.
        for _ in 0..10 {
            if self.is_mixed(count_nearest(label, size, region)) {
                break;
            }
            region = draw();
        }
        region
    }

    fn is_mixed(&self, mut counts: [u64; 256]) -> bool {
        counts[IGNORE as usize] = 0;
        let total: u64 = counts.iter().sum();
        let largest = counts.iter().max().copied().unwrap_or(0);
        let classes = counts.iter().filter(|&&count| count > 0).count();
        classes > 1 && (largest as f64 / total as f64) < self.max_category_share
    }

    /// Applies `choices`, normalises and pads to the crop.
    ///
    /// # Panics
    /// If the region of `choices` is larger than the crop or leaves the resized image.
    pub fn replay(&self, image: &RgbImage, label: &LabelMap, choices: &Choices) -> Transformed {
        let area = self.crop.0 * self.crop.1;
        let mut out = Transformed {
            image: vec![0.0; 3 * area],
            label: vec![IGNORE; area],
        };
        self.replay_into(image, label, choices, &mut out.image, &mut out.label);
        out
    }

    /// [`Self::replay`] into planes that hold the padding, 0 and 255, already.
    pub(crate) fn replay_into(
        &self,
        image: &RgbImage,
        label: &LabelMap,
        choices: &Choices,
        planes: &mut [f32],
        map: &mut [u8],
    ) {
        let (height, width) = self.crop;
        let region = choices.region;
        assert!(
            region.width <= width && region.height <= height,
            "the region {region:?} is larger than the crop of {width}x{height}"
        );
        normalize_into(&choices.apply_image(image), planes, (width, height));
        resize_nearest_into(label, choices.size, region, choices.flip, map, width);
    }

    /// Draws every choice from `rng` and applies it.
    ///
    /// # Errors
    /// If the sample has no label map.
    pub fn apply(&self, sample: &Sample, rng: &mut impl Rng) -> Result<Transformed, DataError> {
        let Some(label) = &sample.label else {
            return Err(DataError::Unlabelled {
                name: sample.name.clone(),
            });
        };
        let choices = self.choose(label, rng);
        Ok(self.replay(&sample.image, label, &choices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dataset, SyntheticStreets};
    use rand::SeedableRng;

    #[test]
    fn mirroring_twice_changes_nothing_and_keeps_channels() {
        let image = RgbImage {
            width: 2,
            height: 1,
            data: vec![1, 2, 3, 4, 5, 6],
        };
        let mut mirrored = image.clone();
        flip(&mut mirrored);
        assert_eq!(mirrored.data, [4, 5, 6, 1, 2, 3]);
        flip(&mut mirrored);
        assert_eq!(mirrored, image);
    }

    #[test]
    fn small_images_are_padded_with_zero_and_255() {
        let sample = SyntheticStreets::new(64, 32, 1, 7).get(0).unwrap();
        let pipeline = Pipeline {
            scale: (64, 32),
            ratio: (1.0, 1.0),
            crop: (40, 80),
            ..Pipeline::default()
        };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let out = pipeline.apply(&sample, &mut rng).unwrap();
        assert_eq!(out.image.len(), 3 * 40 * 80);
        assert_eq!(out.label[79], IGNORE);
        assert_eq!(out.image[79], 0.0);
        assert!(out.label[..64].iter().all(|&id| id != IGNORE));
        assert!(out.label[39 * 80..].iter().all(|&id| id == IGNORE));
    }
}
