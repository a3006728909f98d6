//! A picture between its header and its pixels.

use std::io::Read;
use std::path::Path;

use png::{BitDepth, ColorType};

use super::jpeg::Jpeg;
use super::limits::{ImageReader, check_memory, open, room, undecodable};
use super::plane::{PartialImage, RgbImage};
use super::png::PngFile;
#[cfg(feature = "tiff")]
use super::tiff::TiffFile;
use crate::orientation::Orientation;
use crate::{CropBox, DataError};

/// Grey, grey + alpha, RGB or RGB + alpha as RGB; alpha is dropped, as OpenCV does.
fn rgb(pixel: &[u8]) -> [u8; 3] {
    match *pixel {
        [r, g, b] | [r, g, b, _] => [r, g, b],
        _ => [pixel[0]; 3],
    }
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
    /// Opens a PNG, a JPEG or, with the feature, a TIFF, told apart by their first bytes.
    pub(crate) fn open(path: &Path, reader: ImageReader) -> Result<Self, DataError> {
        let mut magic = Vec::new();
        let start = open(path)?.take(4).read_to_end(&mut magic);
        start.map_err(|e| DataError::io(path, e))?;
        match magic[..] {
            [0x89, b'P', b'N', b'G'] => Ok(Self::Png(Box::new(PngFile::open(path, true, reader)?))),
            [0xFF, 0xD8, ..] => Ok(Self::Jpeg(Jpeg::open(path, reader)?)),
            #[cfg(feature = "tiff")]
            [b'I', b'I', 42 | 43, 0] | [b'M', b'M', 0, 42 | 43] => {
                Ok(Self::Tiff(Box::new(TiffFile::open(path, reader)?)))
            }
            _ => {
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

    /// The part `wanted` of the picture, or more.
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
        let image = self.stored_part(stored)?.image;
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
        let (path, channels) = (png.path().to_owned(), png.channels());
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
            image: RgbImage {
                width: part.width,
                height: part.height,
                data,
            },
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
