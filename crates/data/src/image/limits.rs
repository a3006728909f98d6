//! What a reader takes at most, and memory for it.

use std::collections::TryReserveError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::DataError;

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
