//! Resizing pictures of any number of channels as OpenCV does it on 16-bit data.

use crate::resize::{Lines, check_region, neighbours, positions};
use crate::{Bands, CropBox, Picture, PictureRef, resize_bilinear};

/// The two neighbours of an output column, as places of their first channels, and the weight of the second.
#[derive(Clone, Copy)]
struct Column {
    at: usize,
    next: usize,
    weight: f32,
}

/// A bilinear resize that computes one row after the other. Weights and sums are f32, and values are rounded to the
/// nearest, ties to even; so are those of 8 bits, which OpenCV computes in integers, at most one step off.
pub(crate) struct BandRows<'a> {
    bands: &'a Bands,
    first: usize,
    heights: (usize, usize),
    top: usize,
    columns: Vec<Column>,
    lines: Lines<f32>,
}

impl<'a> BandRows<'a> {
    /// As `Bilinear::new`.
    pub(crate) fn new(
        bands: &'a Bands,
        origin: (usize, usize),
        size: (usize, usize),
        to: (usize, usize),
        region: CropBox,
        mirrored: bool,
    ) -> Self {
        check_region(region, to);
        let columns = positions(region.left..region.left + region.width, mirrored).map(|x| {
            let (at, next, weight) = neighbours(x, size.0, to.0);
            Column {
                at: (at - origin.0) * bands.channels,
                next: (next - origin.0) * bands.channels,
                weight,
            }
        });
        Self {
            bands,
            first: origin.1,
            heights: (size.1, to.1),
            top: region.top,
            columns: columns.collect(),
            lines: Lines::new(region.width * bands.channels),
        }
    }

    /// Row `i` of the region, into `width * channels` values.
    pub(crate) fn row(&mut self, i: usize, out: &mut [u16]) {
        let (at, next, weight) = neighbours(self.top + i, self.heights.0, self.heights.1);
        let lines = self.lines.at([at, next], |y, sums| {
            let row = self.bands.row(y - self.first);
            horizontal(row, &self.columns, self.bands.channels, sums);
        });
        for ((out, above), below) in out.iter_mut().zip(lines[0]).zip(lines[1]) {
            *out = (above * (1.0 - weight) + below * weight).round_ties_even() as u16;
        }
    }
}

fn horizontal(row: &[u16], columns: &[Column], channels: usize, out: &mut [f32]) {
    for (column, out) in columns.iter().zip(out.chunks_exact_mut(channels)) {
        let values = row[column.at..].iter().zip(&row[column.next..]);
        for ((a, b), out) in values.zip(out) {
            *out = f32::from(*a) * (1.0 - column.weight) + f32::from(*b) * column.weight;
        }
    }
}

impl PictureRef<'_> {
    /// Bilinear resize to `to` (width, height).
    pub fn resized(self, to: (usize, usize)) -> Picture {
        let all = CropBox::whole(to);
        match self {
            Self::Rgb(image) => resize_bilinear(image, to, all).into(),
            Self::Bands(bands) => {
                let row = to.0 * bands.channels;
                let mut data = vec![0; row * to.1];
                let size = (bands.width, bands.height);
                let mut rows = BandRows::new(bands, (0, 0), size, to, all, false);
                for (y, out) in data.chunks_exact_mut(row.max(1)).enumerate() {
                    rows.row(y, out);
                }
                Picture::Bands(Bands {
                    width: to.0,
                    height: to.1,
                    channels: bands.channels,
                    data,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RgbImage;

    /// At most a step from the integers of 8 bits, in every channel.
    #[test]
    fn bands_are_resized_as_colors_are() {
        let (width, height) = (13, 9);
        let data: Vec<u8> = (0..width * height * 3)
            .map(|i| (i * 7919 % 251) as u8)
            .collect();
        let bands = Bands {
            width,
            height,
            channels: 3,
            data: data.iter().map(|v| u16::from(*v)).collect(),
        };
        let image = RgbImage {
            width,
            height,
            data,
        };
        for to in [(13, 9), (20, 30), (7, 5), (1, 1)] {
            let both = [PictureRef::from(&image), (&bands).into()].map(|p| p.resized(to));
            let [Picture::Rgb(image), Picture::Bands(bands)] = both else {
                panic!("pictures keep their kind")
            };
            assert_eq!((bands.width, bands.height), to);
            for (a, b) in image.data.iter().zip(&bands.data) {
                assert!(u16::from(*a).abs_diff(*b) <= 1, "{a} {b} at {to:?}");
            }
        }
    }
}
