//! Pictures and label maps in memory and in files.

mod jpeg;
mod png;
pub(crate) mod reader;
mod write;

use self::jpeg::Jpeg;
use self::png::PngFile;
pub use self::reader::{ImageReader, image_size, read_image, read_instances, read_label};
pub use self::write::{write_label, write_rgb};
use crate::{CropBox, DataError};

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

/// A picture of known size whose pixels have not been decoded yet.
pub(crate) enum PendingImage {
    Png(Box<PngFile>),
    Jpeg(Jpeg),
}

impl PendingImage {
    /// Width and height, the right way up.
    pub(crate) fn size(&self) -> (usize, usize) {
        match self {
            Self::Png(png) => png.size(),
            Self::Jpeg(jpeg) => jpeg.size(),
        }
    }

    /// The part `wanted` of the picture, or more.
    pub(crate) fn part(self, wanted: CropBox) -> Result<PartialImage, DataError> {
        let size = self.size();
        assert!(
            CropBox::whole(size).contains(wanted),
            "{wanted:?} lies outside a picture of {size:?}"
        );
        let png = match self {
            Self::Png(png) => png,
            Self::Jpeg(jpeg) => return Ok(jpeg.all()?.into()),
        };
        let (path, channels) = (png.path().to_owned(), png.channels());
        let (mut data, all) = png.part(wanted)?;
        let part = match all {
            true => CropBox::whole(size),
            false => wanted,
        };
        if channels != 3 {
            let mut colors = reader::room(&path, data.len() / channels * 3)?;
            colors.extend(data.chunks_exact(channels).flat_map(rgb));
            data = colors;
        }
        Ok(PartialImage {
            image: RgbImage {
                width: part.width,
                height: part.height,
                data,
            },
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

#[cfg(test)]
mod tests {
    use super::png::tests::save;
    use super::*;
    use ::png::{BitDepth, ColorType};

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
            let part = PendingImage::open(&path, ImageReader::default())
                .unwrap()
                .part(wanted)
                .unwrap();
            let (x, y) = (1 - part.origin.0, 1 - part.origin.1);
            let pixel = &part.image.row(y)[3 * x..3 * x + 3];
            assert_eq!((part.size, pixel), ((2, 2), &expected[3..]), "{color:?}");
        }
    }

    #[test]
    fn instances_of_sixteen_and_eight_bits_are_read_and_other_depths_refused() {
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
        save(&path, (2, 1), gray, BitDepth::Eight, &[26, 7]);
        assert_eq!(read_instances(&path).unwrap().data, [26, 7]);
        save(&path, (2, 1), gray, BitDepth::Four, &[0x77]);
        let message = read_instances(&path).unwrap_err().to_string();
        assert!(
            message.contains("16-bit") && message.contains("4 bits"),
            "{message}"
        );
    }
}
