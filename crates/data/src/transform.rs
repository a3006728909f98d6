//! The training pipeline: resize, crop, flip, distort, normalise, pad.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::{DataError, IGNORE, LabelMap, Photometric, Plane, RgbImage, Sample};
use crate::{resize_bilinear, resize_nearest, scaled_size};

/// Mean of each channel of ImageNet, RGB, on values from 0 to 255.
pub const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// Standard deviation of each channel of ImageNet, RGB.
pub const STD: [f32; 3] = [58.395, 57.12, 57.375];

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    let area = image.width * image.height;
    let mut planes = vec![0.0; 3 * area];
    for (c, plane) in planes.chunks_exact_mut(area.max(1)).enumerate() {
        let table: [f32; 256] = std::array::from_fn(|v| (v as f32 - MEAN[c]) / STD[c]);
        for (out, pixel) in plane.iter_mut().zip(image.data.chunks_exact(3)) {
            *out = table[pixel[c] as usize];
        }
    }
    planes
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
    /// Draws the parameters from `rng` and applies them.
    ///
    /// # Errors
    /// If the sample has no label map.
    pub fn apply(&self, sample: &Sample, rng: &mut impl Rng) -> Result<Transformed, DataError> {
        let Some(label) = &sample.label else {
            return Err(DataError::Worker(format!(
                "{}: training needs a label map",
                sample.name
            )));
        };
        let image = &sample.image;
        let ratio = match self.ratio.0 < self.ratio.1 {
            true => rng.random_range(self.ratio.0..self.ratio.1),
            false => self.ratio.0,
        };
        let bound = (
            ((self.scale.0 as f64 * ratio) as usize).max(1),
            ((self.scale.1 as f64 * ratio) as usize).max(1),
        );
        let size = scaled_size((image.width, image.height), bound);
        let region = self.draw_crop(label, size, rng);
        let mut image = resize_bilinear(image, size, region);
        let mut label = resize_nearest(label, size, region);
        if rng.random_bool(self.flip) {
            flip(&mut image);
            flip(&mut label);
        }
        if self.photometric {
            Photometric::sample(rng).apply(&mut image);
        }
        let (from, to) = ((region.width, region.height), (self.crop.1, self.crop.0));
        Ok(Transformed {
            image: pad(&normalize(&image), 3, from, to, 0.0),
            label: pad(&label.data, 1, from, to, IGNORE),
        })
    }

    fn draw_crop(&self, label: &LabelMap, size: (usize, usize), rng: &mut impl Rng) -> CropBox {
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
            if self.is_mixed(&resize_nearest(label, size, region)) {
                break;
            }
            region = draw();
        }
        region
    }

    fn is_mixed(&self, label: &LabelMap) -> bool {
        let mut counts = [0u64; 256];
        label.data.iter().for_each(|&id| counts[id as usize] += 1);
        counts[IGNORE as usize] = 0;
        let (total, largest) = (
            counts.iter().sum::<u64>(),
            counts.iter().max().unwrap_or(&0),
        );
        let classes = counts.iter().filter(|&&count| count > 0).count();
        classes > 1 && (*largest as f64) < self.max_category_share * total as f64
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
