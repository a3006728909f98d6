//! Augmentations beyond the published recipe: rotation, blur, noise, holes, and crops around rare classes.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{CropBox, IGNORE, LabelMap};

/// What is done to training samples besides the published recipe, which the default is: nothing. Each is done with a
/// probability of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Probability that a crop is drawn around a pixel of a class: first the class, each that the label map has as
    /// likely as another, then one of its pixels.
    pub class_crop: f64,
    /// Probability of turning a crop upside down (mirroring its top and bottom).
    pub vertical_flip: f64,
    /// Probability of a rotation.
    pub rotation: f64,
    /// Its largest angle either way, in degrees.
    pub rotation_degrees: f64,
    /// Probability of a Gaussian blur.
    pub blur: f64,
    /// Its largest standard deviation, in pixels.
    pub blur_sigma: f64,
    /// Probability of Gaussian noise.
    pub noise: f64,
    /// Its largest standard deviation, in 1/255 of the largest value.
    pub noise_std: f64,
    /// Probability of holes.
    pub cutout: f64,
    /// How many there are.
    pub cutout_holes: usize,
    /// Their sides, as shares of those of the crop.
    pub cutout_share: f64,
}

impl Augment {
    /// The first value that makes no sense: its name, what it may be, and what it is.
    pub fn wrong(&self) -> Option<(&'static str, &'static str, f64)> {
        let probability = |v: f64| (0.0..=1.0).contains(&v);
        for (name, value) in [
            ("class_crop", self.class_crop),
            ("vertical_flip", self.vertical_flip),
            ("rotation", self.rotation),
            ("blur", self.blur),
            ("noise", self.noise),
            ("cutout", self.cutout),
        ] {
            if !probability(value) {
                return Some((name, "a probability from 0 to 1", value));
            }
        }
        if !(0.0..=180.0).contains(&self.rotation_degrees) {
            let expected = "degrees from 0 to 180";
            return Some(("rotation_degrees", expected, self.rotation_degrees));
        }
        if !(0.0..=100.0).contains(&self.blur_sigma) {
            return Some(("blur_sigma", "pixels from 0 to 100", self.blur_sigma));
        }
        if !(0.0..=255.0).contains(&self.noise_std) {
            return Some(("noise_std", "a number from 0 to 255", self.noise_std));
        }
        if self.cutout_holes > MOST_HOLES {
            let found = self.cutout_holes as f64;
            return Some(("cutout_holes", "at most 1000", found));
        }
        (!probability(self.cutout_share)).then_some((
            "cutout_share",
            "a share from 0 to 1",
            self.cutout_share,
        ))
    }

    /// Draws what is done to a crop of `size` (width, height).
    pub(crate) fn choose(&self, size: (usize, usize), rng: &mut impl Rng) -> Augmented {
        let vertical_flip = happens(rng, self.vertical_flip);
        let rotation = happens(rng, self.rotation).then(|| {
            let most = self.rotation_degrees;
            rng.random_range(-most..=most)
        });
        let blur = happens(rng, self.blur).then(|| rng.random_range(0.0..=self.blur_sigma));
        let noise = happens(rng, self.noise).then(|| Noise {
            std: rng.random_range(0.0..=self.noise_std),
            seed: rng.random(),
        });
        let mut holes = Vec::new();
        if happens(rng, self.cutout) {
            let side = |of: usize| (self.cutout_share * of as f64) as usize;
            for _ in 0..self.cutout_holes {
                let (left, top) = (rng.random_range(0..size.0), rng.random_range(0..size.1));
                holes.push(CropBox {
                    left,
                    top,
                    width: side(size.0).min(size.0 - left),
                    height: side(size.1).min(size.1 - top),
                });
            }
        }
        Augmented {
            vertical_flip,
            rotation,
            blur,
            noise,
            holes,
        }
    }
}

const MOST_HOLES: usize = 1000;

/// Whether something of this probability happens. Nothing is drawn for what never does.
pub(crate) fn happens(rng: &mut impl Rng, probability: f64) -> bool {
    probability > 0.0 && rng.random_bool(probability)
}

