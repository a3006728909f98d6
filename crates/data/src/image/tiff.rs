//! TIFF files.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::limits::{ImageReader, check_memory, guarded, open, undecodable};
use super::mask::{Mask, MaskValues};
use crate::orientation::Orientation;
use crate::{DataError, RgbImage};

const FORMAT: &str = "TIFF";

/// A TIFF whose first directory has been read.
pub(crate) struct TiffFile {
    path: PathBuf,
    decoder: Decoder<BufReader<File>>,
    size: (usize, usize),
    channels: usize,
    bits: u8,
    orientation: Option<Orientation>,
}

impl TiffFile {
    pub(super) fn open(path: &Path, reader: ImageReader) -> Result<Self, DataError> {
        let file = BufReader::new(open(path)?);
        guarded(path, FORMAT, move || {
            let failed = |e| undecodable(path, FORMAT, e);
            let mut decoder = Decoder::new(file).map_err(failed)?;
            let (width, height) = decoder.dimensions().map_err(failed)?;
            let size = (width as usize, height as usize);
            reader.check(path, size.0, size.1)?;
            let color = decoder.colortype().map_err(failed)?;
            let channels = usize::from(color.num_samples());
            let bits = color.bit_depth();
            let known = matches!(
                color,
                ColorType::Gray(_)
                    | ColorType::GrayA(_)
                    | ColorType::RGB(_)
                    | ColorType::RGBA(_)
                    | ColorType::Multiband { .. }
            );
            if !known || ![8, 16].contains(&bits) || size.0 * size.1 == 0 {
                let found = format!("{color:?}, {width}x{height}");
                let expected =
                    "TIFF with channels of 8 or 16 bits, no palette, in grey, RGB or bands";
                return Err(undecodable(path, expected, found));
            }
            // One that cannot be read turns nothing.
            let orientation = decoder.find_tag_unsigned::<u16>(Tag::Orientation);
            let orientation = orientation.ok().flatten();
            Ok(Self {
                path: path.to_owned(),
                orientation: orientation.and_then(|value| Orientation::of(value.into())),
                decoder: decoder.with_limits(Limits::unlimited()),
                size,
                channels,
                bits,
            })
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Width and height of its pixels.
    pub(super) fn size(&self) -> (usize, usize) {
        self.size
    }

    pub(super) fn orientation(&self) -> Option<Orientation> {
        self.orientation
    }

    pub(super) fn is_deep(&self) -> bool {
        self.bits == 16
    }

    pub(super) fn is_transparent(&self) -> bool {
        [2, 4].contains(&self.channels)
    }

    /// All values, channel by channel within a pixel.
    fn decode(mut self) -> Result<(Self, DecodingResult), DataError> {
        let values = self.size.0 * self.size.1 * self.channels;
        check_memory(&self.path, values * usize::from(self.bits / 8))?;
        let path = self.path.clone();
        guarded(&path, FORMAT, move || {
            let failed = |e| undecodable(&self.path, FORMAT, e);
            let read = self.decoder.read_image().map_err(failed)?;
            let found = match &read {
                DecodingResult::U8(data) => data.len(),
                DecodingResult::U16(data) => data.len(),
                _ => {
                    let expected = "TIFF with whole numbers of 8 or 16 bits";
                    return Err(undecodable(&self.path, expected, "values of another kind"));
                }
            };
            if found != values {
                let found = format!("{found} values for {values}, as bands in planes of their own");
                return Err(undecodable(
                    &self.path,
                    "TIFF with the bands of a pixel together",
                    found,
                ));
            }
            Ok((self, read))
        })
    }

    /// All pixels as RGB: grey in all three channels, of 16 bits the upper 8, without further channels than
    /// transparency.
    pub(super) fn all(self) -> Result<RgbImage, DataError> {
        if self.channels > 4 {
            let found = format!("{} channels", self.channels);
            return Err(undecodable(
                &self.path,
                "a picture of 1 to 4 channels",
                found,
            ));
        }
        let (file, read) = self.decode()?;
        let data = match read {
            DecodingResult::U8(data) => data,
            DecodingResult::U16(data) => data.into_iter().map(|v| (v >> 8) as u8).collect(),
            _ => unreachable!("decode() refuses others"),
        };
        let pixels = data.chunks_exact(file.channels);
        Ok(RgbImage {
            width: file.size.0,
            height: file.size.1,
            data: match file.channels {
                3 => data,
                4 => pixels
                    .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
                    .collect(),
                _ => pixels.flat_map(|pixel| [pixel[0]; 3]).collect(),
            },
        })
    }

    /// The values of a mask, the right way up.
    pub(super) fn mask(self) -> Result<Mask, DataError> {
        if ![1, 3].contains(&self.channels) || self.channels == 3 && self.bits == 16 {
            return Err(DataError::LabelFormat {
                path: self.path,
                expected: "a mask of one channel, or of colours of 8 bits",
                found: format!("{} channels of {} bits", self.channels, self.bits),
            });
        }
        let (file, read) = self.decode()?;
        let values = match read {
            DecodingResult::U8(data) if file.channels == 3 => MaskValues::Rgb(data),
            DecodingResult::U8(data) => MaskValues::U8(data),
            DecodingResult::U16(data) => MaskValues::U16(data),
            _ => unreachable!("decode() refuses others"),
        };
        let ((width, height), values) = match file.orientation {
            Some(orientation) => (
                orientation.size(file.size),
                values.turned(file.size, orientation),
            ),
            None => (file.size, values),
        };
        Ok(Mask {
            width,
            height,
            values,
            lossy: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_image;

    /// A grey TIFF of 3x2 values without compression.
    fn file(orientation: u16) -> Vec<u8> {
        let tags: [[u16; 2]; 9] = [
            [256, 3],
            [257, 2],
            [258, 8],
            [259, 1],
            [262, 1],
            [273, 8],
            [274, orientation],
            [277, 1],
            [279, 6],
        ];
        let mut bytes = b"II*\0\x10\0\0\0abcdef\0\0".to_vec();
        bytes.extend((tags.len() as u16).to_le_bytes());
        for [tag, value] in tags {
            // One value of 16 bits.
            for word in [tag, 3, 1, 0, value, 0] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn the_orientation_turns_pictures_and_masks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tif");
        for (orientation, width, letters) in [
            (1, 3, "abcdef"),
            (6, 2, "daebfc"),
            (3, 3, "fedcba"),
            (99, 3, "abcdef"),
        ] {
            std::fs::write(&path, file(orientation)).unwrap();
            let image = read_image(&path).unwrap();
            let first: Vec<u8> = image.data.iter().copied().step_by(3).collect();
            assert_eq!((image.width, &*first), (width, letters.as_bytes()));
            let mask = ImageReader::default().mask(&path).unwrap();
            let MaskValues::U8(values) = mask.values else {
                panic!("another kind of values");
            };
            assert_eq!((mask.width, &*values), (width, letters.as_bytes()));
        }
    }
}
