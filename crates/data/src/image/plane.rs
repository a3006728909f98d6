//! Pictures and maps in memory.

use crate::Picture;

/// `C` interleaved 8-bit channels, row by row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// A picture of which only a part may have been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialImage {
    /// What was read.
    pub image: Picture,
    /// Column and row of the picture where that begins.
    pub origin: (usize, usize),
    /// Width and height of the picture.
    pub size: (usize, usize),
}

impl<P: Into<Picture>> From<P> for PartialImage {
    fn from(picture: P) -> Self {
        let image = picture.into();
        Self {
            origin: (0, 0),
            size: image.size(),
            image,
        }
    }
}
