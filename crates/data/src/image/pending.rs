//! A picture between its header and its pixels.

use std::io::Read;
use std::path::Path;

use png::{BitDepth, ColorType, Transformations};

use super::jpeg::Jpeg;
use super::limits::{ImageReader, check_memory, room, undecodable};
use super::plane::{PartialImage, RgbImage};
use super::png::PngFile;
use super::source::Source;
#[cfg(feature = "tiff")]
use super::tiff::TiffFile;
use crate::orientation::Orientation;
use crate::{Bands, CropBox, DataError, Picture, PictureFormat};

/// Grey, grey + alpha, RGB or RGB + alpha as RGB; alpha is dropped, as OpenCV does.
fn rgb(pixel: &[u8]) -> [u8; 3] {
    match *pixel {
        [r, g, b] | [r, g, b, _] => [r, g, b],
        _ => [pixel[0]; 3],
    }
}

/// Formats of pictures.
enum Format {
    Png,
    Jpeg,
    #[cfg(feature = "tiff")]
    Tiff,
}

impl Format {
    /// That of a file that starts with these bytes, four or more.
    fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x89, b'P', b'N', b'G', ..] => Some(Self::Png),
            [0xFF, 0xD8, ..] => Some(Self::Jpeg),
            #[cfg(feature = "tiff")]
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            _ => None,
        }
    }
}

/// Whether a file that starts with these bytes, four or more, is told to be a PNG, a JPEG or, with the feature, a TIFF.
pub fn is_picture(start: &[u8]) -> bool {
    Format::of(start).is_some()
}

/// A picture of known size whose pixels have not been decoded yet.
pub(crate) enum PendingImage {
    Png(Box<PngFile>),
    Jpeg(Jpeg),
    #[cfg(feature = "tiff")]
    Tiff(Box<TiffFile>),
}

#[cfg(feature = "tiff")]
const FORMATS: &str = "PNG, JPEG or TIFF";
#[cfg(not(feature = "tiff"))]
const FORMATS: &str = "PNG or JPEG";

impl PendingImage {
    /// Opens a PNG, a JPEG or, with the feature, a TIFF, told apart by their first bytes, to be read with 8 bits.
    pub(crate) fn open(path: &Path, reader: ImageReader) -> Result<Self, DataError> {
        Self::read(&Source::file(path), reader)
    }

    /// The same, in memory or in a file.
    pub(crate) fn read(source: &Source, reader: ImageReader) -> Result<Self, DataError> {
        Self::of(source, reader, Transformations::normalize_to_color8())
    }

    /// The same, to be read as `format` says.
    pub(crate) fn open_as(
        path: &Path,
        reader: ImageReader,
        format: &PictureFormat,
    ) -> Result<Self, DataError> {
        Self::read_as(&Source::file(path), reader, format)
    }

    /// The same, in memory or in a file.
    pub(crate) fn read_as(
        source: &Source,
        reader: ImageReader,
        format: &PictureFormat,
    ) -> Result<Self, DataError> {
        match format.bits() {
            8 => Self::read(source, reader),
            _ => Self::of(source, reader, Transformations::EXPAND),
        }
    }

    fn of(
        source: &Source,
        reader: ImageReader,
        change: Transformations,
    ) -> Result<Self, DataError> {
        let path = source.path();
        let mut magic = Vec::new();
        let start = source.open()?.take(4).read_to_end(&mut magic);
        start.map_err(|e| DataError::io(path, e))?;
        match Format::of(&magic) {
            Some(Format::Png) => Ok(Self::Png(Box::new(PngFile::open(source, change, reader)?))),
            Some(Format::Jpeg) => Ok(Self::Jpeg(Jpeg::open(source, reader)?)),
            #[cfg(feature = "tiff")]
            Some(Format::Tiff) => Ok(Self::Tiff(Box::new(TiffFile::open(source, reader)?))),
            None => {
                let found = format!("a file that starts with {magic:02x?}");
                Err(undecodable(path, FORMATS, found))
            }
        }
    }

    /// Width and height, the right way up.
    pub(crate) fn size(&self) -> (usize, usize) {
        let stored = self.stored_size();
        self.orientation()
            .map_or(stored, |orientation| orientation.size(stored))
    }

    /// Width and height of the pixels as the file has them.
    fn stored_size(&self) -> (usize, usize) {
        match self {
            Self::Png(png) => png.size(),
            Self::Jpeg(jpeg) => jpeg.size(),
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => tiff.size(),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Png(png) => png.path(),
            Self::Jpeg(jpeg) => jpeg.path(),
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => tiff.path(),
        }
    }

    /// How its pixels are to be turned.
    fn orientation(&self) -> Option<Orientation> {
        match self {
            Self::Png(png) => png.orientation(),
            Self::Jpeg(jpeg) => jpeg.orientation(),
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => tiff.orientation(),
        }
    }

    /// Whether channels have 16 bits.
    pub(crate) fn is_deep(&self) -> bool {
        match self {
            Self::Png(png) => png.format().1 == BitDepth::Sixteen,
            Self::Jpeg(_) => false,
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => tiff.is_deep(),
        }
    }

    /// Whether there is a channel of transparency.
    pub(crate) fn is_transparent(&self) -> bool {
        match self {
            Self::Png(png) => matches!(png.format().0, ColorType::Rgba | ColorType::GrayscaleAlpha),
            Self::Jpeg(_) => false,
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => tiff.is_transparent(),
        }
    }

