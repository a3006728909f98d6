//! Procedural street scenes with exact labels.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{DataError, Dataset, LabelMap, RgbImage, Sample};

const ROAD: u8 = 0;
const SIDEWALK: u8 = 1;
const BUILDING: u8 = 2;
const POLE: u8 = 5;
const SIGN: u8 = 7;
const VEGETATION: u8 = 8;
const SKY: u8 = 10;
const PERSON: u8 = 11;
const CAR: u8 = 13;

/// Generated street scenes: road, sidewalks, buildings, trees, sky, poles, signs, people and
/// cars with texture, light, shadows and occlusion. Sample `i` depends on the seed and `i` alone.
#[derive(Clone, Debug)]
pub struct SyntheticStreets {
    width: usize,
    height: usize,
    count: usize,
    seed: u64,
}

impl SyntheticStreets {
    /// `count` scenes of `width` x `height` pixels.
    ///
    /// # Panics
    /// If a size is 0 or there are more than 2^30 pixels.
    pub fn new(width: usize, height: usize, count: usize, seed: u64) -> Self {
        assert!(width > 0 && height > 0, "scenes need at least one pixel");
        let pixels = width.checked_mul(height);
        assert!(
            pixels.is_some_and(|pixels| pixels <= 1 << 30),
            "scenes have at most 2^30 pixels, not {width}x{height}"
        );
        Self {
            width,
            height,
            count,
            seed,
        }
    }

    /// Classes (trainIds) that occur in the scenes.
    pub const CLASSES: [u8; 9] = [
        ROAD, SIDEWALK, BUILDING, POLE, SIGN, VEGETATION, SKY, PERSON, CAR,
    ];
}

impl Dataset for SyntheticStreets {
    fn len(&self) -> usize {
        self.count
    }

    fn get(&self, index: usize) -> Result<Sample, DataError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(index as u64);
        let (image, label) = Scene::draw(self.width, self.height, rng);
        Ok(Sample {
            name: format!("street_{index:06}"),
            image: image.into(),
            label: Some(label),
        })
    }
}

type Color = [f32; 3];

/// A picture in work. Coordinates are fractions of the height (`u` from the left edge of a frame
/// `aspect` wide, `v` from the top), so that any size shows the same kind of scene.
struct Scene {
    width: usize,
    height: usize,
    aspect: f32,
    color: Vec<Color>,
    label: Vec<u8>,
    rng: ChaCha8Rng,
    light: Color,
    horizon: f32,
    vanishing: f32,
}

fn hash(x: i32, y: i32, salt: u32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x85EB_CA6B) ^ (y as u32).wrapping_mul(0xC2B2_AE35) ^ salt;
    h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
    h = (h ^ (h >> 12)).wrapping_mul(0x297A_2D39);
    (h ^ (h >> 15)) as f32 / u32::MAX as f32
}

/// Smooth noise in [0, 1].
fn noise(x: f32, y: f32, salt: u32) -> f32 {
    let (x0, y0) = (x.floor(), y.floor());
    let (fx, fy) = (x - x0, y - y0);
    let (sx, sy) = (fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy));
    let at = |dx: i32, dy: i32| hash(x0 as i32 + dx, y0 as i32 + dy, salt);
    let top = at(0, 0) + (at(1, 0) - at(0, 0)) * sx;
    let bottom = at(0, 1) + (at(1, 1) - at(0, 1)) * sx;
    top + (bottom - top) * sy
}

fn scale(color: Color, factor: f32) -> Color {
    color.map(|c| c * factor)
}

impl Scene {
    fn draw(width: usize, height: usize, mut rng: ChaCha8Rng) -> (RgbImage, LabelMap) {
        let aspect = width as f32 / height as f32;
        let warmth = rng.random_range(-0.08..0.08);
        let level = rng.random_range(0.75..1.15);
        let mut scene = Self {
            width,
            height,
            aspect,
            color: vec![[0.0; 3]; width * height],
            label: vec![SKY; width * height],
            light: [level * (1.0 + warmth), level, level * (1.0 - warmth)],
            horizon: rng.random_range(0.38..0.5),
            vanishing: aspect * rng.random_range(0.35..0.65),
            rng,
        };
        scene.sky();
        scene.houses();
        scene.trees();
        scene.ground();
        scene.objects();
        scene.finish()
    }

    fn range(&mut self, low: f32, high: f32) -> f32 {
        self.rng.random_range(low..high)
    }

