//! Pictures and label maps in memory and in files.

mod jpeg;
mod png;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ::png::{BitDepth, ColorType};

use self::png::PngFile;
pub use self::write::{write_label, write_rgb};
use crate::{CropBox, DataError};

/// `C` interleaved 8-bit channels, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane<const C: usize> {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width * C` values.
    pub data: Vec<u8>,
}

/// A picture, RGB.
pub type RgbImage = Plane<3>;
/// A map of class ids.
pub type LabelMap = Plane<1>;

impl<const C: usize> Plane<C> {
    /// A plane filled with one pixel.
    pub fn filled(width: usize, height: usize, pixel: [u8; C]) -> Self {
        Self {
            width,
            height,
            data: pixel.repeat(width * height),
        }
    }

    /// The row `y`: `width * C` values.
    ///
    /// # Panics
    /// If `y` is not below the height.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.width * C..(y + 1) * self.width * C]
    }
}

/// A map of instance ids: 1000 times the labelId plus a number, or the labelId alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceMap {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width` values.
    pub data: Vec<u16>,
}

fn undecodable(path: &Path, expected: &'static str, found: impl ToString) -> DataError {
    DataError::Decode {
        path: path.to_owned(),
        expected,
        found: found.to_string(),
    }
}

/// Grey, grey + alpha, RGB or RGB + alpha as RGB; alpha is dropped, as OpenCV does.
fn rgb(pixel: &[u8]) -> [u8; 3] {
    match *pixel {
        [r, g, b] | [r, g, b, _] => [r, g, b],
        _ => [pixel[0]; 3],
    }
}

/// A picture of which only a part may have been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialImage {
    /// What was read.
    pub image: RgbImage,
    /// Column and row of the picture where that begins.
    pub origin: (usize, usize),
    /// Width and height of the picture.
    pub size: (usize, usize),
}

impl From<RgbImage> for PartialImage {
    fn from(image: RgbImage) -> Self {
        Self {
            origin: (0, 0),
            size: (image.width, image.height),
            image,
        }
    }
}

/// A picture of known size whose pixels may not have been decoded yet.
pub(crate) enum PendingImage {
    Png(Box<PngFile>),
    Decoded(RgbImage),
}

impl PendingImage {
    /// Opens a PNG or a JPEG, told apart by their first bytes.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let mut magic = Vec::new();
        let file = File::open(path).map_err(|e| DataError::io(path, e))?;
        file.take(4)
            .read_to_end(&mut magic)
            .map_err(|e| DataError::io(path, e))?;
        match magic[..] {
            [0x89, b'P', b'N', b'G'] => Ok(Self::Png(Box::new(PngFile::open(path, true)?))),
            [0xFF, 0xD8, ..] => jpeg::read(path).map(Self::Decoded),
            _ => {
                let found = format!("a file that starts with {magic:02x?}");
                Err(undecodable(path, "PNG or JPEG", found))
            }
        }
    }

    /// Width and height.
    pub(crate) fn size(&self) -> (usize, usize) {
        match self {
            Self::Png(png) => png.size(),
            Self::Decoded(image) => (image.width, image.height),
        }
    }

    /// The part `wanted` of the picture, or more.
    pub(crate) fn part(self, wanted: CropBox) -> Result<PartialImage, DataError> {
        let png = match self {
            Self::Png(png) => png,
            Self::Decoded(image) => return Ok(image.into()),
        };
        let (size, channels) = (png.size(), png.channels());
        assert!(
            CropBox::whole(size).contains(wanted),
            "{wanted:?} lies outside a picture of {size:?}"
        );
        let (data, all) = png.part(wanted)?;
        let part = match all {
            true => CropBox::whole(size),
            false => wanted,
        };
        let image = RgbImage {
            width: part.width,
            height: part.height,
            data: match channels {
                3 => data,
                _ => data.chunks_exact(channels).flat_map(rgb).collect(),
            },
        };
        Ok(PartialImage {
            image,
            origin: (part.left, part.top),
            size,
        })
    }

    /// All of the picture.
    pub(crate) fn all(self) -> Result<RgbImage, DataError> {
        let size = self.size();
        Ok(self.part(CropBox::whole(size))?.image)
    }
}

/// Reads a PNG or JPEG as RGB; grey, palette, 16-bit and transparent pictures are converted, and
/// the orientation that a camera noted in a JPEG is applied, as OpenCV does.
///
/// # Errors
/// If the file cannot be read or decoded.
pub fn read_image(path: &Path) -> Result<RgbImage, DataError> {
    PendingImage::open(path)?.all()
}

