//! Masks: label maps as annotators leave them.

use std::path::Path;

use png::{BitDepth, ColorType, Transformations};

use super::limits::{ImageReader, room};
use super::pending::PendingImage;
use super::png::PngFile;
use super::source::Source;
use crate::DataError;
#[cfg(feature = "tiff")]
use crate::orientation::Orientation;

/// A mask before its values are classes.
pub(crate) struct Mask {
    pub width: usize,
    pub height: usize,
    pub values: MaskValues,
    /// Whether the format may have changed values (JPEG).
    pub lossy: bool,
}

/// What a mask holds, one value or colour a pixel.
pub(crate) enum MaskValues {
    U8(Vec<u8>),
    U16(Vec<u16>),
    /// Three values a pixel.
    Rgb(Vec<u8>),
    /// Places in a palette.
    Indexed {
        data: Vec<u8>,
        palette: Vec<u8>,
    },
}

impl MaskValues {
    /// Those of a mask of `size` that is turned.
    #[cfg(feature = "tiff")]
    pub(super) fn turned(self, size: (usize, usize), orientation: Orientation) -> Self {
        match self {
            Self::U8(data) => Self::U8(orientation.turned(&data, size)),
            Self::U16(data) => Self::U16(orientation.turned(&data, size)),
            Self::Rgb(data) => {
                let pixels = data.as_chunks::<3>().0;
                Self::Rgb(orientation.turned(pixels, size).into_flattened())
            }
            Self::Indexed { data, palette } => Self::Indexed {
                data: orientation.turned(&data, size),
                palette,
            },
        }
    }
}

impl ImageReader {
    /// Reads a mask as it is: grey or palette PNG of 1, 2, 4, 8 or 16 bits, whose values are not scaled and
    /// whose palette is not looked up, PNG in colours of 8 bits, JPEG, and TIFF where the feature is on.
    /// Transparency is left out. A JPEG or a TIFF is turned the right way up, as pictures are, and a PNG is not, as in
    /// OpenCV and Pillow.
    ///
    /// # Errors
    /// As [`Self::image`], and if a PNG has colours of 16 bits.
    pub(crate) fn mask(self, path: &Path) -> Result<Mask, DataError> {
        match PendingImage::open(path, self)? {
            PendingImage::Png(_) => self.png_mask(path),
            #[cfg(feature = "tiff")]
            PendingImage::Tiff(tiff) => tiff.mask(),
            pending => {
                let lossy = matches!(pending, PendingImage::Jpeg(_));
                let image = pending.all()?;
                Ok(Mask {
                    width: image.width,
                    height: image.height,
                    values: MaskValues::Rgb(image.data),
                    lossy,
                })
            }
        }
    }

    fn png_mask(self, path: &Path) -> Result<Mask, DataError> {
        let png = PngFile::open(&Source::file(path), Transformations::IDENTITY, self)?;
        let ((color, depth), (width, height)) = (png.format(), png.size());
        let palette = png.palette().to_vec();
        if depth == BitDepth::Sixteen && color != ColorType::Grayscale {
            return Err(DataError::LabelFormat {
                path: path.to_owned(),
                expected: "a mask of one channel, or of colours of 8 bits",
                found: format!("{color:?} of 16 bits"),
            });
        }
        let bytes = png.all()?;
        let values = match (color, depth) {
            (ColorType::Grayscale, BitDepth::Sixteen) => {
                let mut values = room(path, width * height)?;
                let pairs = bytes.as_chunks().0.iter();
                values.extend(pairs.map(|&pair| u16::from_be_bytes(pair)));
                MaskValues::U16(values)
            }
            (ColorType::Rgb, _) => MaskValues::Rgb(bytes),
            (ColorType::Rgba, _) => {
                let mut colors = room(path, bytes.len() / 4 * 3)?;
                for [r, g, b, _] in bytes.as_chunks::<4>().0 {
                    colors.extend([*r, *g, *b]);
                }
                MaskValues::Rgb(colors)
            }
            (ColorType::GrayscaleAlpha, _) => {
                MaskValues::U8(bytes.chunks_exact(2).map(|pair| pair[0]).collect())
            }
            (ColorType::Indexed, _) => MaskValues::Indexed {
                data: unpacked(path, bytes, depth as usize, width)?,
                palette,
            },
            (ColorType::Grayscale, _) => {
                MaskValues::U8(unpacked(path, bytes, depth as usize, width)?)
            }
        };
        Ok(Mask {
            width,
            height,
            values,
            lossy: false,
        })
    }
}

/// One byte for each value of `bits` bits, of rows that begin with a byte of their own.
fn unpacked(path: &Path, bytes: Vec<u8>, bits: usize, width: usize) -> Result<Vec<u8>, DataError> {
    if bits == 8 {
        return Ok(bytes);
    }
    let row = (width * bits).div_ceil(8);
    let mut values = room(path, bytes.len() / row.max(1) * width)?;
    let mask = (1u8 << bits) - 1;
    for row in bytes.chunks_exact(row.max(1)) {
        values.extend((0..width).map(|x| {
            let at = x * bits;
            row[at / 8] >> (8 - bits - at % 8) & mask
        }));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::super::png::tests::save;
    use super::*;

    fn values(color: ColorType, depth: BitDepth, size: (u32, u32), data: &[u8]) -> Vec<u32> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        save(&path, size, color, depth, data);
        let mask = ImageReader::default().mask(&path).unwrap();
        assert_eq!(
            (mask.width, mask.height),
            (size.0 as usize, size.1 as usize)
        );
        match mask.values {
            MaskValues::U8(data) | MaskValues::Rgb(data) => {
                data.into_iter().map(u32::from).collect()
            }
            MaskValues::Indexed { data, palette } => {
                assert_eq!(palette, [10, 20, 30, 40, 50, 60]);
                data.into_iter().map(u32::from).collect()
            }
            MaskValues::U16(data) => data.into_iter().map(u32::from).collect(),
        }
    }

    #[test]
    fn values_of_every_depth_are_those_of_the_file() {
        let grey = ColorType::Grayscale;
        let one = [0b1010_0000, 0b1100_0000];
        assert_eq!(
            values(grey, BitDepth::One, (3, 2), &one),
            [1, 0, 1, 1, 1, 0]
        );
        let two = [0b1101_1000];
        assert_eq!(values(grey, BitDepth::Two, (3, 1), &two), [3, 1, 2]);
        let four = [0xA3, 0xF0];
        assert_eq!(values(grey, BitDepth::Four, (3, 1), &four), [10, 3, 15]);
        assert_eq!(values(grey, BitDepth::Eight, (2, 1), &[7, 255]), [7, 255]);
        let sixteen = [1, 2, 255, 255];
        assert_eq!(
            values(grey, BitDepth::Sixteen, (2, 1), &sixteen),
            [258, 65535]
        );
        let indexed = ColorType::Indexed;
        assert_eq!(
            values(indexed, BitDepth::One, (3, 1), &[0b0110_0000]),
            [0, 1, 1]
        );
        assert_eq!(
            values(ColorType::Rgba, BitDepth::Eight, (1, 1), &[1, 2, 3, 0]),
            [1, 2, 3]
        );
        let alpha = ColorType::GrayscaleAlpha;
        assert_eq!(
            values(alpha, BitDepth::Eight, (2, 1), &[4, 0, 5, 9]),
            [4, 5]
        );
    }
}
