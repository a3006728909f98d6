//! TIFF files.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};

use super::limits::{ImageReader, check_memory, guarded, open, undecodable};
use super::mask::{Mask, MaskValues};
use crate::{DataError, RgbImage};

const FORMAT: &str = "TIFF";

/// A TIFF whose first directory has been read.
pub(crate) struct TiffFile {
    path: PathBuf,
    decoder: Decoder<BufReader<File>>,
    size: (usize, usize),
    channels: usize,
    bits: u8,
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
            Ok(Self {
                path: path.to_owned(),
                decoder: decoder.with_limits(Limits::unlimited()),
                size,
                channels,
                bits,
            })
        })
    }

    pub(super) fn size(&self) -> (usize, usize) {
        self.size
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

    /// The values of a mask.
    pub(super) fn mask(self) -> Result<Mask, DataError> {
        if ![1, 3].contains(&self.channels) || self.channels == 3 && self.bits == 16 {
            return Err(DataError::LabelFormat {
                path: self.path,
                expected: "a mask of one channel, or of colours of 8 bits",
                found: format!("{} channels of {} bits", self.channels, self.bits),
            });
        }
        let (file, read) = self.decode()?;
        Ok(Mask {
            width: file.size.0,
            height: file.size.1,
            values: match read {
                DecodingResult::U8(data) if file.channels == 3 => MaskValues::Rgb(data),
                DecodingResult::U8(data) => MaskValues::U8(data),
                DecodingResult::U16(data) => MaskValues::U16(data),
                _ => unreachable!("decode() refuses others"),
            },
            lossy: false,
        })
    }
}