    /// Paints the pixels of a box for which `shade` has a colour.
    fn paint(
        &mut self,
        class: u8,
        [left, top, right, bottom]: [f32; 4],
        shade: impl Fn(f32, f32) -> Option<Color>,
    ) {
        let size = self.height as f32;
        let clamp = |value: f32, limit: usize| value.clamp(0.0, limit as f32) as usize;
        let columns = clamp(left * size, self.width)..clamp((right * size).ceil(), self.width);
        let rows = clamp(top * size, self.height)..clamp((bottom * size).ceil(), self.height);
        for y in rows {
            for x in columns.clone() {
                let (u, v) = ((x as f32 + 0.5) / size, (y as f32 + 0.5) / size);
                if u < left || u >= right || v < top || v >= bottom {
                    continue;
                }
                if let Some(color) = shade(u, v) {
                    self.color[y * self.width + x] = color;
                    self.label[y * self.width + x] = class;
                }
            }
        }
    }

    fn sky(&mut self) {
        let salt = self.rng.random();
        let clouds = self.range(0.0, 0.9);
        let horizon = self.horizon;
        self.paint(SKY, [0.0, 0.0, self.aspect, 1.0], |u, v| {
            let depth = (v / horizon).min(1.0);
            let blue = [
                105.0 + 90.0 * depth,
                150.0 + 65.0 * depth,
                215.0 + 20.0 * depth,
            ];
            let cloud =
                noise(u * 4.0, v * 9.0, salt) * 0.65 + noise(u * 11.0, v * 23.0, salt) * 0.35;
            let cover = ((cloud - 0.45) * 3.0).clamp(0.0, 1.0) * clouds;
            Some([0, 1, 2].map(|c| blue[c] + (232.0 - blue[c]) * cover))
        });
    }

    fn houses(&mut self) {
        let mut left = -0.1;
        while left < self.aspect {
            let wide = self.range(0.18, 0.55);
            // Houses shrink towards the vanishing point.
            let distance =
                ((left + wide / 2.0 - self.vanishing).abs() / self.aspect * 2.0).min(1.0);
            let tall = self.range(0.08, 0.2) + distance * self.range(0.12, 0.36);
            let gap = self.range(0.0, 1.0) < 0.18;
            let base = [
                self.range(90.0, 190.0),
                self.range(75.0, 150.0),
                self.range(60.0, 135.0),
            ];
            let (salt, pitch) = (self.rng.random(), self.range(0.035, 0.065));
            let lit = self.range(0.25, 0.7);
            let (top, bottom) = (self.horizon - tall, self.horizon + 0.1);
            if !gap {
                self.paint(BUILDING, [left, top, left + wide, bottom], |u, v| {
                    let (x, y) = ((u - left) / pitch, (v - top) / (pitch * 1.3));
                    let (cx, cy) = (x.fract(), y.fract());
                    let window =
                        (0.28..0.76).contains(&cx) && (0.25..0.78).contains(&cy) && y > 0.5;
                    let grain = 0.9 + 0.2 * noise(u * 60.0, v * 60.0, salt);
                    if window {
                        let glass = hash(x as i32, y as i32, salt);
                        let bright = if glass > lit {
                            40.0
                        } else {
                            75.0 + 80.0 * glass
                        };
                        return Some([bright, bright * 1.05, bright * 1.2]);
                    }
                    let roof = if v - top < 0.018 { 0.6 } else { 1.0 };
                    Some(scale(base, grain * roof))
                });
            }
            left += wide * if gap { 0.5 } else { 1.0 };
        }
    }

    fn trees(&mut self) {
        for _ in 0..self.rng.random_range(2..6) {
            let u = self.range(0.0, self.aspect);
            let distance = ((u - self.vanishing).abs() / self.aspect * 2.0).min(1.0);
            let radius = self.range(0.05, 0.09) + 0.09 * distance;
            let center = self.horizon - radius * self.range(0.5, 1.3);
            let (salt, hue) = (self.rng.random(), self.range(0.8, 1.2));
            let (ground, half) = (self.horizon + 0.06, radius * 0.12);
            self.paint(VEGETATION, [u - half, center, u + half, ground], |_, _| {
                Some([74.0, 56.0, 40.0])
            });
            let frame = [
                u - radius * 1.3,
                center - radius * 1.3,
                u + radius * 1.3,
                center + radius * 1.3,
            ];
            self.paint(VEGETATION, frame, |x, y| {
                let (dx, dy) = ((x - u) / radius, (y - center) / radius);
                let edge = 0.75 + 0.5 * noise(x * 45.0, y * 45.0, salt);
                if dx * dx + dy * dy > edge {
                    return None;
                }
                let leaf = 0.55 + 0.7 * noise(x * 110.0, y * 110.0, salt) - 0.2 * dy;
                Some([62.0 * leaf * hue, 105.0 * leaf, 42.0 * leaf])
            });
        }
    }

