//! PNG files.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType};

use super::undecodable;
use crate::{CropBox, DataError, scanlines};

/// A PNG whose header has been read.
pub(crate) struct PngFile {
    path: PathBuf,
    reader: png::Reader<BufReader<File>>,
    /// Whether the file ends as a whole PNG does.
    whole: bool,
}

impl PngFile {
    /// Reads the header; `to_color8` expands palettes and bits to 8-bit channels.
    pub(super) fn open(path: &Path, to_color8: bool) -> Result<Self, DataError> {
        let io = |e| DataError::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(io)?;
        let mut end = [0; 8];
        if bytes >= 8 {
            file.seek(SeekFrom::End(-8)).map_err(io)?;
            file.read_exact(&mut end).map_err(io)?;
        }
        file.rewind().map_err(io)?;
        let mut decoder = png::Decoder::new(BufReader::with_capacity(1 << 16, file));
        if to_color8 {
            decoder.set_transformations(png::Transformations::normalize_to_color8());
        }
        let reader = decoder
            .read_info()
            .map_err(|e| undecodable(path, "PNG", e))?;
        let info = reader.info();
        let (width, height) = (info.width as u64, info.height as u64);
        // Deflate cannot shrink by more than 1032: a header that promises more pixels than the
        // file can hold is refused before memory is taken for them.
        let pixel_bits = info.color_type.samples() as u64 * info.bit_depth as u64;
        if width * height / 8 * pixel_bits / 1032 > bytes {
            let found = format!("{width}x{height} pixels in {bytes} bytes");
            return Err(undecodable(path, "PNG", found));
        }
        Ok(Self {
            path: path.to_owned(),
            reader,
            whole: end[..4] == *b"IEND",
        })
    }

    pub(super) fn size(&self) -> (usize, usize) {
        let info = self.reader.info();
        (info.width as usize, info.height as usize)
    }

    /// The format of the file's pixels.
    pub(super) fn format(&self) -> (ColorType, BitDepth) {
        let info = self.reader.info();
        (info.color_type, info.bit_depth)
    }

    /// Number of channels of what [`Self::part`] gives.
    pub(super) fn channels(&self) -> usize {
        self.reader.output_color_type().0.samples()
    }

    /// The part `wanted` or all of it, in the file's own format or as 8-bit channels, and whether
    /// it is all.
    pub(super) fn part(mut self, wanted: CropBox) -> Result<(Vec<u8>, bool), DataError> {
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
            if let Some(data) = read(&self.path, size, wanted) {
                return Ok((data, wanted == CropBox::whole(size)));
            }
        }
        let bytes = self.reader.output_buffer_size();
        let bytes = bytes.ok_or_else(|| undecodable(&self.path, "PNG", "too many pixels"))?;
        let mut data = vec![0; bytes];
        let frame = self.reader.next_frame(&mut data);
        let frame = frame.map_err(|e| undecodable(&self.path, "PNG", e))?;
        data.truncate(frame.buffer_size());
        Ok((data, true))
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
        bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        let crc = crc(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        let message = read_image(&path).unwrap_err().to_string();
        assert!(message.contains("65536x65536 pixels in"), "{message}");
    }

    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ byte as u32, |c, _| {
                (c >> 1) ^ if c & 1 == 1 { 0xEDB8_8320 } else { 0 }
            })
        })
    }
}