/// A crop of `crop` (width, height) in a picture that `label` is resized to `size` for, around a pixel of a class that
/// is drawn first. Nothing where there are only ignored pixels.
pub(crate) fn crop_around_class(
    label: &LabelMap,
    size: (usize, usize),
    crop: (usize, usize),
    rng: &mut impl Rng,
) -> Option<CropBox> {
    let mut pixels = [0usize; 256];
    label
        .data
        .iter()
        .for_each(|id| pixels[usize::from(*id)] += 1);
    let classes: Vec<usize> = (0..usize::from(IGNORE))
        .filter(|class| pixels[*class] > 0)
        .collect();
    let class = *classes.get(rng.random_range(0..classes.len().max(1)))?;
    let nth = rng.random_range(0..pixels[class]);
    let of_class = |(_, id): &(usize, &u8)| usize::from(**id) == class;
    let (place, _) = label.data.iter().enumerate().filter(of_class).nth(nth)?;
    let mut start = |at: usize, from: usize, to: usize, side: usize| {
        // The middle of the pixel, at the new size.
        let at = (2 * at + 1) * to / (2 * from);
        let (first, last) = (at.saturating_sub(side - 1), at.min(to - side));
        rng.random_range(first.min(last)..=last)
    };
    Some(CropBox {
        left: start(place % label.width, label.width, size.0, crop.0),
        top: start(place / label.width, label.height, size.1, crop.1),
        width: crop.0,
        height: crop.1,
    })
}

/// Noise of a standard deviation, in 1/255 of the largest value, from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    /// The standard deviation.
    pub std: f64,
    /// Where it comes from.
    pub seed: u64,
}

/// What [`Augment`] has drawn for a crop. It is done in the order of the fields, colours being distorted after the
/// rotation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmented {
    /// Whether top and bottom are mirrored.
    pub vertical_flip: bool,
    /// Degrees that the crop is turned clockwise by, around its middle.
    pub rotation: Option<f64>,
    /// Standard deviation of the blur, in pixels.
    pub blur: Option<f64>,
    /// What is added to each value.
    pub noise: Option<Noise>,
    /// What becomes black. Labels stay.
    pub holes: Vec<CropBox>,
}

impl Augmented {
    /// Whether nothing is done.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Moves the pixels of a crop of `size` (width, height) with `channels` values a pixel; what comes from outside is
    /// `fill`.
    pub(crate) fn place<V: Value>(
        &self,
        data: &mut Vec<V>,
        size: (usize, usize),
        channels: usize,
        fill: Fill<V>,
    ) {
        if self.vertical_flip {
            let row = size.0 * channels;
            let rows = data.chunks_exact(row).rev();
            *data = rows.flatten().copied().collect();
        }
        if let Some(degrees) = self.rotation {
            *data = match fill {
                Fill::Blended(fill) => rotated(data, size, channels, degrees, fill),
                Fill::Nearest(fill) => rotated_nearest(data, size, degrees, fill),
            };
        }
    }

    /// Changes the values of a crop.
    pub(crate) fn change<V: Value>(
        &self,
        data: &mut [V],
        size: (usize, usize),
        channels: usize,
        largest: u16,
    ) {
        if let Some(sigma) = self.blur.filter(|sigma| *sigma > 0.0) {
            blur(data, size, channels, sigma);
        }
        if let Some(noise) = self.noise {
            add_noise(data, noise, largest);
        }
        let row = size.0 * channels;
        for hole in &self.holes {
            let columns = hole.left * channels..(hole.left + hole.width) * channels;
            for line in data.chunks_exact_mut(row).skip(hole.top).take(hole.height) {
                line[columns.clone()].fill(V::default());
            }
        }
    }
}

/// How values between pixels come about, and what lies outside.
#[derive(Clone, Copy)]
pub(crate) enum Fill<V> {
    /// Mixed, of pictures.
    Blended(V),
    /// The nearest, of label maps.
    Nearest(V),
}

/// A value of a picture.
pub(crate) trait Value: Copy + Default + Into<u32> + Into<f32> {
    /// 1/1024 of a sum, rounded as OpenCV does it for this type.
    fn of_1024(sum: u32) -> Self;
    /// The nearest value.
    fn nearest(value: f32, largest: u16) -> Self;
    /// How many standard deviations a Gaussian's kernel reaches, as OpenCV has it for this type.
    const REACH: f64;
}

impl Value for u8 {
    fn of_1024(sum: u32) -> Self {
        ((sum + 512) >> 10) as u8
    }

    fn nearest(value: f32, largest: u16) -> Self {
        value.round_ties_even().clamp(0.0, largest.into()) as u8
    }

    const REACH: f64 = 3.0;
}

impl Value for u16 {
    fn of_1024(sum: u32) -> Self {
        // Ties to even.
        ((sum + 511 + (sum >> 10 & 1)) >> 10) as u16
    }

    fn nearest(value: f32, largest: u16) -> Self {
        value.round_ties_even().clamp(0.0, largest.into()) as u16
    }

    const REACH: f64 = 4.0;
}

/// Where OpenCV's `warpAffine` reads for each pixel, in 1/1024 of pixels: the matrix that `getRotationMatrix2D` gives
/// for the middle, turned around, applied in steps that are rounded one by one.
struct Turned {
    columns: Vec<[i64; 2]>,
    rows: Vec<[i64; 2]>,
}