/// Opens a single-channel PNG of one of `depths`, and says of which; palette indices are not looked up.
fn open_map(
    path: &Path,
    depths: &[BitDepth],
    expected: &'static str,
) -> Result<(PngFile, BitDepth), DataError> {
    let png = PngFile::open(path, false)?;
    let (color, depth) = png.format();
    let single = color == ColorType::Grayscale || color == ColorType::Indexed;
    if !single || !depths.contains(&depth) {
        return Err(DataError::LabelFormat {
            path: path.to_owned(),
            expected,
            found: format!("{color:?} of {} bits", depth as u8),
        });
    }
    Ok((png, depth))
}

/// Reads a single-channel 8-bit PNG as it is: palette indices are not looked up.
///
/// # Errors
/// If the file cannot be read or decoded, or has another pixel format.
pub fn read_label(path: &Path) -> Result<LabelMap, DataError> {
    let expected = "a label map of one 8-bit channel";
    let (png, _) = open_map(path, &[BitDepth::Eight], expected)?;
    let (width, height) = png.size();
    Ok(LabelMap {
        width,
        height,
        data: png.all()?,
    })
}

/// Reads a single-channel 16-bit PNG of instance ids; 8 bits, as of a map without a single
/// instance, are widened.
///
/// # Errors
/// If the file cannot be read or decoded, or has another pixel format.
pub fn read_instances(path: &Path) -> Result<InstanceMap, DataError> {
    let expected = "instance ids in one 16-bit channel";
    let (png, depth) = open_map(path, &[BitDepth::Sixteen, BitDepth::Eight], expected)?;
    let (width, height) = png.size();
    let bytes = png.all()?;
    let data = match depth {
        BitDepth::Sixteen => {
            let pairs = bytes.as_chunks().0.iter();
            pairs.map(|&v| u16::from_be_bytes(v)).collect()
        }
        _ => bytes.into_iter().map(u16::from).collect(),
    };
    Ok(InstanceMap {
        width,
        height,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::png::tests::save;
    use super::*;

    #[test]
    fn every_format_of_png_becomes_rgb() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let (eight, sixteen) = (BitDepth::Eight, BitDepth::Sixteen);
        let cases: [(ColorType, BitDepth, &[u8], [u8; 6]); 7] = [
            (ColorType::Grayscale, eight, &[7, 9], [7, 7, 7, 9, 9, 9]),
            (
                ColorType::GrayscaleAlpha,
                eight,
                &[7, 0, 9, 255],
                [7, 7, 7, 9, 9, 9],
            ),
            (
                ColorType::Rgb,
                eight,
                &[1, 2, 3, 4, 5, 6],
                [1, 2, 3, 4, 5, 6],
            ),
            (
                ColorType::Rgba,
                eight,
                &[1, 2, 3, 0, 4, 5, 6, 9],
                [1, 2, 3, 4, 5, 6],
            ),
            (ColorType::Indexed, eight, &[1, 0], [40, 50, 60, 10, 20, 30]),
            (
                ColorType::Grayscale,
                BitDepth::One,
                &[0b0100_0000],
                [0, 0, 0, 255, 255, 255],
            ),
            (
                ColorType::Rgb,
                sixteen,
                &[1, 255, 2, 255, 3, 255, 4, 0, 5, 0, 6, 0],
                [1, 2, 3, 4, 5, 6],
            ),
        ];
        for (color, depth, data, expected) in cases {
            // Twice the row, so that a part of the picture can be read, too.
            save(&path, (2, 2), color, depth, &data.repeat(2));
            let image = read_image(&path).unwrap();
            assert_eq!((image.width, image.height), (2, 2));
            assert_eq!(image.data, expected.repeat(2), "{color:?} {depth:?}");
            let wanted = CropBox {
                left: 1,
                top: 1,
                width: 1,
                height: 1,
            };
            let part = PendingImage::open(&path).unwrap().part(wanted).unwrap();
            let (x, y) = (1 - part.origin.0, 1 - part.origin.1);
            let pixel = &part.image.row(y)[3 * x..3 * x + 3];
            assert_eq!((part.size, pixel), ((2, 2), &expected[3..]), "{color:?}");
        }
    }

    #[test]
    fn instances_of_sixteen_and_eight_bits_are_read_and_other_depths_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.png");
        let (gray, sixteen) = (ColorType::Grayscale, BitDepth::Sixteen);
        save(&path, (2, 1), gray, sixteen, &[0x65, 0x90, 0, 7]);
        assert_eq!(read_instances(&path).unwrap().data, [26_000, 7]);
        let message = read_label(&path).unwrap_err().to_string();
        assert!(
            message.contains("8-bit") && message.contains("16 bits"),
            "{message}"
        );
        save(&path, (2, 1), gray, BitDepth::Eight, &[26, 7]);
        assert_eq!(read_instances(&path).unwrap().data, [26, 7]);
        save(&path, (2, 1), gray, BitDepth::Four, &[0x77]);
        let message = read_instances(&path).unwrap_err().to_string();
        assert!(
            message.contains("16-bit") && message.contains("4 bits"),
            "{message}"
        );
    }
}