    fn ground(&mut self) {
        let (horizon, vanishing) = (self.horizon, self.vanishing);
        let (left, right) = (self.range(0.55, 0.95), self.range(0.55, 0.95));
        let curb = self.range(0.32, 0.6);
        let (salt, gray) = (self.rng.random(), self.range(72.0, 108.0));
        let (tile, tint) = (self.range(140.0, 185.0), self.range(0.9, 1.05));
        let lanes = self.rng.random_range(1..4) as f32;
        let aspect = self.aspect;
        // `reach` is the depth below the horizon, 0 at the horizon and 1 at the lower edge.
        let reach = move |v: f32| (v - horizon) / (1.0 - horizon);
        self.paint(SIDEWALK, [0.0, horizon, aspect, 1.0], |u, v| {
            let d = reach(v).max(0.03);
            let (x, y) = ((u - vanishing) / d * 6.0, 4.0 / d);
            let joint = x.rem_euclid(1.0) < 0.07 || y.rem_euclid(1.0) < 0.07;
            let grain = 0.92 + 0.16 * noise(u * 90.0, v * 90.0, salt);
            let base = [tile, tile * 0.97, tile * 0.9 * tint];
            Some(scale(base, grain * if joint { 0.8 } else { 1.0 }))
        });
        self.paint(ROAD, [0.0, horizon, aspect, 1.0], |u, v| {
            let d = reach(v);
            let edge = if u < vanishing { left } else { right };
            let across = (u - vanishing) / ((edge + curb) * d.max(1e-3));
            if across.abs() > 1.0 - 0.04 {
                return None;
            }
            let grain = 0.9 + 0.2 * noise(u * 150.0, v * 150.0, salt);
            let lane = ((across + 1.0) / 2.0 * lanes).fract();
            let dash = (1.6 / d.max(0.02)).rem_euclid(1.0) < 0.5;
            let border = across.abs() > 0.9 && across.abs() < 0.93;
            if (lanes > 1.0 && (lane - 0.5).abs() > 0.482 && dash && across.abs() < 0.85) || border
            {
                return Some(scale([205.0, 205.0, 198.0], grain));
            }
            Some(scale([gray, gray, gray * 1.04], grain))
        });
    }

    /// Cars, people, poles and signs, far ones first.
    fn objects(&mut self) {
        let mut depths: Vec<(f32, u32)> = (0..self.rng.random_range(7..13))
            .map(|_| {
                let near: f32 = self.rng.random_range(0.0..1.0);
                (
                    0.1 + 0.75 * near * near.sqrt(),
                    self.rng.random_range(0..10),
                )
            })
            .collect();
        depths.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (depth, kind) in depths {
            let foot = self.horizon + depth * (1.0 - self.horizon);
            match kind {
                0..4 => self.car(foot, depth),
                4..7 => self.person(foot, depth),
                _ => self.pole(foot, depth),
            }
        }
    }

    fn shadow(&mut self, u: f32, v: f32, half: f32) {
        let size = self.height as f32;
        let thin = half * 0.22;
        for y in
            ((v - thin) * size).max(0.0) as usize..(((v + thin) * size) as usize).min(self.height)
        {
            for x in ((u - half) * size).max(0.0) as usize
                ..(((u + half) * size).max(0.0) as usize).min(self.width)
            {
                let dx = (x as f32 / size - u) / half;
                let dy = (y as f32 / size - v) / thin;
                if dx * dx + dy * dy < 1.0 {
                    let pixel = &mut self.color[y * self.width + x];
                    *pixel = scale(*pixel, 0.55);
                }
            }
        }
    }

    fn car(&mut self, foot: f32, depth: f32) {
        let half = 0.06 + 0.26 * depth;
        let tall = half * self.range(0.85, 1.05);
        let u = self.vanishing + self.range(-1.0, 1.0) * (0.12 + 0.75 * depth);
        let paint = [
            self.range(20.0, 230.0),
            self.range(20.0, 200.0),
            self.range(20.0, 230.0),
        ];
        let top = foot - tall;
        self.shadow(u, foot, half * 1.1);
        self.paint(CAR, [u - half, top, u + half, foot], |x, v| {
            let (a, b) = (((x - u) / half).abs(), (v - top) / tall);
            // A narrow cabin over a wide body on two wheels.
            let cabin = b < 0.42 && a < 0.55 + 0.5 * b;
            let body = (0.38..0.86).contains(&b) && a < 0.98;
            let wheel = b >= 0.8 && (0.52..0.9).contains(&a);
            if wheel {
                return Some([24.0, 24.0, 26.0]);
            }
            if cabin && b > 0.07 && a < 0.47 + 0.5 * b {
                let glare = 45.0 + 70.0 * (1.0 - b);
                return Some([glare, glare * 1.1, glare * 1.2]);
            }
            if body && (0.5..0.62).contains(&b) && (0.68..0.93).contains(&a) {
                return Some([215.0, 60.0, 45.0]);
            }
            (cabin || body).then(|| scale(paint, 1.15 - 0.45 * b))
        });
    }

