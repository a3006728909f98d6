//! TIFF files.

use std::io::{BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::limits::{ImageReader, check_memory, guarded, undecodable};
use super::mask::{Mask, MaskValues};
use super::source::Source;
use crate::orientation::Orientation;
use crate::{DataError, RgbImage};

const FORMAT: &str = "TIFF";

/// What a TIFF is decoded from.
trait Bytes: Read + Seek + Send {}

impl<T: Read + Seek + Send> Bytes for T {}

/// A TIFF whose first directory has been read.
pub(crate) struct TiffFile {
    path: PathBuf,
    decoder: Decoder<Box<dyn Bytes>>,
    size: (usize, usize),
    channels: usize,
    bits: u8,
    orientation: Option<Orientation>,
    /// Whether the last channel is transparency.
    transparent: bool,
}

impl TiffFile {
    pub(super) fn open(source: &Source, reader: ImageReader) -> Result<Self, DataError> {
        let path = source.path();
        let file = BufReader::new(source.open()?);
        guarded(path, FORMAT, move || {
            let failed = |e| undecodable(path, FORMAT, e);
            let mut decoder = Decoder::new(Box::new(file) as Box<dyn Bytes>).map_err(failed)?;
            let (width, height) = decoder.dimensions().map_err(failed)?;
            let size = (width as usize, height as usize);
            reader.check(path, size.0, size.1)?;
            let mut color = decoder.colortype().map_err(failed)?;
            let samples = decoder.get_tag_u32(Tag::SamplesPerPixel).unwrap_or(1) as usize;
            // Of colours with further channels the decoder gives the colours alone.
            let more = samples > usize::from(color.num_samples());
            if more && let Some(bytes) = as_bands(source)? {
                let bytes = Box::new(Cursor::new(bytes)) as Box<dyn Bytes>;
                decoder = Decoder::new(bytes).map_err(failed)?;
                color = decoder.colortype().map_err(failed)?;
            }
            let channels = usize::from(color.num_samples());
            if channels != samples {
                let found = format!("{samples} channels, of which {channels} can be decoded");
                return Err(undecodable(path, FORMAT, found));
            }
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
                // A fourth channel beside colours is transparency if nothing else is said.
                transparent: matches!(color, ColorType::GrayA(_) | ColorType::RGBA(_))
                    || more && channels == 4,
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
        self.transparent
    }

    /// Number of channels, and their bits.
    pub(super) fn channels(&self) -> (usize, u8) {
        (self.channels, self.bits)
    }

    /// All values, those of a pixel together.
    fn decode(mut self) -> Result<(Self, DecodingResult), DataError> {
        let values = self.size.0 * self.size.1 * self.channels;
        check_memory(&self.path, values * usize::from(self.bits / 8))?;
        let path = self.path.clone();
        guarded(&path, FORMAT, move || {
            let failed = |e| undecodable(&self.path, FORMAT, e);
            let mut read = DecodingResult::U8(Vec::new());
            let layout = self.decoder.read_image_to_buffer(&mut read);
            let planes = layout.map_err(failed)?.planes;
            let found = match &read {
                DecodingResult::U8(data) => data.len(),
                DecodingResult::U16(data) => data.len(),
                _ => {
                    let expected = "TIFF with whole numbers of 8 or 16 bits";
                    return Err(undecodable(&self.path, expected, "values of another kind"));
                }
            };
            if found != values {
                let expected = format!("{found} values for {values}");
                return Err(undecodable(&self.path, FORMAT, expected));
            }
            let read = match (read, planes) {
                (read, 0 | 1) => read,
                (DecodingResult::U8(data), _) => DecodingResult::U8(joined(&data, planes)),
                (DecodingResult::U16(data), _) => DecodingResult::U16(joined(&data, planes)),
                (read, _) => read,
            };
            Ok((self, read))
        })
    }

    /// All values, those of a pixel together.
    pub(super) fn values(self) -> Result<Vec<u16>, DataError> {
        Ok(match self.decode()?.1 {
            DecodingResult::U16(data) => data,
            DecodingResult::U8(data) => data.into_iter().map(u16::from).collect(),
            _ => unreachable!("decode() refuses others"),
        })
    }

    /// All pixels as RGB: grey in all three channels, of 16 bits the upper 8, without transparency.
    pub(super) fn all(self) -> Result<RgbImage, DataError> {
        if ![1, 3].contains(&(self.channels - usize::from(self.transparent))) {
            return Err(DataError::Channels {
                path: self.path,
                expected: "grey or RGB (`pictures.channels` and `pictures.bits` of a definition say otherwise)".into(),
                found: format!("{} channels of {} bits", self.channels, self.bits),
            });
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

/// The file with its pixels said to be grey with further channels, of which the decoder gives all. Nothing
/// where that is not said where it should be, in the first directory of a classic TIFF (TIFF 6.0, section 2).
fn as_bands(source: &Source) -> Result<Option<Vec<u8>>, DataError> {
    let mut bytes = Vec::new();
    let read = source.open()?.read_to_end(&mut bytes);
    read.map_err(|error| DataError::io(source.path(), error))?;
    let little = bytes.starts_with(b"II\x2a\0");
    if !little && !bytes.starts_with(b"MM\0\x2a") {
        return Ok(None);
    }
    let number = |at: usize, len: usize| {
        let part = bytes.get(at..at.checked_add(len)?)?.iter();
        let shifted = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
        Some(if little {
            part.rev().fold(0, shifted)
        } else {
            part.fold(0, shifted)
        })
    };
    const PHOTOMETRIC: usize = 262;
    let entry = number(4, 4).and_then(|directory| {
        let mut entries = (0..number(directory, 2)?).map(|i| directory + 2 + 12 * i);
        entries.find(|entry| number(*entry, 2) == Some(PHOTOMETRIC))
    });
    let Some(value) = entry
        .map(|entry| entry + 8)
        .filter(|value| value + 2 <= bytes.len())
    else {
        return Ok(None);
    };
    let grey = if little {
        1u16.to_le_bytes()
    } else {
        1u16.to_be_bytes()
    };
    bytes[value..value + 2].copy_from_slice(&grey);
    Ok(Some(bytes))
}

/// What lies plane by plane, with the values of a pixel together.
fn joined<T: Copy + Default>(data: &[T], planes: usize) -> Vec<T> {
    let mut out = vec![T::default(); data.len()];
    for (c, plane) in data.chunks_exact(data.len() / planes).enumerate() {
        for (out, value) in out.iter_mut().skip(c).step_by(planes).zip(plane) {
            *out = *value;
        }
    }
    out
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
