//! What is known of single pictures and masks.

use super::Definition;
use super::finding::Finding;
use super::listing::Item;
use super::mapping::Counted;
use crate::image::PendingImage;
use crate::image::mask::MaskValues;
use crate::{Bands, DataError, ImageReader, Picture, RgbImage};

/// What is known of a picture and its mask.
pub(super) struct Facts {
    pub size: (usize, usize),
    /// Sum and sum of squares of each channel.
    pub moments: [Vec<u64>; 2],
    /// Tells contents apart, together with size and moments.
    pub checksum: u32,
    pub deep: bool,
    pub transparent: bool,
    /// Whether all pixels have one colour.
    pub blank: bool,
    pub mask: Option<MaskFacts>,
}

pub(super) struct MaskFacts {
    pub checksum: u32,
    /// Pixels of each class that occurs, and of [`IGNORE`](crate::IGNORE).
    pub classes: Vec<(u8, u64)>,
    pub values: Counted,
}

impl Definition {
    /// Reads a picture and its mask.
    pub(super) fn look_into(&self, item: &Item) -> Result<Facts, Finding> {
        let read = || -> Result<Facts, DataError> {
            let reader = ImageReader::default();
            let unreadable = |error| DataError::from(item.unreadable(&error));
            let pending = PendingImage::open_as(&item.image, reader, &self.format);
            let pending = pending.map_err(unreadable)?;
            let deep = pending.is_deep() && self.format.bits() == 8;
            let transparent = pending.drops_transparency(&self.format);
            let size = pending.size();
            let mask = match &item.mask {
                None => None,
                Some(path) => {
                    let mask = self.mask(item, reader, size)?;
                    let checksum = checksum(&mask.values);
                    let counts = self.mapping.count(path, mask)?;
                    let classes =
                        (0..=u8::MAX).map(|class| (class, counts.classes[usize::from(class)]));
                    Some(MaskFacts {
                        checksum,
                        classes: classes.filter(|(_, pixels)| *pixels > 0).collect(),
                        values: counts.values,
                    })
                }
            };
            let image = pending.picture(&self.format).map_err(unreadable)?;
            let (moments, checksum, blank) = match &image {
                Picture::Rgb(image) => {
                    let pixels = image.data.as_chunks::<3>().0;
                    let blank = pixels.iter().all(|pixel| *pixel == pixels[0]);
                    let moments = moments(image).map(Vec::from);
                    (moments, crc32fast::hash(&image.data), blank)
                }
                Picture::Bands(bands) => {
                    let mut pixels = bands.data.chunks_exact(bands.channels);
                    let first = pixels.clone().next();
                    let blank = pixels.all(|pixel| Some(pixel) == first);
                    (
                        moments_of_bands(bands),
                        checksum_of_words(&bands.data),
                        blank,
                    )
                }
            };
            Ok(Facts {
                size,
                moments,
                checksum,
                deep,
                transparent,
                blank,
                mask,
            })
        };
        read().map_err(|error| match error {
            DataError::Finding(finding) => *finding,
            other => item.unreadable(&other),
        })
    }
}

fn checksum(values: &MaskValues) -> u32 {
    match values {
        MaskValues::U8(data) | MaskValues::Rgb(data) | MaskValues::Indexed { data, .. } => {
            crc32fast::hash(data)
        }
        MaskValues::U16(data) => checksum_of_words(data),
    }
}

fn checksum_of_words(data: &[u16]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in data.chunks(4096) {
        let bytes: Vec<u8> = part.iter().flat_map(|v| v.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.finalize()
}

/// Sum and sum of squares of each channel.
fn moments_of_bands(bands: &Bands) -> [Vec<u64>; 2] {
    let mut all = [vec![0u64; bands.channels], vec![0u64; bands.channels]];
    let [sums, squares] = &mut all;
    for pixel in bands.data.chunks_exact(bands.channels) {
        for ((v, sum), square) in pixel.iter().zip(sums.iter_mut()).zip(squares.iter_mut()) {
            let v = u64::from(*v);
            *sum += v;
            *square += v * v;
        }
    }
    all
}

/// Bytes that a sum of squares in 32 bits has room for, in each of its lanes.
const PART: usize = LANES * 4096;
const LANES: usize = 48;

/// Sum and sum of squares of each channel.
fn moments(image: &RgbImage) -> [[u64; 3]; 2] {
    let mut all = [[0u64; 3]; 2];
    for part in image.data.chunks(PART) {
        let mut lanes = [[0u32; LANES]; 2];
        let into = &mut lanes;
        vectorized!(move into => add_part(part, into));
        let (blocks, rest) = part.as_chunks::<LANES>();
        debug_assert!(blocks.len() <= 4096);
        for (all, lanes) in all.iter_mut().zip(&lanes) {
            lanes
                .iter()
                .enumerate()
                .for_each(|(i, v)| all[i % 3] += u64::from(*v));
        }
        for (i, &v) in rest.iter().enumerate() {
            let v = u64::from(v);
            all[0][i % 3] += v;
            all[1][i % 3] += v * v;
        }
    }
    all
}

#[inline(always)]
fn add_part(part: &[u8], [sums, squares]: &mut [[u32; LANES]; 2]) {
    for block in part.as_chunks::<LANES>().0 {
        for ((&v, sum), square) in block.iter().zip(sums.iter_mut()).zip(squares.iter_mut()) {
            let v = u32::from(v);
            *sum += v;
            *square += v * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_each_channel() {
        let (width, height) = (401, 331);
        let data: Vec<u8> = (0..width * height * 3)
            .map(|i| (i * 7919 % 256) as u8)
            .collect();
        let naive: [[u64; 3]; 2] = [1, 2].map(|power| {
            [0, 1, 2].map(|c| {
                data.iter()
                    .skip(c)
                    .step_by(3)
                    .map(|&v| u64::from(v).pow(power))
                    .sum()
            })
        });
        assert_eq!(
            moments(&RgbImage {
                width,
                height,
                data
            }),
            naive
        );
    }
}
