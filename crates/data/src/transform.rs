//! The training pipeline: resize, crop, flip, distort, normalise, pad.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::augment::{Augment, Value, crop_around_class, happens};
use crate::bands::BandRows;
use crate::resize::count_nearest;
use crate::{
    Choices, Crop, CropBox, DataError, IGNORE, LabelMap, PartialImage, Photometric, PictureFormat,
    PictureRef, Plane, RgbImage, Sample, Scale, scaled_size,
};

/// Pixels of the longest side that pictures are resized to, so that areas stay below 2^63.
const MAX_SIDE: f64 = (1u64 << 31) as f64;

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

/// `(value - mean) / std` of each channel in f32, with mean and standard deviation of ImageNet, channel by
/// channel: `[3, height, width]`. [`PictureFormat::normalize`] takes others.
pub fn normalize(image: &RgbImage) -> Vec<f32> {
    PictureFormat::default().normalize(image)
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

/// The part of a picture of `size` (width, height) that begins at `origin`.
#[derive(Clone, Copy)]
struct Part<'a> {
    image: PictureRef<'a>,
    origin: (usize, usize),
    size: (usize, usize),
}

/// Computes one row of `region` after the other and gives each to `put`.
fn each_row<V: Value>(
    region: CropBox,
    channels: usize,
    mut rows: impl FnMut(usize, &mut [V]),
    mut put: impl FnMut(usize, &[V]),
) {
    let mut row = vec![V::default(); region.width * channels];
    for y in 0..region.height {
        rows(y, &mut row);
        put(y, &row);
    }
}

/// What gives the rows of a crop that there is already.
fn rows_of<V: Copy>(crop: &[V]) -> impl FnMut(usize, &mut [V]) + '_ {
    |y, row| row.copy_from_slice(&crop[y * row.len()..][..row.len()])
}

/// A sample as the network takes it.
#[derive(Clone, Debug)]
pub struct Transformed {
    /// `[channels, height, width]`, normalised, padded with 0.
    pub image: Vec<f32>,
    /// `[height, width]` trainIds, padded with 255.
    pub label: Vec<u8>,
}

/// The published training pipeline (mmsegmentation `configs/_base_/datasets/cityscapes.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// What the ratio scales.
    pub scale: Scale,
    /// Bounds of the ratio.
    pub ratio: (f64, f64),
    /// What is cut out.
    pub crop: Crop,
    /// A crop is drawn again, at most ten times, while one class has this share of it or more.
    pub max_category_share: f64,
    /// Probability of mirroring.
    pub flip: f64,
    /// Whether brightness, contrast, saturation and hue of RGB of 8 bits are distorted; other pictures stay as they
    /// are.
    pub photometric: bool,
    /// What pictures hold, and what they are normalised by.
    #[serde(default)]
    pub format: PictureFormat,
    /// What else is done.
    #[serde(default)]
    pub augment: Augment,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            scale: Scale {
                width: 2048,
                height: 1024,
            },
            ratio: (0.5, 2.0),
            crop: Crop {
                height: 512,
                width: 1024,
            },
            max_category_share: 0.75,
            flip: 0.5,
            photometric: true,
            format: PictureFormat::default(),
            augment: Augment::default(),
        }
    }
}

impl Pipeline {
    /// Refuses values that make no sense: an empty crop or scale, a ratio that is not positive or
    /// makes sides of more than 2^31 pixels, a probability outside 0 to 1.
    ///
    /// # Errors
    /// [`DataError::Pipeline`] with the name of the value.
    pub fn check(&self) -> Result<(), DataError> {
        let refused = |name, expected, found: &dyn std::fmt::Debug| {
            Err(DataError::Pipeline {
                name,
                expected,
                found: format!("{found:?}"),
            })
        };
        let Self { crop, scale, .. } = self;
        if crop.height == 0 || crop.width == 0 {
            return refused("crop", "at least one pixel", crop);
        }
        if scale.width == 0 || scale.height == 0 {
            return refused("scale", "at least one pixel", scale);
        }
        let (low, high) = self.ratio;
        let longest = scale.width.max(scale.height) as f64 * high;
        if !(low > 0.0 && low <= high && longest <= MAX_SIDE) {
            let expected = "a range of positive numbers that scale to at most 2^31 pixels a side";
            return refused("ratio", expected, &self.ratio);
        }
        if self.max_category_share.is_nan() {
            return refused("max_category_share", "a number", &self.max_category_share);
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return refused("flip", "a probability from 0 to 1", &self.flip);
        }
        if let Some((name, expected, found)) = self.augment.wrong() {
            return refused(name, expected, &found);
        }
        Ok(())
    }

