//! Pictures of any number of channels, and what they are normalised by.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CropBox, RgbImage, crop, flip};

/// Channels that pictures have at most.
pub(crate) const MOST_CHANNELS: usize = 16;

/// Mean of each channel of ImageNet, RGB, on values from 0 to 255.
pub const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// Standard deviation of each channel of ImageNet, RGB.
pub const STD: [f32; 3] = [58.395, 57.12, 57.375];

/// A picture of 1 to 16 channels of 8 or 16 bits, at its own depth: all but RGB of 8 bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bands {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// `height * width * channels` values, those of a pixel together.
    pub data: Vec<u16>,
}

impl Bands {
    /// The row `y`: `width * channels` values.
    ///
    /// # Panics
    /// If `y` is not below the height.
    pub fn row(&self, y: usize) -> &[u16] {
        let row = self.width * self.channels;
        &self.data[y * row..(y + 1) * row]
    }
}

/// A picture as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Picture {
    /// RGB of 8 bits.
    Rgb(RgbImage),
    /// Any other.
    Bands(Bands),
}

/// A [`Picture`] that belongs to someone else.
#[derive(Clone, Copy, Debug)]
pub enum PictureRef<'a> {
    /// RGB of 8 bits.
    Rgb(&'a RgbImage),
    /// Any other.
    Bands(&'a Bands),
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Self {
        Self::Rgb(image)
    }
}

impl From<Bands> for Picture {
    fn from(bands: Bands) -> Self {
        Self::Bands(bands)
    }
}

impl<'a> From<&'a RgbImage> for PictureRef<'a> {
    fn from(image: &'a RgbImage) -> Self {
        Self::Rgb(image)
    }
}

impl<'a> From<&'a Bands> for PictureRef<'a> {
    fn from(bands: &'a Bands) -> Self {
        Self::Bands(bands)
    }
}

impl<'a> From<&'a Picture> for PictureRef<'a> {
    fn from(picture: &'a Picture) -> Self {
        match picture {
            Picture::Rgb(image) => Self::Rgb(image),
            Picture::Bands(bands) => Self::Bands(bands),
        }
    }
}

impl PictureRef<'_> {
    /// Width and height in pixels.
    pub fn size(self) -> (usize, usize) {
        match self {
            Self::Rgb(image) => (image.width, image.height),
            Self::Bands(bands) => (bands.width, bands.height),
        }
    }

    /// Values of a pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Rgb(_) => 3,
            Self::Bands(bands) => bands.channels,
        }
    }

    /// How many values it has: those of all channels of all pixels.
    pub fn values(self) -> usize {
        match self {
            Self::Rgb(image) => image.data.len(),
            Self::Bands(bands) => bands.data.len(),
        }
    }

    /// `region` of it.
    ///
    /// # Panics
    /// If `region` leaves the picture.
    pub fn cropped(self, region: CropBox) -> Picture {
        match self {
            Self::Rgb(image) => crop(image, region).into(),
            Self::Bands(bands) => {
                let (from, to) = (region.left, region.left + region.width);
                let columns = from * bands.channels..to * bands.channels;
                let rows = region.top..region.top + region.height;
                Picture::Bands(Bands {
                    width: region.width,
                    height: region.height,
                    channels: bands.channels,
                    data: rows
                        .flat_map(|y| bands.row(y)[columns.clone()].iter().copied())
                        .collect(),
                })
            }
        }
    }
}

impl Picture {
    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        PictureRef::from(self).size()
    }

    /// The picture if it is RGB of 8 bits.
    pub fn rgb(&self) -> Option<&RgbImage> {
        match self {
            Self::Rgb(image) => Some(image),
            Self::Bands(_) => None,
        }
    }

    /// The picture if it is RGB of 8 bits.
    pub fn into_rgb(self) -> Option<RgbImage> {
        match self {
            Self::Rgb(image) => Some(image),
            Self::Bands(_) => None,
        }
    }

    /// Mirrors left and right in place.
    pub fn flip(&mut self) {
        match self {
            Self::Rgb(image) => flip(image),
            Self::Bands(bands) => {
                for row in bands.data.chunks_exact_mut(bands.width * bands.channels) {
                    row.reverse();
                    let pixels = row.chunks_exact_mut(bands.channels);
                    pixels.for_each(<[u16]>::reverse);
                }
            }
        }
    }
}

/// How many channels of how many bits pictures have, and what is taken off and divided by before a network sees
/// them. The default is RGB of 8 bits with mean and standard deviation of ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct PictureFormat {
    channels: usize,
    bits: u8,
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// A format as it was read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    channels: usize,
    bits: u8,
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl TryFrom<Unchecked> for PictureFormat {
    type Error = String;

    fn try_from(read: Unchecked) -> Result<Self, String> {
        let (mean, std) = (read.mean, read.std);
        Self::new(read.channels, read.bits, mean, std)
            .map_err(|[key, expected, found]| format!("{key}: expected {expected}, found {found}"))
    }
}

