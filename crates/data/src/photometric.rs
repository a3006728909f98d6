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
        let row_values = (image.width * 3).max(1);
        for row in image.data.chunks_exact_mut(row_values) {
            self.apply_row(row);
        }
    }

    /// Applies the distortion to a whole row of pixels.
    pub(crate) fn apply_row(&self, row: &mut [u8]) {
        if let Some(beta) = self.brightness {
            affine(row, 1.0, beta);
        }
        if let (Some(alpha), true) = (self.contrast, self.contrast_first) {
            affine(row, alpha, 0.0);
        }
        // The peer converts to HSV and back once for each of the two steps.
        if let Some(alpha) = self.saturation {
            through_hsv(row, Change::Saturation(alpha));
        }
        if let Some(delta) = self.hue {
            through_hsv(row, Change::Hue(delta.rem_euclid(180)));
        }
        if let (Some(alpha), false) = (self.contrast, self.contrast_first) {
            affine(row, alpha, 0.0);
        }
    }
}

/// The integer nearest to a value from 0 to 2^22, ties to even.
///
/// A sum with 2^23 has steps of 1, so that its lowest bits are the integer. The cast `as i32` also
/// treats infinities and values that are not a number, for which compilers leave vector registers.
#[inline(always)]
fn rounded(value: f32) -> i32 {
    const STEPS_OF_ONE: f32 = (1 << 23) as f32;
    (value + STEPS_OF_ONE).to_bits() as i32 - STEPS_OF_ONE.to_bits() as i32
}

/// The integer part of a value from 0 to 2^22.
#[inline(always)]
fn truncated(value: f32) -> i32 {
    rounded(value.floor())
}

#[inline(always)]
fn convert(value: u8, alpha: f32, beta: f32) -> u8 {
    truncated((value as f32 * alpha + beta).clamp(0.0, 255.0)) as u8
}

fn affine(data: &mut [u8], alpha: f32, beta: f32) {
    vectorized!(move data => data.iter_mut().for_each(|v| *v = convert(*v, alpha, beta)));
}

/// What happens to a picture while it is HSV.
#[derive(Clone, Copy)]
enum Change {
    Saturation(f32),
    /// In 0 to 179.
    Hue(i32),
}

impl Change {
    #[inline(always)]
    fn apply(self, [h, s, v]: [u8; 3]) -> [u8; 3] {
        match self {
            Self::Saturation(alpha) => [h, convert(s, alpha, 0.0), v],
            Self::Hue(delta) => {
                let h = h as i32 + delta;
                [if h >= 180 { h - 180 } else { h } as u8, s, v]
            }
        }
    }
}

/// Pixels that OpenCV's vector code converts at once (32 bytes of each channel).
const LANES: usize = 32;

fn through_hsv(row: &mut [u8], change: Change) {
    vectorized!(move row => {
        let (blocks, tail) = row.as_chunks_mut::<{ 3 * LANES }>();
        for block in blocks {
            change_block(block, change);
        }
        // OpenCV's vector code truncates; its scalar tail of a row rounds.
        for pixel in tail.as_chunks_mut::<3>().0 {
            let [b, g, r] = bgr_from_hsv(change.apply(hsv_from_rgb(*pixel)), true);
            *pixel = [r, g, b];
        }
    });
}

/// Channel by channel in fixed-size arrays, which compilers turn into vector code.
#[inline(always)]
fn change_block(block: &mut [u8; 3 * LANES], change: Change) {
    let [mut r, mut g, mut b] = [[0u8; LANES]; 3];
    for i in 0..LANES {
        r[i] = block[3 * i];
        g[i] = block[3 * i + 1];
        b[i] = block[3 * i + 2];
    }
    for i in 0..LANES {
        let hsv = change.apply(hsv_from_rgb([r[i], g[i], b[i]]));
        let bgr = bgr_from_hsv(hsv, false);
        b[i] = bgr[0];
        g[i] = bgr[1];
        r[i] = bgr[2];
    }
    for i in 0..LANES {
        block[3 * i] = r[i];
        block[3 * i + 1] = g[i];
        block[3 * i + 2] = b[i];
    }
}

/// `rint(numerator / denominator)` as OpenCV's tables hold it, 0 for a denominator of 0.
///
/// A quotient of these integers lies at least `1 / (2 denominator)` from a tie unless it is one,
/// and f32 division errs by less, so the rounding is exact; a division in a vector register is
/// cheaper than a gather from the table.
#[inline(always)]
fn fixed_point(numerator: i32, denominator: i32) -> i32 {
    let quotient = rounded(numerator as f32 / denominator.max(1) as f32);
    if denominator == 0 { 0 } else { quotient }
}

