//! Pictures and label maps in memory and in files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType};

use crate::orientation::Orientation;
use crate::{CropBox, DataError, scanlines};

/// `C` interleaved 8-bit channels, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane<const C: usize> {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width * C` values.
    pub data: Vec<u8>,
}

/// A picture, RGB.
pub type RgbImage = Plane<3>;
/// A map of class ids.
pub type LabelMap = Plane<1>;

impl<const C: usize> Plane<C> {
    /// A plane filled with one pixel.
    pub fn filled(width: usize, height: usize, pixel: [u8; C]) -> Self {
        Self {
            width,
            height,
            data: pixel.repeat(width * height),
        }
    }

    /// The row `y`: `width * C` values.
    ///
    /// # Panics
    /// If `y` is not below the height.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.width * C..(y + 1) * self.width * C]
    }
}

/// A map of instance ids: 1000 times the labelId plus a number, or the labelId alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceMap {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width` values.
    pub data: Vec<u16>,
}

fn undecodable(path: &Path, expected: &'static str, found: impl ToString) -> DataError {
    DataError::Decode {
        path: path.to_owned(),
        expected,
        found: found.to_string(),
    }
}

/// A PNG whose header has been read.
pub(crate) struct PngFile {
    path: PathBuf,
    reader: png::Reader<BufReader<File>>,
    /// Whether the file ends as a whole PNG does.
    whole: bool,
}

impl PngFile {
    /// Reads the header; `to_color8` expands palettes and bits to 8-bit channels.
    fn open(path: &Path, to_color8: bool) -> Result<Self, DataError> {
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

    fn size(&self) -> (usize, usize) {
        let info = self.reader.info();
        (info.width as usize, info.height as usize)
    }

    /// Number of channels of what [`Self::part`] gives.
    fn channels(&self) -> usize {
        self.reader.output_color_type().0.samples()
    }

    /// The part `wanted` or all of it, in the file's own format or as 8-bit channels, and whether
    /// it is all.
    fn part(mut self, wanted: CropBox) -> Result<(Vec<u8>, bool), DataError> {
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
    fn all(self) -> Result<Vec<u8>, DataError> {
        let size = self.size();
        Ok(self.part(CropBox::whole(size))?.0)
    }
}

/// Grey, grey + alpha, RGB or RGB + alpha as RGB; alpha is dropped, as OpenCV does.
fn rgb(pixel: &[u8]) -> [u8; 3] {
    match *pixel {
        [r, g, b] | [r, g, b, _] => [r, g, b],
        _ => [pixel[0]; 3],
    }
}

/// A picture of which only a part may have been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialImage {
    /// What was read.
    pub image: RgbImage,
    /// Column and row of the picture where that begins.
    pub origin: (usize, usize),
    /// Width and height of the picture.
    pub size: (usize, usize),
}

impl From<RgbImage> for PartialImage {
    fn from(image: RgbImage) -> Self {
        Self {
            origin: (0, 0),
            size: (image.width, image.height),
            image,
        }
    }
}

/// A picture of known size whose pixels may not have been decoded yet.
pub(crate) enum PendingImage {
    Png(Box<PngFile>),
    Decoded(RgbImage),
}

impl PendingImage {
    /// Opens a PNG or a JPEG, told apart by their first bytes.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let mut magic = Vec::new();
        let file = File::open(path).map_err(|e| DataError::io(path, e))?;
        file.take(4)
            .read_to_end(&mut magic)
            .map_err(|e| DataError::io(path, e))?;
        match magic[..] {
            [0x89, b'P', b'N', b'G'] => Ok(Self::Png(Box::new(PngFile::open(path, true)?))),
            [0xFF, 0xD8, ..] => read_jpeg(path).map(Self::Decoded),
            _ => {
                let found = format!("a file that starts with {magic:02x?}");
                Err(undecodable(path, "PNG or JPEG", found))
            }
        }
    }

    /// Width and height.
    pub(crate) fn size(&self) -> (usize, usize) {
        match self {
            Self::Png(png) => png.size(),
            Self::Decoded(image) => (image.width, image.height),
        }
    }

