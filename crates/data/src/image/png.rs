//! PNG files.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use png::{BitDepth, ColorType, Transformations};

use super::limits::{ImageReader, guarded, out_of_memory, reserve, undecodable, zeros};
use super::source::{Opened, Source};
use crate::orientation::Orientation;
use crate::{CropBox, DataError, scanlines};

const FORMAT: &str = "PNG";

/// A PNG whose header has been read.
pub(crate) struct PngFile {
    source: Source,
    reader: png::Reader<BufReader<Opened>>,
    /// Whether the file ends as a whole PNG does.
    whole: bool,
    /// How a picture is to be turned; maps are not.
    orientation: Option<Orientation>,
}

/// Chunks among which one with Exif is looked for: those of pixels have at least 8 KiB in files that usual
/// programs write.
const MOST_CHUNKS: usize = 1 << 16;

/// The first chunk of Exif before or after the pixels, of at most 64 KiB, as in a JPEG.
fn exif(file: &mut Opened) -> std::io::Result<Option<Vec<u8>>> {
    file.seek(SeekFrom::Start(8))?;
    for _ in 0..MOST_CHUNKS {
        let mut head = [0; 8];
        if file.read_exact(&mut head).is_err() || head[4..] == *b"IEND" {
            break;
        }
        let [a, b, c, d, ..] = head;
        let length = u32::from_be_bytes([a, b, c, d]);
        if head[4..] == *b"eXIf" && length <= 1 << 16 {
            let mut exif = vec![0; length as usize];
            return Ok(file.read_exact(&mut exif).is_ok().then_some(exif));
        }
        // And its checksum.
        file.seek(SeekFrom::Current(i64::from(length) + 4))?;
    }
    Ok(None)
}

