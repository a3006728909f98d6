//! Reading within limits.

use std::path::Path;
use std::sync::Arc;

use png::{BitDepth, ColorType, Transformations};

use super::limits::{ImageReader, room};
use super::pending::PendingImage;
use super::plane::{InstanceMap, LabelMap, RgbImage};
use super::png::PngFile;
use super::source::Source;
use crate::{DataError, Picture, PictureFormat};

/// A picture whose size is known, and whose pixels are not decoded yet.
pub struct OpenedPicture<'a> {
    pending: PendingImage,
    format: &'a PictureFormat,
}

impl OpenedPicture<'_> {
    /// Width and height, as [`ImageReader::size`] finds them.
    pub fn size(&self) -> (usize, usize) {
        self.pending.size()
    }

    /// Decodes it.
    ///
    /// # Errors
    /// As [`ImageReader::picture`].
    pub fn read(self) -> Result<Picture, DataError> {
        self.pending.picture(self.format)
    }
}

impl ImageReader {
    /// Width and height of a picture, the right way up, from its header alone.
    ///
    /// # Errors
    /// As [`Self::image`], but for damage of the pixels.
    pub fn size(self, path: &Path) -> Result<(usize, usize), DataError> {
        Ok(PendingImage::open(path, self)?.size())
    }

    /// Reads a PNG or JPEG as RGB; grey, palette, 16-bit and transparent pictures are converted, and
    /// the orientation that a camera noted is applied, as OpenCV does. Of several pictures
    /// in one file, the first is read.
    ///
    /// # Errors
    /// If the file cannot be read or decoded, is no regular file, or is larger than the limit or the
    /// memory.
    pub fn image(self, path: &Path) -> Result<RgbImage, DataError> {
        PendingImage::open(path, self)?.all()
    }

    /// Reads a picture as `format` says: RGB of 8 bits as [`Self::image`] does, any other at its own depth, without a
    /// channel of transparency if there is one more than `format` has. Of 16 bits where it has 8, the upper 8 are
    /// kept.
    ///
    /// # Errors
    /// As [`Self::image`], and if the file has other channels.
    pub fn picture(self, path: &Path, format: &PictureFormat) -> Result<Picture, DataError> {
        PendingImage::open_as(path, self, format)?.picture(format)
    }

    /// Reads the head of a picture whose file is in memory; errors call it `name`. Its pixels follow when they are asked
    /// for.
    ///
    /// # Errors
    /// As [`Self::size`], but for files that cannot be read.
    pub fn opened<'a>(
        self,
        name: &str,
        file: Arc<[u8]>,
        format: &'a PictureFormat,
    ) -> Result<OpenedPicture<'a>, DataError> {
        let pending = PendingImage::read_as(&Source::memory(name, file), self, format)?;
        Ok(OpenedPicture { pending, format })
    }

    /// Reads a picture whose file is in memory, as [`Self::picture`] does; errors call it `name`.
    ///
    /// # Errors
    /// As [`Self::picture`], but for files that cannot be read.
    pub fn picture_of(
        self,
        name: &str,
        file: Arc<[u8]>,
        format: &PictureFormat,
    ) -> Result<Picture, DataError> {
        self.opened(name, file, format)?.read()
    }

    /// Reads a single-channel 8-bit PNG as it is: palette indices are not looked up.
    ///
    /// # Errors
    /// As [`Self::image`], and if the file has another pixel format.
    pub fn label(self, path: &Path) -> Result<LabelMap, DataError> {
        let expected = "a label map of one 8-bit channel";
        let (png, _) = self.open_map(path, &[BitDepth::Eight], expected)?;
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
    /// As [`Self::label`].
    pub fn instances(self, path: &Path) -> Result<InstanceMap, DataError> {
        let expected = "instance ids in one 16-bit channel";
        let (png, depth) = self.open_map(path, &[BitDepth::Sixteen, BitDepth::Eight], expected)?;
        let (width, height) = png.size();
        let bytes = png.all()?;
        let mut data = room(path, width * height)?;
        match depth {
            BitDepth::Sixteen => {
                let pairs = bytes.as_chunks().0.iter();
                data.extend(pairs.map(|&v| u16::from_be_bytes(v)));
            }
            _ => data.extend(bytes.into_iter().map(u16::from)),
        }
        Ok(InstanceMap {
            width,
            height,
            data,
        })
    }

    /// Opens a single-channel PNG of one of `depths`, and says of which; palette indices are not
    /// looked up.
    fn open_map(
        self,
        path: &Path,
        depths: &[BitDepth],
        expected: &'static str,
    ) -> Result<(PngFile, BitDepth), DataError> {
        let png = PngFile::open(&Source::file(path), Transformations::IDENTITY, self)?;
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
}

/// Reads a PNG or JPEG as RGB, within the default limit; see [`ImageReader::image`].
///
/// # Errors
/// As [`ImageReader::image`].
pub fn read_image(path: &Path) -> Result<RgbImage, DataError> {
    ImageReader::default().image(path)
}

/// Width and height of a picture from its header alone; see [`ImageReader::size`].
///
/// # Errors
/// As [`ImageReader::size`].
pub fn image_size(path: &Path) -> Result<(usize, usize), DataError> {
    ImageReader::default().size(path)
}

/// Reads a single-channel 8-bit PNG, within the default limit; see [`ImageReader::label`].
///
/// # Errors
/// As [`ImageReader::label`].
pub fn read_label(path: &Path) -> Result<LabelMap, DataError> {
    ImageReader::default().label(path)
}

/// Reads a single-channel PNG of instance ids, within the default limit; see
/// [`ImageReader::instances`].
///
/// # Errors
/// As [`ImageReader::instances`].
pub fn read_instances(path: &Path) -> Result<InstanceMap, DataError> {
    ImageReader::default().instances(path)
}