impl Default for PictureFormat {
    fn default() -> Self {
        Self {
            channels: 3,
            bits: 8,
            mean: MEAN.to_vec(),
            std: STD.to_vec(),
        }
    }
}

impl PictureFormat {
    /// Pictures of `channels` channels (1 to 16) of `bits` bits (8 or 16), with mean and standard deviation of each
    /// channel, in the values of files.
    ///
    /// # Errors
    /// What cannot be: the name of the value, what it may be, and what it is.
    pub fn new(
        channels: usize,
        bits: u8,
        mean: Vec<f32>,
        std: Vec<f32>,
    ) -> Result<Self, [String; 3]> {
        let wrong = |key: &str, expected: String, found: String| Err([key.into(), expected, found]);
        if !(1..=MOST_CHANNELS).contains(&channels) {
            let expected = format!("1 to {MOST_CHANNELS}");
            return wrong("channels", expected, channels.to_string());
        }
        if ![8, 16].contains(&bits) {
            return wrong("bits", "8 or 16".into(), bits.to_string());
        }
        for (key, values) in [("mean", &mean), ("std", &std)] {
            if values.len() != channels {
                let expected = format!("{channels} values, one a channel");
                return wrong(key, expected, values.len().to_string());
            }
            let sound = |v: &&f32| !v.is_finite() || key == "std" && **v <= 0.0;
            if let Some(value) = values.iter().find(sound) {
                let above = if key == "std" { " above 0" } else { "" };
                return wrong(key, format!("numbers{above}"), value.to_string());
            }
        }
        Ok(Self {
            channels,
            bits,
            mean,
            std,
        })
    }

    /// Values of a pixel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Bits of a value.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Mean of each channel.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Standard deviation of each channel.
    pub fn std(&self) -> &[f32] {
        &self.std
    }

    /// Whether pictures are RGB of 8 bits: the only ones whose colours can be distorted.
    pub fn is_rgb(&self) -> bool {
        (self.channels, self.bits) == (3, 8)
    }

    /// The largest value.
    pub(crate) fn largest(&self) -> u16 {
        u16::MAX >> (16 - self.bits)
    }

    /// `(value - mean) / std` of each channel in f32, channel by channel: `[channels, height, width]`.
    ///
    /// # Panics
    /// If the picture has another number of channels.
    pub fn normalize<'a>(&self, picture: impl Into<PictureRef<'a>>) -> Vec<f32> {
        let picture = picture.into();
        let size = picture.size();
        assert_eq!(picture.channels(), self.channels, "channels of a picture");
        let mut planes = vec![0.0; self.channels * size.0 * size.1];
        for y in 0..size.1 {
            match picture {
                PictureRef::Rgb(image) => self.normalize_rgb(image.row(y), y, &mut planes, size),
                PictureRef::Bands(bands) => self.normalize_row(bands.row(y), y, &mut planes, size),
            }
        }
        planes
    }

    /// [`normalize`](Self::normalize) of one row, into the row `y` of as many planes of `size` (width, height).
    pub(crate) fn normalize_row(
        &self,
        row: &[u16],
        y: usize,
        planes: &mut [f32],
        size: (usize, usize),
    ) {
        let width = row.len() / self.channels;
        for (c, plane) in planes.chunks_exact_mut(size.0 * size.1).enumerate() {
            let (mean, std) = (self.mean[c], self.std[c]);
            let values = row.iter().skip(c).step_by(self.channels);
            for (out, value) in plane[y * size.0..][..width].iter_mut().zip(values) {
                *out = (f32::from(*value) - mean) / std;
            }
        }
    }

    /// The same of a row of RGB.
    pub(crate) fn normalize_rgb(
        &self,
        row: &[u8],
        y: usize,
        planes: &mut [f32],
        size: (usize, usize),
    ) {
        let (red, rest) = planes.split_at_mut(size.0 * size.1);
        let (green, blue) = rest.split_at_mut(size.0 * size.1);
        let out = y * size.0..y * size.0 + row.len() / 3;
        let out = [
            &mut red[out.clone()],
            &mut green[out.clone()],
            &mut blue[out],
        ];
        let first = |values: &[f32]| [values[0], values[1], values[2]];
        let (mean, std) = (first(&self.mean), first(&self.std));
        vectorized!(move out => normalize_rgb(row, out, mean, std));
    }

    /// The first three channels as a screen shows them: as they are if the picture is RGB of 8 bits, else with two
    /// standard deviations around the mean spread from black to white. What lacks a channel has its first again.
    ///
    /// # Panics
    /// If the picture has another number of channels.
    pub fn shown<'a>(&self, picture: impl Into<PictureRef<'a>>) -> Cow<'a, RgbImage> {
        let bands = match picture.into() {
            PictureRef::Rgb(image) => return Cow::Borrowed(image),
            PictureRef::Bands(bands) => bands,
        };
        let (width, height) = (bands.width, bands.height);
        let planes = self.normalize(bands);
        Cow::Owned(self.shown_normalized(&planes, width, height))
    }

    /// [`shown`](Self::shown), of values that are normalised: `[channels, height, width]`.
    pub fn shown_normalized(&self, planes: &[f32], width: usize, height: usize) -> RgbImage {
        const SPREAD: f32 = 255.0 / 4.0;
        let area = width * height;
        let value = |pixel: usize, c: usize| {
            let c = if c < self.channels { c } else { 0 };
            let value = planes[c * area + pixel];
            let value = match self.is_rgb() {
                true => value * self.std[c] + self.mean[c],
                false => value * SPREAD + 127.5,
            };
            value.round().clamp(0.0, 255.0) as u8
        };
        RgbImage {
            width,
            height,
            data: (0..area)
                .flat_map(|pixel| [0, 1, 2].map(|c| value(pixel, c)))
                .collect(),
        }
    }
}

