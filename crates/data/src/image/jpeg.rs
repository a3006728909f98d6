//! JPEG files.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

use super::limits::{ImageReader, check_memory, guarded, open, room, undecodable, zeros};
use crate::orientation::Orientation;
use crate::{DataError, RgbImage};

const FORMAT: &str = "JPEG";
/// Pixels along either side of a block of coefficients.
const BLOCK: usize = 8;

/// A JPEG whose segments have been found.
pub(crate) struct Jpeg {
    path: PathBuf,
    /// From the start of the file to the end of its first picture.
    bytes: Vec<u8>,
    frame: Frame,
    orientation: Option<Orientation>,
}

/// What a frame header says (ITU-T T.81, B.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Frame {
    width: usize,
    height: usize,
    /// Horizontal and vertical sampling factors of each component.
    sampling: Vec<(usize, usize)>,
}

impl Frame {
    fn parse(segment: &[u8]) -> Option<Self> {
        let side = |at: usize| {
            Some(u16::from_be_bytes([
                *segment.get(at)?,
                *segment.get(at + 1)?,
            ]))
        };
        let components = segment.get(6..)?.chunks_exact(3);
        let sampling = components.map(|c| ((c[1] >> 4) as usize, (c[1] & 15) as usize));
        Some(Self {
            height: side(1)?.into(),
            width: side(3)?.into(),
            sampling: sampling.collect(),
        })
    }

    /// The blocks of all components.
    fn blocks(&self) -> usize {
        let largest = |factors: fn(&(usize, usize)) -> usize| {
            self.sampling.iter().map(factors).max().unwrap_or(1).max(1)
        };
        let most = (largest(|s| s.0), largest(|s| s.1));
        let along =
            |side: usize, factor: usize, most: usize| (side * factor).div_ceil(most * BLOCK);
        let blocks =
            |&(h, v): &(usize, usize)| along(self.width, h, most.0) * along(self.height, v, most.1);
        self.sampling.iter().map(blocks).sum()
    }
}

/// Where the parts of a file's first picture are (ITU-T T.81, B.1 and B.2).
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    frame: Option<Frame>,
    /// The first block of Exif. A second one is another program's, and readers go by the first.
    exif: Option<Range<usize>>,
    scans: usize,
    /// What stands between segments before the first scan and belongs to none.
    stray: Vec<Range<usize>>,
    /// After the end marker: previews, depths and further pictures may follow.
    end: usize,
}

impl Layout {
    /// Nothing where a picture has no end.
    fn find(bytes: &[u8]) -> Option<Self> {
        let mut layout = Self {
            frame: None,
            exif: None,
            scans: 0,
            stray: Vec::new(),
            end: 0,
        };
        let mut at = 2;
        let mut last = at;
        loop {
            at += bytes.get(at..)?.iter().position(|&byte| byte == 0xFF)?;
            // Any number of them may come before a marker.
            at += bytes[at..].iter().position(|&byte| byte != 0xFF)?;
            let marker = bytes[at];
            at += 1;
            match marker {
                0xD9 => {
                    layout.end = at;
                    return Some(layout);
                }
                // A value of 255 in entropy-coded data, restarts, and markers without a segment.
                0x00 | 0x01 | 0xD0..=0xD8 => continue,
                _ => {}
            }
            let length = u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]) as usize;
            let segment = at + 2..at + length.max(2);
            let body = bytes.get(segment.clone())?;
            // Between scans, that is entropy-coded data.
            if layout.scans == 0 && last < at - 2 {
                layout.stray.push(last..at - 2);
            }
            match marker {
                // Not tables of Huffman codes, arithmetic codes or an extension.
                0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) && layout.frame.is_none() => {
                    layout.frame = Frame::parse(body);
                }
                0xDA => layout.scans += 1,
                0xE1 if body.starts_with(b"Exif\0\0") && layout.exif.is_none() => {
                    layout.exif = Some(segment.clone());
                }
                _ => {}
            }
            at = segment.end;
            last = at;
        }
    }
}

impl Jpeg {
    pub(super) fn open(path: &Path, reader: ImageReader) -> Result<Self, DataError> {
        let mut bytes = Vec::new();
        let read = open(path)?.read_to_end(&mut bytes);
        read.map_err(|e| DataError::io(path, e))?;
        let layout = Layout::find(&bytes).filter(|layout| layout.scans > 0);
        let unfit = |found: &str| undecodable(path, FORMAT, found);
        // The decoder forgives an image cut off within its last rows.
        let layout = layout.ok_or_else(|| unfit("a file without its end marker"))?;
        let frame = layout
            .frame
            .ok_or_else(|| unfit("a file without a frame header"))?;
        reader.check(path, frame.width, frame.height)?;
        let exif = layout.exif.map(|exif| &bytes[exif]);
        let orientation = exif.and_then(Orientation::from_exif);
        bytes.truncate(layout.end);
        // Readers of other programs pass over such bytes, and the decoder does not.
        if !layout.stray.is_empty() {
            let mut kept = room(path, bytes.len())?;
            let mut from = 0;
            for stray in layout.stray {
                kept.extend_from_slice(&bytes[from..stray.start]);
                from = stray.end;
            }
            kept.extend_from_slice(&bytes[from..]);
            bytes = kept;
        }
        // Each block has a code of one bit at least.
        if frame.blocks() / 8 > bytes.len() {
            let (width, height) = (frame.width, frame.height);
            return Err(unfit(&format!(
                "{width}x{height} pixels in {} bytes",
                bytes.len()
            )));
        }
        // The decoder's own copy of the coefficients, where they come in several scans.
        if layout.scans > 1 {
            check_memory(path, frame.blocks() * BLOCK * BLOCK * size_of::<i16>())?;
        }
        Ok(Self {
            path: path.to_owned(),
            bytes,
            frame,
            orientation,
        })
    }

    /// Width and height, the right way up.
    pub(super) fn size(&self) -> (usize, usize) {
        let size = (self.frame.width, self.frame.height);
        self.orientation
            .map_or(size, |orientation| orientation.size(size))
    }

    /// All pixels, the right way up.
    pub(super) fn all(self) -> Result<RgbImage, DataError> {
        let path = &self.path;
        let image = guarded(path, FORMAT, || {
            let failed = |e: zune_jpeg::errors::DecodeErrors| undecodable(path, FORMAT, e);
            let options = DecoderOptions::default()
                .jpeg_set_out_colorspace(ColorSpace::RGB)
                .set_max_width(u16::MAX.into())
                .set_max_height(u16::MAX.into())
                .set_strict_mode(true);
            let bytes = ZCursor::new(&self.bytes);
            let mut decoder = zune_jpeg::JpegDecoder::new_with_options(bytes, options);
            decoder.decode_headers().map_err(failed)?;
            let size = decoder.dimensions().zip(decoder.output_buffer_size());
            let ((width, height), len) =
                size.ok_or_else(|| undecodable(path, FORMAT, "no dimensions"))?;
            if (width, height) != (self.frame.width, self.frame.height) {
                return Err(undecodable(path, FORMAT, "frames of several sizes"));
            }
            let mut data = zeros(path, len)?;
            decoder.decode_into(&mut data).map_err(failed)?;
            Ok(RgbImage {
                width,
                height,
                data,
            })
        })?;
        Ok(match self.orientation {
            Some(orientation) => {
                check_memory(path, image.data.len())?;
                orientation.apply(image)
            }
            None => image,
        })
    }
}