impl Turned {
    fn new((width, height): (usize, usize), degrees: f64) -> Self {
        let radians = -degrees * std::f64::consts::PI / 180.0;
        let (alpha, beta) = (radians.cos(), radians.sin());
        let center = [(width as f64 - 1.0) * 0.5, (height as f64 - 1.0) * 0.5];
        let shift = [
            (1.0 - alpha) * center[0] - beta * center[1],
            beta * center[0] + (1.0 - alpha) * center[1],
        ];
        let scale = 1.0 / (alpha * alpha + beta * beta);
        let (a, b) = (alpha * scale, beta * scale);
        let back = [-a * shift[0] + b * shift[1], -b * shift[0] - a * shift[1]];
        let step = |v: f64| (v * 1024.0).round_ties_even() as i64;
        let column = |x: usize| [step(a * x as f64), step(b * x as f64)];
        let row = |y: usize| [step(-b * y as f64 + back[0]), step(a * y as f64 + back[1])];
        Self {
            columns: (0..width).map(column).collect(),
            rows: (0..height).map(row).collect(),
        }
    }
}

/// Turns clockwise by `degrees` with bilinear interpolation, as MMSegmentation's `RandomRotate` does with OpenCV.
fn rotated<V: Value>(
    data: &[V],
    (width, height): (usize, usize),
    channels: usize,
    degrees: f64,
    fill: V,
) -> Vec<V> {
    let turned = Turned::new((width, height), degrees);
    let mut out = Vec::with_capacity(data.len());
    for row in &turned.rows {
        for column in &turned.columns {
            // Rounded to 1/32 of a pixel.
            let [x, y] = [0, 1].map(|i| (column[i] + row[i] + 16) >> 5);
            let (fx, fy) = ((x & 31) as u32, (y & 31) as u32);
            let (x, y) = (x >> 5, y >> 5);
            let corners = [
                (x, y, (32 - fx) * (32 - fy)),
                (x + 1, y, fx * (32 - fy)),
                (x, y + 1, (32 - fx) * fy),
                (x + 1, y + 1, fx * fy),
            ];
            let inside =
                |x: i64, y: i64| (0..width as i64).contains(&x) && (0..height as i64).contains(&y);
            out.extend((0..channels).map(|c| {
                let values = corners.map(|(x, y, weight)| {
                    let value = match inside(x, y) {
                        true => data[(y as usize * width + x as usize) * channels + c],
                        false => fill,
                    };
                    Into::<u32>::into(value) * weight
                });
                V::of_1024(values.iter().sum())
            }));
        }
    }
    out
}

/// The same of one channel, with the nearest value.
fn rotated_nearest<V: Value>(
    data: &[V],
    (width, height): (usize, usize),
    degrees: f64,
    fill: V,
) -> Vec<V> {
    let turned = Turned::new((width, height), degrees);
    let mut out = Vec::with_capacity(data.len());
    for row in &turned.rows {
        out.extend(turned.columns.iter().map(|column| {
            let [x, y] = [0, 1].map(|i| usize::try_from((column[i] + row[i] + 512) >> 10));
            match (x, y) {
                (Ok(x), Ok(y)) if x < width && y < height => data[y * width + x],
                _ => fill,
            }
        }));
    }
    out
}

/// Gaussian blur with the kernel and the mirrored borders of OpenCV's `GaussianBlur`, in f32.
fn blur<V: Value>(data: &mut [V], (width, height): (usize, usize), channels: usize, sigma: f64) {
    let size = (sigma * V::REACH * 2.0 + 1.0).round_ties_even() as usize | 1;
    let radius = size as isize / 2;
    let weights = (-radius..=radius).map(|i| (-0.5 * (i as f64 / sigma).powi(2)).exp());
    let weights: Vec<f64> = weights.collect();
    let sum: f64 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|weight| (weight / sum) as f32).collect();
    let row = width * channels;
    let mut across = vec![0.0f32; data.len()];
    for (line, out) in data.chunks_exact(row).zip(across.chunks_exact_mut(row)) {
        for (x, out) in out.chunks_exact_mut(channels).enumerate() {
            for (i, weight) in (-radius..).zip(&weights) {
                let from = mirrored(x as isize + i, width) * channels;
                for (out, value) in out.iter_mut().zip(&line[from..]) {
                    *out += weight * Into::<f32>::into(*value);
                }
            }
        }
    }
    let mut sums = vec![0.0f32; row];
    for (y, out) in data.chunks_exact_mut(row).enumerate() {
        sums.fill(0.0);
        for (i, weight) in (-radius..).zip(&weights) {
            let from = mirrored(y as isize + i, height) * row;
            for (sum, value) in sums.iter_mut().zip(&across[from..]) {
                *sum += weight * value;
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = V::nearest(*sum, u16::MAX);
        }
    }
}