    /// The part `wanted` of the picture, or more.
    pub(crate) fn part(self, wanted: CropBox) -> Result<PartialImage, DataError> {
        let png = match self {
            Self::Png(png) => png,
            Self::Decoded(image) => return Ok(image.into()),
        };
        let (size, channels) = (png.size(), png.channels());
        assert!(
            CropBox::whole(size).contains(wanted),
            "{wanted:?} lies outside a picture of {size:?}"
        );
        let (data, all) = png.part(wanted)?;
        let part = match all {
            true => CropBox::whole(size),
            false => wanted,
        };
        let image = RgbImage {
            width: part.width,
            height: part.height,
            data: match channels {
                3 => data,
                _ => data.chunks_exact(channels).flat_map(rgb).collect(),
            },
        };
        Ok(PartialImage {
            image,
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

/// Reads a PNG or JPEG as RGB; grey, palette, 16-bit and transparent pictures are converted, and
/// the orientation that a camera noted in a JPEG is applied, as OpenCV does.
///
/// # Errors
/// If the file cannot be read or decoded.
pub fn read_image(path: &Path) -> Result<RgbImage, DataError> {
    PendingImage::open(path)?.all()
}

fn read_jpeg(path: &Path) -> Result<RgbImage, DataError> {
    use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
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

/// Opens a single-channel PNG of `depth` bits; palette indices are not looked up.
fn open_map(path: &Path, depth: BitDepth, expected: &'static str) -> Result<PngFile, DataError> {
    let png = PngFile::open(path, false)?;
    let info = png.reader.info();
    let color = info.color_type;
    let single = color == ColorType::Grayscale || color == ColorType::Indexed;
    if !single || info.bit_depth != depth {
        return Err(DataError::LabelFormat {
            path: path.to_owned(),
            expected,
            found: format!("{color:?} of {} bits", info.bit_depth as u8),
        });
    }
    Ok(png)
}

/// Reads a single-channel 8-bit PNG as it is: palette indices are not looked up.
///
/// # Errors
/// If the file cannot be read or decoded, or has another pixel format.
pub fn read_label(path: &Path) -> Result<LabelMap, DataError> {
    let png = open_map(path, BitDepth::Eight, "a label map of one 8-bit channel")?;
    let (width, height) = png.size();
    Ok(LabelMap {
        width,
        height,
        data: png.all()?,
    })
}

/// Reads a single-channel 16-bit PNG of instance ids.
///
/// # Errors
/// If the file cannot be read or decoded, or has another pixel format.
pub fn read_instances(path: &Path) -> Result<InstanceMap, DataError> {
    let png = open_map(
        path,
        BitDepth::Sixteen,
        "instance ids in one 16-bit channel",
    )?;
    let (width, height) = png.size();
    let bytes = png.all()?;
    let data = bytes.as_chunks().0.iter().map(|&v| u16::from_be_bytes(v));
    Ok(InstanceMap {
        width,
        height,
        data: data.collect(),
    })
}

fn write_png<const C: usize>(
    path: &Path,
    plane: &Plane<C>,
    color: ColorType,
) -> Result<(), DataError> {
    let fill = |out: &mut BufWriter<File>| {
        let mut encoder = png::Encoder::new(out, plane.width as u32, plane.height as u32);
        encoder.set_color(color);
        encoder.set_depth(BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&plane.data)?;
        Ok(writer.finish()?)
    };
    halfseg_files::write_atomically(path, fill).map_err(|e| DataError::io(path, e))
}

/// Writes a picture as PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
pub fn write_rgb(path: &Path, image: &RgbImage) -> Result<(), DataError> {
    write_png(path, image, ColorType::Rgb)
}

/// Writes a label map as 8-bit grey PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
pub fn write_label(path: &Path, label: &LabelMap) -> Result<(), DataError> {
    write_png(path, label, ColorType::Grayscale)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `data` in any format of PNG.
    fn save(path: &Path, size: (u32, u32), color: ColorType, depth: BitDepth, data: &[u8]) {
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
    fn every_format_of_png_becomes_rgb() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let (eight, sixteen) = (BitDepth::Eight, BitDepth::Sixteen);
        let cases: [(ColorType, BitDepth, &[u8], [u8; 6]); 7] = [
            (ColorType::Grayscale, eight, &[7, 9], [7, 7, 7, 9, 9, 9]),
            (
                ColorType::GrayscaleAlpha,
                eight,
                &[7, 0, 9, 255],
                [7, 7, 7, 9, 9, 9],
            ),
            (
                ColorType::Rgb,
                eight,
                &[1, 2, 3, 4, 5, 6],
                [1, 2, 3, 4, 5, 6],
            ),
            (
                ColorType::Rgba,
                eight,
                &[1, 2, 3, 0, 4, 5, 6, 9],
                [1, 2, 3, 4, 5, 6],
            ),
            (ColorType::Indexed, eight, &[1, 0], [40, 50, 60, 10, 20, 30]),
            (
                ColorType::Grayscale,
                BitDepth::One,
                &[0b0100_0000],
                [0, 0, 0, 255, 255, 255],
            ),
            (
                ColorType::Rgb,
                sixteen,
                &[1, 255, 2, 255, 3, 255, 4, 0, 5, 0, 6, 0],
                [1, 2, 3, 4, 5, 6],
            ),
        ];
        for (color, depth, data, expected) in cases {
            // Twice the row, so that a part of the picture can be read, too.
            save(&path, (2, 2), color, depth, &data.repeat(2));
            let image = read_image(&path).unwrap();
            assert_eq!((image.width, image.height), (2, 2));
            assert_eq!(image.data, expected.repeat(2), "{color:?} {depth:?}");
            let wanted = CropBox {
                left: 1,
                top: 1,
                width: 1,
                height: 1,
            };
            let part = PendingImage::open(&path).unwrap().part(wanted).unwrap();
            let (x, y) = (1 - part.origin.0, 1 - part.origin.1);
            let pixel = &part.image.row(y)[3 * x..3 * x + 3];
            assert_eq!((part.size, pixel), ((2, 2), &expected[3..]), "{color:?}");
        }
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

    #[test]
    fn sixteen_bit_instances_are_read_and_other_depths_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.png");
        let (gray, sixteen) = (ColorType::Grayscale, BitDepth::Sixteen);
        save(&path, (2, 1), gray, sixteen, &[0x65, 0x90, 0, 7]);
        assert_eq!(read_instances(&path).unwrap().data, [26_000, 7]);
        let message = read_label(&path).unwrap_err().to_string();
        assert!(
            message.contains("8-bit") && message.contains("16 bits"),
            "{message}"
        );
    }
}
