//! Pictures and label maps in memory and in files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use crate::DataError;

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

struct Decoded {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<u8>,
}

fn decode_png(
    path: &Path,
    expand: bool,
) -> Result<(Decoded, png::ColorType, png::BitDepth), DataError> {
    let failed = |error: png::DecodingError| DataError::Decode {
        path: path.to_owned(),
        expected: "PNG",
        found: error.to_string(),
    };
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let mut decoder = png::Decoder::new(BufReader::new(file));
    if expand {
        decoder.set_transformations(png::Transformations::normalize_to_color8());
    }
    let mut reader = decoder.read_info().map_err(failed)?;
    let (color, depth) = (reader.info().color_type, reader.info().bit_depth);
    let Some(size) = reader.output_buffer_size() else {
        return Err(DataError::Decode {
            path: path.to_owned(),
            expected: "PNG",
            found: "an image larger than memory".into(),
        });
    };
    let mut data = vec![0; size];
    let info = reader.next_frame(&mut data).map_err(failed)?;
    data.truncate(info.buffer_size());
    let decoded = Decoded {
        width: info.width as usize,
        height: info.height as usize,
        channels: info.color_type.samples(),
        data,
    };
    Ok((decoded, color, depth))
}

/// Reads a PNG or JPEG as RGB; grey, palette, 16-bit and transparent pictures are converted.
///
/// # Errors
/// If the file cannot be read or decoded.
pub fn read_image(path: &Path) -> Result<RgbImage, DataError> {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or("")
        .to_ascii_lowercase();
    if extension == "jpg" || extension == "jpeg" {
        return read_jpeg(path);
    }
    let (
        Decoded {
            width,
            height,
            channels,
            data,
        },
        ..,
    ) = decode_png(path, true)?;
    let data = match channels {
        3 => data,
        1 => data.iter().flat_map(|&v| [v; 3]).collect(),
        2 => data.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        _ => data
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
    };
    Ok(RgbImage {
        width,
        height,
        data,
    })
}

fn read_jpeg(path: &Path) -> Result<RgbImage, DataError> {
    use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
    let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
    let failed = |found: String| DataError::Decode {
        path: path.to_owned(),
        expected: "JPEG",
        found,
    };
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_strict_mode(true);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let data = decoder.decode().map_err(|e| failed(e.to_string()))?;
    let (width, height) = decoder
        .dimensions()
        .ok_or_else(|| failed("no dimensions".into()))?;
    Ok(RgbImage {
        width,
        height,
        data,
    })
}

/// Reads a single-channel 8-bit PNG as it is: palette indices are not looked up.
///
/// # Errors
/// If the file cannot be read or decoded, or has another pixel format.
pub fn read_label(path: &Path) -> Result<LabelMap, DataError> {
    let (decoded, color, depth) = decode_png(path, false)?;
    let single = matches!(color, png::ColorType::Grayscale | png::ColorType::Indexed);
    if !single || depth != png::BitDepth::Eight {
        return Err(DataError::LabelFormat {
            path: path.to_owned(),
            found: format!("{color:?} of {} bits", depth as u8),
        });
    }
    Ok(LabelMap {
        width: decoded.width,
        height: decoded.height,
        data: decoded.data,
    })
}

fn write_png<const C: usize>(
    path: &Path,
    plane: &Plane<C>,
    color: png::ColorType,
) -> Result<(), DataError> {
    let io = |e| DataError::io(path, e);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut out = BufWriter::new(File::create(&temporary).map_err(io)?);
    let mut encoder = png::Encoder::new(&mut out, plane.width as u32, plane.height as u32);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| io(e.into()))?;
    writer
        .write_image_data(&plane.data)
        .map_err(|e| io(e.into()))?;
    writer.finish().map_err(|e| io(e.into()))?;
    out.flush().map_err(io)?;
    drop(out);
    std::fs::rename(&temporary, path).map_err(io)
}

/// Writes a picture as PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
pub fn write_rgb(path: &Path, image: &RgbImage) -> Result<(), DataError> {
    write_png(path, image, png::ColorType::Rgb)
}

/// Writes a label map as 8-bit grey PNG, under a temporary name until it is whole.
///
/// # Errors
/// If the file cannot be written.
pub fn write_label(path: &Path, label: &LabelMap) -> Result<(), DataError> {
    write_png(path, label, png::ColorType::Grayscale)
}
