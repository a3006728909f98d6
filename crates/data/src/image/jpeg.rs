//! JPEG files.

use std::path::Path;

use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

use super::undecodable;
use crate::orientation::Orientation;
use crate::{DataError, RgbImage};

/// Reads a JPEG as RGB, the right way up.
pub(super) fn read(path: &Path) -> Result<RgbImage, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
    // The decoder forgives an image cut off within its last rows.
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
    let (scan, end) = (last([0xFF, 0xDA]), last([0xFF, 0xD9]));
    if scan.is_none() || end < scan {
        return Err(undecodable(path, "JPEG", "a file without its end marker"));
    }
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_strict_mode(true);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(&bytes), options);
    let data = decoder.decode().map_err(|e| undecodable(path, "JPEG", e))?;
    let size = decoder.dimensions();
    let (width, height) = size.ok_or_else(|| undecodable(path, "JPEG", "no dimensions"))?;
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif(exif));
    let image = RgbImage {
        width,
        height,
        data,
    };
    Ok(match orientation {
        Some(orientation) => orientation.apply(image),
        None => image,
    })
}