impl fmt::Display for PictureFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.channels == 1 { "" } else { "s" };
        write!(f, "{} channel{plural} of {} bits", self.channels, self.bits)
    }
}

#[inline(always)]
fn normalize_rgb(row: &[u8], [red, green, blue]: [&mut [f32]; 3], mean: [f32; 3], std: [f32; 3]) {
    let pixels = row.as_chunks::<3>().0;
    for (((pixel, r), g), b) in pixels.iter().zip(red).zip(green).zip(blue) {
        *r = (pixel[0] as f32 - mean[0]) / std[0];
        *g = (pixel[1] as f32 - mean[1]) / std[1];
        *b = (pixel[2] as f32 - mean[2]) / std[2];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bands() -> Bands {
        Bands {
            width: 2,
            height: 2,
            channels: 2,
            data: vec![1, 100, 2, 200, 3, 300, 4, 400],
        }
    }

    #[test]
    fn channels_are_normalised_each_by_its_own() {
        let format = PictureFormat::new(2, 16, vec![1.0, 100.0], vec![1.0, 50.0]).unwrap();
        let found = format.normalize(&bands());
        assert_eq!(found, [0.0, 1.0, 2.0, 3.0, 0.0, 2.0, 4.0, 6.0]);
        let bands = bands();
        let shown = format.shown(&bands);
        assert_eq!(shown.data[..6], [128, 128, 128, 191, 255, 191]);
        let image = RgbImage {
            width: 1,
            height: 1,
            data: vec![1, 2, 3],
        };
        let format = PictureFormat::new(3, 8, vec![1.0; 3], vec![0.5; 3]).unwrap();
        assert_eq!(format.normalize(&image), [0.0, 2.0, 4.0]);
        assert_eq!(*format.shown(&image), image);
        assert_eq!(format.shown_normalized(&[0.0, 2.0, 4.0], 1, 1), image);
    }

    #[test]
    fn parts_and_mirror_images_keep_channels_together() {
        let mut picture = Picture::from(bands());
        let right = CropBox {
            left: 1,
            top: 0,
            width: 1,
            height: 2,
        };
        let Picture::Bands(part) = PictureRef::from(&picture).cropped(right) else {
            panic!("a part of bands is bands")
        };
        assert_eq!(part.data, [2, 200, 4, 400]);
        picture.flip();
        let Picture::Bands(mirrored) = &picture else {
            panic!("they stay bands")
        };
        assert_eq!(mirrored.data, [2, 200, 1, 100, 4, 400, 3, 300]);
        assert_eq!(PictureRef::from(&picture).values(), 8);
    }

    #[test]
    fn formats_that_cannot_be_are_refused() {
        let key = |channels, bits, mean: &[f32], std: &[f32]| {
            let found = PictureFormat::new(channels, bits, mean.to_vec(), std.to_vec());
            found.map_err(|[key, ..]| key)
        };
        assert_eq!(key(0, 8, &[], &[]), Err("channels".into()));
        assert_eq!(key(17, 8, &[1.0; 17], &[1.0; 17]), Err("channels".into()));
        assert_eq!(key(1, 12, &[1.0], &[1.0]), Err("bits".into()));
        assert_eq!(key(2, 8, &[1.0], &[1.0, 1.0]), Err("mean".into()));
        assert_eq!(key(1, 8, &[f32::NAN], &[1.0]), Err("mean".into()));
        assert_eq!(key(1, 8, &[1.0], &[0.0]), Err("std".into()));
        let json = serde_json::to_string(&PictureFormat::default()).unwrap();
        let read: PictureFormat = serde_json::from_str(&json).unwrap();
        assert_eq!(read, PictureFormat::default());
        let wrong = json.replace("\"bits\":8", "\"bits\":9");
        assert!(serde_json::from_str::<PictureFormat>(&wrong).is_err());
    }
}
