//! Pictures in a page.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use halfseg_data::{RgbImage, encode_rgb};

/// The width that pictures have at most, in pixels.
const WIDEST: usize = 480;

/// `image` as the address of an `img`, smaller if it is large.
pub fn data_uri(image: &RgbImage) -> String {
    let image = shrunk(image, WIDEST);
    let mut png = Vec::new();
    encode_rgb(&mut png, &image).expect("memory takes what is written");
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// At most `widest` pixels wide: means of squares, so that no single wrong pixel is lost.
fn shrunk(image: &RgbImage, widest: usize) -> RgbImage {
    let step = image.width.div_ceil(widest);
    if step <= 1 {
        return image.clone();
    }
    let (width, height) = (image.width / step, (image.height / step).max(1));
    let mut data = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        let rows = y * step..((y + 1) * step).min(image.height);
        for x in 0..width {
            let mut sums = [0u32; 3];
            for row in rows.clone() {
                let part = &image.row(row)[3 * x * step..3 * (x + 1) * step];
                for pixel in part.as_chunks::<3>().0 {
                    sums.iter_mut()
                        .zip(pixel)
                        .for_each(|(sum, value)| *sum += u32::from(*value));
                }
            }
            let count = (rows.len() * step) as u32;
            data.extend(sums.map(|sum| ((sum + count / 2) / count) as u8));
        }
    }
    RgbImage {
        width,
        height,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_become_means_of_squares() {
        let image = RgbImage {
            width: 5,
            height: 2,
            data: [10, 20, 30, 40, 99]
                .iter()
                .flat_map(|v| [*v, 0, 1])
                .chain([0; 15])
                .collect(),
        };
        let small = shrunk(&image, 2);
        assert_eq!((small.width, small.height), (1, 1));
        let small = shrunk(&image, 3);
        assert_eq!((small.width, small.height), (2, 1));
        assert_eq!(small.data, [8, 0, 1, 18, 0, 1]);
        assert_eq!(shrunk(&image, 5), image);
        assert!(data_uri(&image).starts_with("data:image/png;base64,iVBOR"));
    }
}