/// The place within `len` that `at` stands for, mirrored at the first and last value (`BORDER_REFLECT_101`).
fn mirrored(at: isize, len: usize) -> usize {
    let period = 2 * (len as isize - 1).max(1);
    let at = at.rem_euclid(period);
    at.min(period - at).min(len as isize - 1) as usize
}

fn add_noise<V: Value>(data: &mut [V], noise: Noise, largest: u16) {
    let mut rng = ChaCha8Rng::seed_from_u64(noise.seed);
    let std = noise.std as f32 * f32::from(largest) / 255.0;
    // Two normal values from two uniform ones (Box and Muller).
    for pair in data.chunks_mut(2) {
        let (first, second): (f32, f32) = (rng.random(), rng.random());
        let radius = std * (-2.0 * (1.0 - first).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * second).sin_cos();
        for (value, normal) in pair.iter_mut().zip([cos, sin]) {
            *value = V::nearest(Into::<f32>::into(*value) + radius * normal, largest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7919 % 251) as u8).collect()
    }

    #[test]
    fn quarter_turns_move_pixels_and_half_a_turn_is_both_mirrors() {
        let data = picture(5 * 5);
        let turned = rotated(&data, (5, 5), 1, 90.0, 0);
        for y in 0..5 {
            for x in 0..5 {
                assert_eq!(turned[x * 5 + 4 - y], data[y * 5 + x]);
            }
        }
        assert_eq!(rotated_nearest(&data, (5, 5), 90.0, 9), turned);
        let mut back = data.clone();
        back.reverse();
        assert_eq!(rotated(&data, (5, 5), 1, 180.0, 0), back);
        assert_eq!(rotated(&data, (5, 5), 1, 0.0, 0), data);
    }

    #[test]
    fn borders_are_mirrored_without_repeating_the_last_value() {
        let places: Vec<_> = (-3..6).map(|at| mirrored(at, 3)).collect();
        assert_eq!(places, [1, 2, 1, 0, 1, 2, 1, 0, 1]);
        assert!((-5..5).all(|at| mirrored(at, 1) == 0));
    }

    #[test]
    fn noise_has_its_deviation_and_comes_from_its_seed() {
        let noise = Noise { std: 10.0, seed: 3 };
        let made = |noise| {
            let mut data = vec![30_000u16; 20_001];
            add_noise(&mut data, noise, u16::MAX);
            data
        };
        let data = made(noise);
        assert_eq!(data, made(noise));
        assert_ne!(data, made(Noise { seed: 4, ..noise }));
        let off: Vec<f64> = data.iter().map(|v| f64::from(*v) - 30_000.0).collect();
        let n = off.len() as f64;
        let mean = off.iter().sum::<f64>() / n;
        let std = (off.iter().map(|v| v * v).sum::<f64>() / n - mean * mean).sqrt();
        let expected = 10.0 * 65535.0 / 255.0;
        assert!(
            mean.abs() < 60.0 && (std / expected - 1.0).abs() < 0.02,
            "{mean} {std}"
        );
    }

    #[test]
    fn crops_around_classes_hold_them_and_rare_ones_as_often() {
        let mut label = LabelMap::filled(64, 32, [0]);
        label.data[20 * 64 + 50] = 1;
        label.data[3] = IGNORE;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut with = 0;
        for _ in 0..400 {
            let crop = crop_around_class(&label, (128, 64), (16, 8), &mut rng).unwrap();
            assert!(crop.left + crop.width <= 128 && crop.top + crop.height <= 64);
            let has = |v: usize, start: usize, side: usize| (start..start + side).contains(&v);
            let (x, y) = (2 * 50 + 1, 2 * 20 + 1);
            with += u32::from(has(x, crop.left, crop.width) && has(y, crop.top, crop.height));
        }
        assert!((180..260).contains(&with), "{with}");
        let ignored = LabelMap::filled(4, 4, [IGNORE]);
        assert_eq!(crop_around_class(&ignored, (4, 4), (2, 2), &mut rng), None);
    }

    #[test]
    fn what_never_happens_draws_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let chosen = Augment::default().choose((8, 8), &mut rng);
        assert!(chosen.is_none());
        let mut fresh = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(rng.random::<u64>(), fresh.random::<u64>());
        let all = Augment {
            cutout: 1.0,
            cutout_holes: 2,
            cutout_share: 0.5,
            ..Augment::default()
        };
        let chosen = all.choose((8, 6), &mut rng);
        assert_eq!(chosen.holes.len(), 2);
        let mut data = vec![7u16; 8 * 6 * 2];
        chosen.change(&mut data, (8, 6), 2, u16::MAX);
        let hole = chosen.holes[0];
        assert_eq!(data[(hole.top * 8 + hole.left) * 2 + 1], 0);
        assert!(data.contains(&7));
    }
}