    /// Number of channels and their bits, with transparency.
    pub(crate) fn channels(&self) -> (usize, u8) {
        match self {
            Self::Png(png) => png.channels(),
            Self::Jpeg(jpeg) => (jpeg.channels(), 8),
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => tiff.channels(),
        }
    }

    /// All of the picture as `format` says.
    pub(crate) fn picture(self, format: &PictureFormat) -> Result<Picture, DataError> {
        match format.is_rgb() {
            true => Ok(self.all()?.into()),
            false => Ok(self.bands(format)?.into()),
        }
    }

    /// The part `wanted` of the picture, or more, as `format` says.
    pub(crate) fn part_as(
        self,
        wanted: CropBox,
        format: &PictureFormat,
    ) -> Result<PartialImage, DataError> {
        match format.is_rgb() {
            true => self.part(wanted),
            false => Ok(self.bands(format)?.into()),
        }
    }

    /// Whether a channel of transparency is left out.
    pub(crate) fn drops_transparency(&self, format: &PictureFormat) -> bool {
        let more = self.channels().0 == format.channels() + 1;
        self.is_transparent() && (more || format.is_rgb())
    }

    /// All values at their own depth.
    fn bands(self, format: &PictureFormat) -> Result<Bands, DataError> {
        let ((channels, bits), (width, height)) = (self.channels(), self.size());
        let (orientation, stored) = (self.orientation(), self.stored_size());
        let kept = channels - usize::from(self.drops_transparency(format));
        if kept != format.channels() || bits < format.bits() {
            let plural = if channels == 1 { "" } else { "s" };
            return Err(DataError::Channels {
                path: self.path().to_owned(),
                expected: format!("{format} (`pictures` of the definition, or of the checkpoint)"),
                found: format!("{channels} channel{plural} of {bits} bits"),
            });
        }
        let path = self.path().to_owned();
        let mut data: Vec<u16> = match self {
            Self::Png(png) => {
                let bytes = png.all()?;
                let mut data = room(&path, width * height * channels)?;
                match bits {
                    8 => data.extend(bytes.into_iter().map(u16::from)),
                    _ => data.extend(bytes.as_chunks().0.iter().map(|v| u16::from_be_bytes(*v))),
                }
                data
            }
            Self::Jpeg(jpeg) => {
                let step = 3 / channels;
                let image = jpeg.all()?;
                image
                    .data
                    .iter()
                    .step_by(step)
                    .map(|v| u16::from(*v))
                    .collect()
            }
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => tiff.values()?,
        };
        if bits > format.bits() {
            data.iter_mut().for_each(|v| *v >>= 8);
        }
        if kept < channels {
            let pixels = data.chunks_exact(channels);
            data = pixels
                .flat_map(|pixel| pixel[..kept].iter().copied())
                .collect();
        }
        if let Some(orientation) = orientation {
            let places: Vec<usize> = (0..width * height).collect();
            let places = orientation.turned(&places, stored).into_iter();
            data = places
                .flat_map(|place| data[place * kept..][..kept].iter().copied())
                .collect();
        }
        Ok(Bands {
            width,
            height,
            channels: kept,
            data,
        })
    }

    /// The part `wanted` of the picture, or more, as RGB.
    pub(crate) fn part(self, wanted: CropBox) -> Result<PartialImage, DataError> {
        let size = self.size();
        assert!(
            CropBox::whole(size).contains(wanted),
            "{wanted:?} lies outside a picture of {size:?}"
        );
        let Some(orientation) = self.orientation() else {
            return self.stored_part(wanted);
        };
        let path = self.path().to_owned();
        let stored = CropBox::whole(self.stored_size());
        let image = rgb_of(self.stored_part(stored)?.image);
        check_memory(&path, image.data.len())?;
        Ok(orientation.apply(image).into())
    }

    /// The part `wanted` of the pixels as the file has them, or more.
    fn stored_part(self, wanted: CropBox) -> Result<PartialImage, DataError> {
        let size = self.stored_size();
        let png = match self {
            Self::Png(png) => png,
            Self::Jpeg(jpeg) => return Ok(jpeg.all()?.into()),
            #[cfg(feature = "tiff")]
            Self::Tiff(tiff) => return Ok(tiff.all()?.into()),
        };
        let (path, (channels, _)) = (png.path().to_owned(), png.channels());
        let (mut data, all) = png.part(wanted)?;
        let part = match all {
            true => CropBox::whole(size),
            false => wanted,
        };
        if channels != 3 {
            let mut colors = room(&path, data.len() / channels * 3)?;
            colors.extend(data.chunks_exact(channels).flat_map(rgb));
            data = colors;
        }
        Ok(PartialImage {
            image: Picture::Rgb(RgbImage {
                width: part.width,
                height: part.height,
                data,
            }),
            origin: (part.left, part.top),
            size,
        })
    }

    /// All of the picture as RGB.
    pub(crate) fn all(self) -> Result<RgbImage, DataError> {
        let size = self.size();
        Ok(rgb_of(self.part(CropBox::whole(size))?.image))
    }
}

fn rgb_of(picture: Picture) -> RgbImage {
    let image = picture.into_rgb();
    image.expect("parts are RGB unless a format is asked for")
}