/// Hue (0 to 179), saturation and value of an RGB pixel, in OpenCV's 12-bit fixed point.
#[inline(always)]
pub fn hsv_from_rgb([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (r, g, b) = (r as i32, g as i32, b as i32);
    let value = r.max(g).max(b);
    let diff = value - r.min(g).min(b);
    let saturation = (diff * fixed_point(255 << 12, value) + 2048) >> 12;
    let hue = if value == r {
        g - b
    } else if value == g {
        b - r + 2 * diff
    } else {
        r - g + 4 * diff
    };
    let hue = (hue * fixed_point((180 << 12) / 6, diff) + 2048) >> 12;
    let hue = if hue < 0 { hue + 180 } else { hue };
    [hue as u8, saturation as u8, value as u8]
}

/// Blue, green, red of a pixel of [`hsv_from_rgb`]; truncated, or rounded to the nearest.
#[inline(always)]
pub fn bgr_from_hsv([h, s, v]: [u8; 3], round: bool) -> [u8; 3] {
    let (s, v) = (s as f32 * (1.0 / 255.0), v as f32 * (1.0 / 255.0));
    let h = h as f32 * (6.0 / 180.0);
    let sector = h.floor();
    let fraction = h - sector;
    let low = v * (1.0 - s);
    let falling = v * (-s).mul_add(fraction, 1.0);
    let rising = v * (-s).mul_add(1.0 - fraction, 1.0);
    // Hues past the circle (180 to 255) wrap.
    let sector = rounded(sector);
    let sector = if sector >= 6 { sector - 6 } else { sector };
    let pick = |choices: [f32; 6]| {
        let mut value = choices[5];
        for (i, &choice) in choices[..5].iter().enumerate() {
            value = if sector == i as i32 { choice } else { value };
        }
        let value = value * 255.0;
        (if round {
            rounded(value)
        } else {
            truncated(value)
        }) as u8
    };
    [
        pick([low, low, rising, v, v, falling]),
        pick([rising, v, v, falling, low, low]),
        pick([v, falling, low, low, rising, v]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_point_reciprocals_equal_exact_integer_rounding() {
        for numerator in [255 << 12, (180 << 12) / 6] {
            for d in 1..256 {
                let (q, r) = (numerator / d, numerator % d);
                let up = 2 * r > d || (2 * r == d && q % 2 == 1);
                assert_eq!(
                    fixed_point(numerator, d),
                    q + up as i32,
                    "{numerator} / {d}"
                );
            }
            assert_eq!(fixed_point(numerator, 0), 0);
        }
    }

    #[test]
    fn integers_of_values_equal_casts() {
        let steps = (0..=255 * 64).map(|i| i as f32 / 64.0);
        let wide = (0..=4096).map(|i| i as f32 * 255.96875);
        for value in steps.chain(wide) {
            assert_eq!(truncated(value), value as i32, "{value}");
            assert_eq!(rounded(value), value.round_ties_even() as i32, "{value}");
        }
    }

    /// Where a sum below 0 would not be a small number.
    #[test]
    fn a_full_saturation_leaves_nothing_of_the_lowest_channel() {
        for h in 0..=255 {
            for v in 0..=255 {
                for round in [false, true] {
                    let bgr = bgr_from_hsv([h, 255, v], round);
                    assert_eq!((bgr.iter().min(), bgr.iter().max()), (Some(&0), Some(&v)));
                }
            }
        }
    }

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

    #[test]
    fn a_distortion_does_not_depend_on_the_place_within_whole_blocks() {
        let pixels: Vec<u8> = (0..LANES * 3).map(|i| (i * 83 % 256) as u8).collect();
        let mut one = RgbImage {
            width: LANES,
            height: 1,
            data: pixels.clone(),
        };
        let mut two = RgbImage {
            width: LANES,
            height: 2,
            data: pixels.repeat(2),
        };
        let distortion = Photometric {
            saturation: Some(1.3),
            hue: Some(-9),
            ..Default::default()
        };
        distortion.apply(&mut one);
        distortion.apply(&mut two);
        assert_eq!(two.data, one.data.repeat(2));
        assert_ne!(one.data, pixels);
    }
}
