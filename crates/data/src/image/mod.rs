//! Pictures and label maps in memory and in files.

mod jpeg;
pub(crate) mod limits;
pub(crate) mod mask;
mod pending;
mod plane;
mod png;
mod reader;
pub(crate) mod source;
#[cfg(feature = "tiff")]
mod tiff;
mod write;

pub use self::limits::ImageReader;
pub(crate) use self::pending::PendingImage;
pub use self::pending::is_picture;
pub use self::plane::{InstanceMap, LabelMap, PartialImage, Plane, RgbImage};
pub use self::reader::{OpenedPicture, image_size, read_image, read_instances, read_label};
pub use self::write::{encode_label, encode_rgb, is_own_png, write_label, write_rgb};

#[cfg(test)]
mod tests {
    use super::png::tests::save;
    use super::*;
    use crate::CropBox;
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
            let rgb = part.image.rgb().unwrap();
            let pixel = &rgb.row(y)[3 * x..3 * x + 3];
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