impl PngFile {
    /// Reads the header; `change` says what is done to values while they are decoded: nothing for maps of values, which no
    /// camera turns.
    pub(super) fn open(
        source: &Source,
        change: Transformations,
        limit: ImageReader,
    ) -> Result<Self, DataError> {
        let path = source.path();
        let io = |e| DataError::io(path, e);
        let mut file = source.open()?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(io)?;
        let mut end = [0; 8];
        if bytes >= 8 {
            file.seek(SeekFrom::End(-8)).map_err(io)?;
            file.read_exact(&mut end).map_err(io)?;
        }
        let exif = match change == Transformations::IDENTITY {
            true => None,
            false => exif(&mut file).map_err(io)?,
        };
        file.rewind().map_err(io)?;
        let reader = guarded(path, FORMAT, || {
            let failed = |e| undecodable(path, FORMAT, e);
            let mut decoder = png::Decoder::new(BufReader::with_capacity(1 << 16, file));
            // Neither is used, and either may be compressed.
            decoder.set_ignore_iccp_chunk(true);
            decoder.set_ignore_text_chunk(true);
            decoder.set_transformations(change);
            let info = decoder.read_header_info().map_err(failed)?;
            let (width, height) = (info.width as u64, info.height as u64);
            limit.check(path, info.width as usize, info.height as usize)?;
            // Deflate cannot shrink by more than 1032: a header that promises more pixels than the
            // file can hold is refused before memory is taken for them.
            let pixel_bits = info.color_type.samples() as u64 * info.bit_depth as u64;
            if width * height / 8 * pixel_bits / 1032 > bytes {
                let found = format!("{width}x{height} pixels in {bytes} bytes");
                return Err(undecodable(path, FORMAT, found));
            }
            decoder.read_info().map_err(failed)
        })?;
        let palette = reader.info().palette.as_deref().unwrap_or_default();
        if palette.len() % 3 != 0 || palette.len() > 3 * 256 {
            let found = format!("a palette of {} bytes", palette.len());
            return Err(undecodable(path, FORMAT, found));
        }
        Ok(Self {
            source: source.clone(),
            reader,
            whole: end[..4] == *b"IEND",
            orientation: exif.as_deref().and_then(Orientation::from_exif),
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.source.path()
    }

    pub(super) fn size(&self) -> (usize, usize) {
        let info = self.reader.info();
        (info.width as usize, info.height as usize)
    }

    pub(super) fn orientation(&self) -> Option<Orientation> {
        self.orientation
    }

    /// The format of the file's pixels.
    pub(super) fn format(&self) -> (ColorType, BitDepth) {
        let info = self.reader.info();
        (info.color_type, info.bit_depth)
    }

    /// Three bytes for each entry of the palette; empty where there is none.
    pub(super) fn palette(&self) -> &[u8] {
        self.reader.info().palette.as_deref().unwrap_or_default()
    }

    /// Number of channels of what [`Self::part`] gives, and their bits.
    pub(super) fn channels(&self) -> (usize, u8) {
        let (color, depth) = self.reader.output_color_type();
        (color.samples(), depth as u8)
    }

    /// The part `wanted` or all of it, in the file's own format or as 8-bit channels, and whether
    /// it is all.
    pub(super) fn part(self, wanted: CropBox) -> Result<(Vec<u8>, bool), DataError> {
        let size = self.size();
        let (info, output) = (self.reader.info(), self.reader.output_color_type());
        // Not so where the decoder looks up palettes or expands bits.
        let plain = output == (info.color_type, BitDepth::Eight) && info.bit_depth == output.1;
        if self.whole && plain && !info.interlaced {
            let read = match output.0.samples() {
                1 => scanlines::read::<1>,
                2 => scanlines::read::<2>,
                3 => scanlines::read::<3>,
                _ => scanlines::read::<4>,
            };
            if let Some(data) = read(&self.source, size, wanted) {
                return Ok((data, wanted == CropBox::whole(size)));
            }
        }
        let source = self.source.clone();
        let data = guarded(source.path(), FORMAT, move || self.decode())?;
        Ok((data, true))
    }

    /// All pixels as the `png` crate has them.
    fn decode(mut self) -> Result<Vec<u8>, DataError> {
        let Self { source, reader, .. } = &mut self;
        let path = source.path();
        let failed = |e| undecodable(path, FORMAT, e);
        let bytes = reader.output_buffer_size();
        let bytes = bytes.ok_or_else(|| undecodable(path, FORMAT, "too many pixels"))?;
        if reader.info().interlaced {
            let mut data = zeros(path, bytes)?;
            let frame = reader.next_frame(&mut data).map_err(failed)?;
            data.truncate(frame.buffer_size());
            return Ok(data);
        }
        let row = bytes / reader.info().height as usize;
        let mut data = Vec::new();
        while data.len() < bytes {
            reserve(&mut data, row, bytes).map_err(|_| out_of_memory(path, bytes))?;
            let start = data.len();
            data.resize(start + row, 0);
            reader.read_row(&mut data[start..]).map_err(failed)?;
        }
        // What follows the last row is part of the image, too.
        reader.read_row(&mut []).map_err(failed)?;
        Ok(data)
    }

    /// All pixels, in the file's own format or as 8-bit channels.
    pub(super) fn all(self) -> Result<Vec<u8>, DataError> {
        let size = self.size();
        Ok(self.part(CropBox::whole(size))?.0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::read_image;
    use std::fs::File;

    /// Writes `data` in any format of PNG.
    pub(crate) fn save(
        path: &Path,
        size: (u32, u32),
        color: ColorType,
        depth: BitDepth,
        data: &[u8],
    ) {
        let mut encoder = png::Encoder::new(File::create(path).unwrap(), size.0, size.1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette(vec![10, 20, 30, 40, 50, 60]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
    }

    #[test]
    fn a_header_that_promises_more_than_the_file_can_hold_takes_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.png");
        save(&path, (1, 1), ColorType::Rgb, BitDepth::Eight, &[1, 2, 3]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16..24].copy_from_slice(&[0, 0, 64, 0, 0, 1, 0, 0]);
        let crc = crc(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        let message = read_image(&path).unwrap_err().to_string();
        assert!(message.contains("16384x65536 pixels in"), "{message}");
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ byte as u32, |c, _| {
                (c >> 1) ^ if c & 1 == 1 { 0xEDB8_8320 } else { 0 }
            })
        })
    }
}