    fn person(&mut self, foot: f32, depth: f32) {
        let tall = 0.12 + 0.42 * depth;
        let side = if self.rng.random() { 1.0 } else { -1.0 };
        let u = self.vanishing + side * self.range(0.25, 1.0) * (0.3 + 0.9 * depth);
        let half = tall * 0.17;
        let shirt = [
            self.range(30.0, 240.0),
            self.range(20.0, 200.0),
            self.range(20.0, 220.0),
        ];
        let trousers = scale([60.0, 62.0, 80.0], self.range(0.5, 1.3));
        let stride = self.range(0.15, 0.5);
        let top = foot - tall;
        self.shadow(u, foot, half * 1.3);
        self.paint(PERSON, [u - half, top, u + half, foot], |x, v| {
            let (a, b) = ((x - u) / half, (v - top) / tall);
            if b < 0.17 {
                let (dx, dy) = (a / 0.5, (b - 0.085) / 0.085);
                return (dx * dx + dy * dy < 1.0).then_some(if b < 0.06 {
                    [60.0, 42.0, 30.0]
                } else {
                    [205.0, 160.0, 130.0]
                });
            }
            if b < 0.55 {
                return (a.abs() < 0.95 - 0.5 * (b - 0.3).abs())
                    .then(|| scale(shirt, 1.1 - 0.3 * a.abs()));
            }
            let spread = stride * (b - 0.55) / 0.45;
            ((a.abs() - spread).abs() < 0.36).then_some(trousers)
        });
    }

    fn pole(&mut self, foot: f32, depth: f32) {
        let tall = 0.25 + 0.6 * depth;
        let side = if self.rng.random() { 1.0 } else { -1.0 };
        let u = self.vanishing + side * self.range(0.7, 1.1) * (0.35 + 1.0 * depth);
        let half = 0.009 + 0.012 * depth;
        let top = foot - tall;
        let gray = self.range(95.0, 150.0);
        self.paint(POLE, [u - half, top, u + half, foot], |x, _| {
            Some(scale(
                [gray, gray, gray],
                1.15 - 0.5 * ((x - u) / half).abs(),
            ))
        });
        let radius = 0.035 + 0.05 * depth;
        let center = top + radius;
        let kind = self.rng.random_range(0..3);
        self.paint(
            SIGN,
            [u - radius, top, u + radius, top + 2.0 * radius],
            |x, v| {
                let (a, b) = ((x - u) / radius, (v - center) / radius);
                let (round, rim) = (a * a + b * b, a.abs().max(b.abs()));
                match kind {
                    0 if round < 1.0 && round > 0.55 => Some([205.0, 30.0, 35.0]),
                    0 if round <= 0.55 => Some([238.0, 236.0, 230.0]),
                    1 if rim < 0.92 => Some(if rim > 0.75 {
                        [235.0; 3]
                    } else {
                        [30.0, 75.0, 185.0]
                    }),
                    2 if a.abs() + b.abs() < 1.0 => Some([235.0, 195.0, 30.0]),
                    _ => None,
                }
            },
        );
    }

    fn finish(mut self) -> (RgbImage, LabelMap) {
        let grain = self.range(2.0, 7.0);
        let salt: u32 = self.rng.random();
        let mut data = Vec::with_capacity(self.color.len() * 3);
        for (i, color) in self.color.iter().enumerate() {
            let (x, y) = (i % self.width, i / self.width);
            for (c, value) in color.iter().enumerate() {
                let noise = hash(x as i32, y as i32, salt.wrapping_add(c as u32)) - 0.5;
                let value = value * self.light[c] + 2.0 * grain * noise;
                data.push(value.round().clamp(0.0, 255.0) as u8);
            }
        }
        let (width, height) = (self.width, self.height);
        (
            RgbImage {
                width,
                height,
                data,
            },
            LabelMap {
                width,
                height,
                data: self.label,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scene_depends_on_seed_and_index_alone() {
        let streets = SyntheticStreets::new(96, 48, 4, 5);
        let (a, b) = (streets.get(2).unwrap(), streets.get(2).unwrap());
        assert_eq!(a.image, b.image);
        assert_eq!(a.label, b.label);
        assert_ne!(a.image, streets.get(3).unwrap().image);
        assert_ne!(
            a.image,
            SyntheticStreets::new(96, 48, 4, 6).get(2).unwrap().image
        );
    }

    #[test]
    fn every_class_occurs_and_no_other() {
        let streets = SyntheticStreets::new(128, 64, 40, 1);
        let mut seen = [false; 256];
        for i in 0..streets.len() {
            streets
                .get(i)
                .unwrap()
                .label
                .unwrap()
                .data
                .iter()
                .for_each(|&id| seen[id as usize] = true);
        }
        let found: Vec<u8> = (0..=255).filter(|&id| seen[id as usize]).collect();
        assert_eq!(found, SyntheticStreets::CLASSES);
    }
}
