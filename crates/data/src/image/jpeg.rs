//! JPEG files.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

use super::limits::{ImageReader, check_memory, guarded, room, undecodable, zeros};
use super::source::Source;
use crate::orientation::Orientation;
use crate::{DataError, RgbImage};

const FORMAT: &str = "JPEG";
/// Pixels along either side of a block of coefficients.
const BLOCK: usize = 8;
/// Of a picture that can be decoded, and of a scan.
const MOST_COMPONENTS: usize = 4;
/// Blocks that the scans of a file may pass over, one scan after the other: more than a progressive
/// picture of as many pixels as are read by default has, in the ten scans that programs write. A scan
/// of a few bytes can pass over all blocks, so that a small file could take hours.
const MOST_PASSES: usize = 1 << 29;

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
    components: Vec<Component>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Component {
    id: u8,
    /// Horizontal and vertical sampling factors.
    sampling: (usize, usize),
}

impl Frame {
    fn parse(segment: &[u8]) -> Option<Self> {
        let side = |at: usize| {
            Some(u16::from_be_bytes([
                *segment.get(at)?,
                *segment.get(at + 1)?,
            ]))
        };
        let components = segment.get(6..)?.chunks_exact(3).take(MOST_COMPONENTS);
        let components = components.map(|c| Component {
            id: c[0],
            sampling: ((c[1] >> 4).into(), (c[1] & 15).into()),
        });
        Some(Self {
            height: side(1)?.into(),
            width: side(3)?.into(),
            components: components.collect(),
        })
    }

    /// The blocks of all components.
    fn blocks(&self) -> usize {
        self.blocks_of(|_| true)
    }

    /// The blocks of those components whose ids are `wanted`.
    fn blocks_of(&self, wanted: impl Fn(u8) -> bool) -> usize {
        let largest = |factor: fn(&Component) -> usize| {
            let factors = self.components.iter().map(factor);
            factors.max().unwrap_or(1).max(1)
        };
        let most = (largest(|c| c.sampling.0), largest(|c| c.sampling.1));
        let along =
            |side: usize, factor: usize, most: usize| (side * factor).div_ceil(most * BLOCK);
        let blocks = |component: &Component| {
            let (h, v) = component.sampling;
            along(self.width, h, most.0) * along(self.height, v, most.1)
        };
        let components = self.components.iter().filter(|c| wanted(c.id));
        components.map(blocks).sum()
    }
}

/// Where the parts of a file's first picture are (ITU-T T.81, B.1 and B.2).
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    frame: Option<Frame>,
    /// The first block of Exif. A second one is another program's, and readers go by the first.
    exif: Option<Range<usize>>,
    scans: usize,
    /// The blocks of each scan's components, over all scans.
    passes: usize,
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
            passes: 0,
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
                0xDA => {
                    layout.scans += 1;
                    let parts = body.get(1..).unwrap_or_default().chunks_exact(2);
                    let count = body.first().copied().unwrap_or(0).into();
                    let parts = parts.take(MOST_COMPONENTS.min(count));
                    let in_scan = |id| parts.clone().any(|part| part[0] == id);
                    let frame = layout.frame.as_ref();
                    let blocks = frame.map_or(0, |frame| frame.blocks_of(in_scan));
                    layout.passes = layout.passes.saturating_add(blocks);
                }
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
    pub(super) fn open(source: &Source, reader: ImageReader) -> Result<Self, DataError> {
        let path = source.path();
        let mut bytes = Vec::new();
        let read = source.open()?.read_to_end(&mut bytes);
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
        if layout.passes > MOST_PASSES {
            let (width, height, scans) = (frame.width, frame.height, layout.scans);
            return Err(unfit(&format!("{scans} scans of {width}x{height} pixels")));
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

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of channels that its pixels have.
    pub(super) fn channels(&self) -> usize {
        if self.frame.components.len() == 1 {
            1
        } else {
            3
        }
    }

    /// Width and height of its pixels.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.frame.width, self.frame.height)
    }

    pub(super) fn orientation(&self) -> Option<Orientation> {
        self.orientation
    }

    /// All pixels, as the file has them.
    pub(super) fn all(self) -> Result<RgbImage, DataError> {
        let path = &self.path;
        guarded(path, FORMAT, || {
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
        })
    }
}
