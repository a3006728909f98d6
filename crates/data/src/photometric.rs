//! Photometric distortion as MMSegmentation does it on 8-bit pictures.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::RgbImage;

/// The parameters of one distortion; `None` leaves a step out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Photometric {
    /// Added to every value, in [-32, 32).
    pub brightness: Option<f32>,
    /// Factor of every value, in [0.5, 1.5).
    pub contrast: Option<f32>,
    /// Whether contrast comes before saturation and hue (mode 1) or after.
    pub contrast_first: bool,
    /// Factor of the saturation, in [0.5, 1.5).
    pub saturation: Option<f32>,
    /// Added to the hue (0 to 179), in [-18, 17].
    pub hue: Option<i32>,
}

impl Photometric {
    /// Draws every step with probability one half.
    pub fn sample(rng: &mut impl Rng) -> Self {
        let brightness = rng.random::<bool>().then(|| rng.random_range(-32.0..32.0));
        let contrast_first = rng.random();
        let contrast = rng.random::<bool>().then(|| rng.random_range(0.5..1.5));
        let saturation = rng.random::<bool>().then(|| rng.random_range(0.5..1.5));
        let hue = rng.random::<bool>().then(|| rng.random_range(-18..18));
        Self {
            brightness,
            contrast,
            contrast_first,
            saturation,
            hue,
        }
    }

    /// Applies the distortion in place.
    pub fn apply(&self, image: &mut RgbImage) {
        if let Some(beta) = self.brightness {
            affine(&mut image.data, 1.0, beta);
        }
        if let (Some(alpha), true) = (self.contrast, self.contrast_first) {
            affine(&mut image.data, alpha, 0.0);
        }
        // The peer converts to HSV and back once for each of the two steps.
        if let Some(alpha) = self.saturation {
            through_hsv(image, |[h, s, v]| [h, convert(s, alpha, 0.0), v]);
        }
        if let Some(delta) = self.hue {
            through_hsv(image, |[h, s, v]| {
                [(h as i32 + delta).rem_euclid(180) as u8, s, v]
            });
        }
        if let (Some(alpha), false) = (self.contrast, self.contrast_first) {
            affine(&mut image.data, alpha, 0.0);
        }
    }
}

fn convert(value: u8, alpha: f32, beta: f32) -> u8 {
    (value as f32 * alpha + beta).clamp(0.0, 255.0) as u8
}

fn affine(data: &mut [u8], alpha: f32, beta: f32) {
    let table: [u8; 256] = std::array::from_fn(|v| convert(v as u8, alpha, beta));
    data.iter_mut().for_each(|v| *v = table[*v as usize]);
}

fn through_hsv(image: &mut RgbImage, change: impl Fn([u8; 3]) -> [u8; 3]) {
    // OpenCV's vector code truncates; its scalar tail of a row rounds.
    let tail = image.width - image.width % 32;
    for row in image.data.chunks_exact_mut(image.width * 3) {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let hsv = change(hsv_from_rgb([pixel[0], pixel[1], pixel[2]]));
            let [b, g, r] = bgr_from_hsv(hsv, x >= tail);
            pixel.copy_from_slice(&[r, g, b]);
        }
    }
}

const fn table(numerator: i32, scale: i32) -> [i32; 256] {
    let mut table = [0; 256];
    let mut i = 1;
    while i < 256 {
        let denominator = scale * i;
        // Round half to even, as OpenCV's saturate_cast does.
        let (q, r) = (numerator / denominator, numerator % denominator);
        let up = 2 * r > denominator || (2 * r == denominator && q % 2 == 1);
        table[i as usize] = q + up as i32;
        i += 1;
    }
    table
}
static SATURATION: [i32; 256] = table(255 << 12, 1);
static HUE: [i32; 256] = table(180 << 12, 6);

/// Hue (0 to 179), saturation and value of an RGB pixel: OpenCV's fixed-point tables.
pub fn hsv_from_rgb([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (r, g, b) = (r as i32, g as i32, b as i32);
    let value = r.max(g).max(b);
    let diff = value - r.min(g).min(b);
    let saturation = (diff * SATURATION[value as usize] + 2048) >> 12;
    let hue = if value == r {
        g - b
    } else if value == g {
        b - r + 2 * diff
    } else {
        r - g + 4 * diff
    };
    let hue = (hue * HUE[diff as usize] + 2048) >> 12;
    let hue = if hue < 0 { hue + 180 } else { hue };
    [hue as u8, saturation.min(255) as u8, value as u8]
}

/// Blue, green, red of a pixel of [`hsv_from_rgb`]; truncated, or rounded to the nearest.
pub fn bgr_from_hsv([h, s, v]: [u8; 3], round: bool) -> [u8; 3] {
    let (s, v) = (s as f32 * (1.0 / 255.0), v as f32 * (1.0 / 255.0));
    let h = h as f32 * (6.0 / 180.0);
    let sector = h.floor();
    let fraction = h - sector;
    let table = [
        v,
        v * (1.0 - s),
        v * (-s).mul_add(fraction, 1.0),
        v * (-s).mul_add(1.0 - fraction, 1.0),
    ];
    let [b, g, r] = [
        [1, 3, 0],
        [1, 0, 2],
        [3, 0, 1],
        [0, 2, 1],
        [0, 1, 3],
        [2, 1, 0],
    ][sector as usize % 6];
    [b, g, r].map(|i: usize| {
        let value = table[i] * 255.0;
        if round {
            value.round_ties_even() as u8
        } else {
            value as u8
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primary_colours_have_their_hues() {
        assert_eq!(hsv_from_rgb([255, 0, 0]), [0, 255, 255]);
        assert_eq!(hsv_from_rgb([0, 255, 0]), [60, 255, 255]);
        assert_eq!(hsv_from_rgb([0, 0, 255]), [120, 255, 255]);
        assert_eq!(hsv_from_rgb([9, 9, 9]), [0, 0, 9]);
        for rgb in [
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [255, 255, 255],
            [0, 0, 0],
        ] {
            let [b, g, r] = bgr_from_hsv(hsv_from_rgb(rgb), true);
            assert_eq!([r, g, b], rgb);
        }
    }

    #[test]
    fn brightness_truncates_and_clips() {
        let mut image = RgbImage {
            width: 1,
            height: 1,
            data: vec![0, 100, 250],
        };
        Photometric {
            brightness: Some(10.7),
            ..Default::default()
        }
        .apply(&mut image);
        assert_eq!(image.data, [10, 110, 255]);
    }
}