    /// The size that an image of `size` (width, height) has after a resize by `ratio`.
    pub fn resized(&self, size: (usize, usize), ratio: f64) -> (usize, usize) {
        let bound = |edge: usize| ((edge as f64 * ratio) as usize).max(1);
        scaled_size(size, (bound(self.scale.width), bound(self.scale.height)))
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
            photometric: match self.photometric && self.format.is_rgb() {
                true => Photometric::sample(rng),
                false => Photometric::default(),
            },
            augmented: self.augment.choose((region.width, region.height), rng),
        }
    }

    fn choose_region(&self, label: &LabelMap, size: (usize, usize), rng: &mut impl Rng) -> CropBox {
        let (width, height) = (self.crop.width.min(size.0), self.crop.height.min(size.1));
        if happens(rng, self.augment.class_crop)
            && let Some(region) = crop_around_class(label, size, (width, height), rng)
        {
            return region;
        }
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
    /// If the region of `choices` is larger than the crop or leaves the resized image, or the picture has other
    /// channels than the pipeline.
    pub fn replay<'a>(
        &self,
        image: impl Into<PictureRef<'a>>,
        label: &LabelMap,
        choices: &Choices,
    ) -> Transformed {
        let image = image.into();
        let part = Part {
            image,
            origin: (0, 0),
            size: image.size(),
        };
        self.transformed(|planes, map| self.fill(part, label, choices, planes, map))
    }

    /// [`Self::replay`] of a picture of which only a part was read.
    ///
    /// # Panics
    /// As [`Self::replay`], and if the part lacks some of [`Choices::source_region`].
    pub fn replay_part(
        &self,
        image: &PartialImage,
        label: &LabelMap,
        choices: &Choices,
    ) -> Transformed {
        self.transformed(|planes, map| self.replay_part_into(image, label, choices, planes, map))
    }

    /// [`Self::replay_part`] into planes that hold the padding, 0 and 255, already.
    pub(crate) fn replay_part_into(
        &self,
        image: &PartialImage,
        label: &LabelMap,
        choices: &Choices,
        planes: &mut [f32],
        map: &mut [u8],
    ) {
        let part = Part {
            image: (&image.image).into(),
            origin: image.origin,
            size: image.size,
        };
        self.fill(part, label, choices, planes, map);
    }

    /// What `fill` makes of the padding.
    fn transformed(&self, fill: impl FnOnce(&mut [f32], &mut [u8])) -> Transformed {
        let area = self.crop.height * self.crop.width;
        let mut out = Transformed {
            image: vec![0.0; self.format.channels() * area],
            label: vec![IGNORE; area],
        };
        fill(&mut out.image, &mut out.label);
        out
    }

    /// Row by row, so that all steps find a row in the cache.
    fn fill(
        &self,
        part: Part<'_>,
        label: &LabelMap,
        choices: &Choices,
        planes: &mut [f32],
        map: &mut [u8],
    ) {
        let Crop { height, width } = self.crop;
        let region = choices.region;
        assert!(
            region.width <= width && region.height <= height,
            "the region {region:?} is larger than the crop of {width}x{height}"
        );
        let Part {
            image,
            origin,
            size,
        } = part;
        let channels = self.format.channels();
        assert_eq!(image.channels(), channels, "channels of a picture");
        let (format, to) = (&self.format, (width, height));
        let plain = choices.augmented.is_none();
        match image {
            PictureRef::Rgb(image) => {
                let rows = choices.image_rows(image, origin, size);
                let put = |y, row: &[u8]| format.normalize_rgb(row, y, planes, to);
                match plain {
                    true => each_row(region, 3, rows, put),
                    false => {
                        let crop = choices.augmented_rgb(rows);
                        each_row(region, 3, rows_of(&crop), put);
                    }
                }
            }
            PictureRef::Bands(bands) => {
                let (new, flip) = (choices.size, choices.flip);
                let mut rows = BandRows::new(bands, origin, size, new, region, flip);
                let rows = |y, row: &mut [u16]| rows.row(y, row);
                let put = |y, row: &[u16]| format.normalize_row(row, y, planes, to);
                match plain {
                    true => each_row(region, channels, rows, put),
                    false => {
                        let largest = format.largest();
                        let crop = choices.augmented_crop(channels, largest, rows, |_| ());
                        each_row(region, channels, rows_of(&crop), put);
                    }
                }
            }
        }
        choices.label_into(label, map, width);
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
    use crate::{Augmented, Dataset, SyntheticStreets};
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
    fn the_part_that_choices_read_is_enough() {
        let sample = SyntheticStreets::new(128, 64, 1, 3).get(0).unwrap();
        let label = sample.label.unwrap();
        let pipeline = Pipeline {
            scale: "128x64".parse().unwrap(),
            crop: "32x48".parse().unwrap(),
            ..Pipeline::default()
        };
        for seed in 0..40 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let choices = pipeline.choose(&label, &mut rng);
            let region = choices.source_region((128, 64));
            let part = PartialImage {
                image: PictureRef::from(&sample.image).cropped(region),
                origin: (region.left, region.top),
                size: (128, 64),
            };
            let from_part = pipeline.replay_part(&part, &label, &choices);
            let from_whole = pipeline.replay(&sample.image, &label, &choices);
            assert!(from_part.image == from_whole.image, "{choices:?}");
            assert_eq!(from_part.label, from_whole.label);
        }
    }

    #[test]
    #[should_panic(expected = "lacks some of")]
    fn a_part_that_is_too_small_is_refused() {
        let pipeline = Pipeline::default();
        let label = LabelMap::filled(2048, 1024, [0]);
        let choices = Choices {
            size: (2048, 1024),
            region: CropBox::whole((1024, 512)),
            flip: false,
            photometric: Photometric::default(),
            augmented: Augmented::default(),
        };
        let part = PartialImage {
            image: RgbImage::filled(1024, 511, [0; 3]).into(),
            origin: (0, 0),
            size: (2048, 1024),
        };
        pipeline.replay_part(&part, &label, &choices);
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let (nan, most) = (f64::NAN, f64::MAX);
        for ratio in [
            (0.0, 1.0),
            (2.0, 1.0),
            (1.0, f64::INFINITY),
            (nan, 1.0),
            (1.0, most),
        ] {
            let pipeline = Pipeline {
                ratio,
                ..Pipeline::default()
            };
            let message = pipeline.check().unwrap_err().to_string();
            assert!(message.starts_with("ratio: expected"), "{message}");
        }
        let check = |change: fn(&mut Pipeline), name: &str| {
            let mut pipeline = Pipeline::default();
            change(&mut pipeline);
            let message = pipeline.check().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        };
        check(|p| p.crop.width = 0, "crop: expected");
        check(|p| p.scale.height = 0, "scale: expected");
        check(|p| p.scale.width = usize::MAX, "ratio: expected");
        check(|p| p.flip = 1.5, "flip: expected");
        check(
            |p| p.max_category_share = f64::NAN,
            "max_category_share: expected",
        );
        assert!(Pipeline::default().check().is_ok());
    }

    #[test]
    fn small_images_are_padded_with_zero_and_255() {
        let sample = SyntheticStreets::new(64, 32, 1, 7).get(0).unwrap();
        let pipeline = Pipeline {
            scale: "64x32".parse().unwrap(),
            ratio: (1.0, 1.0),
            crop: "40x80".parse().unwrap(),
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
