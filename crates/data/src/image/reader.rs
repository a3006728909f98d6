//! Reading within limits.

use std::collections::TryReserveError;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use png::{BitDepth, ColorType};

use super::jpeg::Jpeg;
use super::png::PngFile;
use super::{InstanceMap, PendingImage};
use crate::{DataError, LabelMap, RgbImage};

/// Reads pictures and maps of at most a number of pixels.
///
/// A small file can promise, and even hold, any number of pixels. The size stands in its header, and
/// memory is taken only for one within the limit, and for no more pixels than so many bytes can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageReader {
    /// Pixels of the largest picture or map that is read.
    pub max_pixels: u64,
}

impl Default for ImageReader {
    /// 2^30 pixels, as OpenCV's `imread` (`OPENCV_IO_MAX_IMAGE_PIXELS`).
    fn default() -> Self {
        Self {
            max_pixels: 1 << 30,
        }
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
    /// the orientation that a camera noted in a JPEG is applied, as OpenCV does. Of several pictures
    /// in one file, the first is read.
    ///
    /// # Errors
    /// If the file cannot be read or decoded, is no regular file, or is larger than the limit or the
    /// memory.
    pub fn image(self, path: &Path) -> Result<RgbImage, DataError> {
        PendingImage::open(path, self)?.all()
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
        let png = PngFile::open(path, false, self)?;
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

    /// Refuses a picture beyond the limit.
    pub(super) fn check(self, path: &Path, width: usize, height: usize) -> Result<(), DataError> {
        if width as u64 * height as u64 <= self.max_pixels {
            return Ok(());
        }
        Err(DataError::TooManyPixels {
            path: path.to_owned(),
            width,
            height,
            max_pixels: self.max_pixels,
        })
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

impl PendingImage {
    /// Opens a PNG or a JPEG, told apart by their first bytes.
    pub(crate) fn open(path: &Path, reader: ImageReader) -> Result<Self, DataError> {
        let mut magic = Vec::new();
        let start = open(path)?.take(4).read_to_end(&mut magic);
        start.map_err(|e| DataError::io(path, e))?;
        match magic[..] {
            [0x89, b'P', b'N', b'G'] => Ok(Self::Png(Box::new(PngFile::open(path, true, reader)?))),
            [0xFF, 0xD8, ..] => Ok(Self::Jpeg(Jpeg::open(path, reader)?)),
            _ => {
                let found = format!("a file that starts with {magic:02x?}");
                Err(undecodable(path, "PNG or JPEG", found))
            }
        }
    }
}

pub(super) fn open(path: &Path) -> Result<File, DataError> {
    halfseg_files::open_regular(path).map_err(|e| DataError::io(path, e))
}

pub(super) fn undecodable(path: &Path, expected: &'static str, found: impl ToString) -> DataError {
    DataError::Decode {
        path: path.to_owned(),
        expected,
        found: found.to_string(),
    }
}

/// What `decode` returns; a panic of a decoder on damage that it does not foresee is an error, too.
pub(super) fn guarded<T>(
    path: &Path,
    format: &'static str,
    decode: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(undecodable(path, format, "damage that stopped its decoder")))
}

/// Makes room for `more` bytes in `data`, which is to hold `total`: for all of them as long as they
/// are few, and as they come beyond, so that pixels that a header promises and the file lacks take
/// none.
pub(crate) fn reserve(
    data: &mut Vec<u8>,
    more: usize,
    total: usize,
) -> Result<(), TryReserveError> {
    const FEW: usize = 1 << 26;
    if data.capacity() - data.len() >= more {
        return Ok(());
    }
    let ahead = total.saturating_sub(data.len()).min(data.len().max(FEW));
    data.try_reserve_exact(more.max(ahead))
}

/// Whether there is memory for `bytes` more.
pub(super) fn check_memory(path: &Path, bytes: usize) -> Result<(), DataError> {
    let room = Vec::<u8>::new().try_reserve_exact(bytes);
    room.map_err(|_| out_of_memory(path, bytes))
}

pub(super) fn out_of_memory(path: &Path, bytes: usize) -> DataError {
    DataError::Memory {
        path: path.to_owned(),
        bytes: bytes as u64,
    }
}

/// An empty list with room for `len` values.
pub(super) fn room<T>(path: &Path, len: usize) -> Result<Vec<T>, DataError> {
    let mut list = Vec::new();
    let room = list.try_reserve_exact(len);
    room.map_err(|_| out_of_memory(path, len.saturating_mul(size_of::<T>())))?;
    Ok(list)
}

/// `len` zeros. The system gives pages as they are written to, so that pixels that a header promises
/// and the file lacks take none.
pub(super) fn zeros(path: &Path, len: usize) -> Result<Vec<u8>, DataError> {
    check_memory(path, len)?;
    Ok(vec![0; len])
}
