//! Pictures and maps in memory.

use crate::{DataError, Picture};

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
    /// A plane of values that are there already: `C` of each pixel together, row by row from the top.
    ///
    /// # Errors
    /// [`DataError::Values`] where there is no pixel, or not `width * height * C` values.
    pub fn from_raw(width: usize, height: usize, data: Vec<u8>) -> Result<Self, DataError> {
        let pixels = width.checked_mul(height).filter(|pixels| *pixels > 0);
        if pixels.and_then(|pixels| pixels.checked_mul(C)) != Some(data.len()) {
            return Err(DataError::Values {
                width,
                height,
                channels: C,
                found: data.len(),
            });
        }
        Ok(Self {
            width,
            height,
            data,
        })
    }

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

/// Neither copied nor converted.
///
/// ```
/// let picture = image::RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 7]));
/// let plane = halfseg_data::RgbImage::from(picture);
/// assert_eq!((plane.width, plane.height), (3, 2));
/// assert_eq!(plane.data[9..], [0, 1, 7, 1, 1, 7, 2, 1, 7]);
/// ```
#[cfg(feature = "image")]
impl From<::image::RgbImage> for RgbImage {
    fn from(image: ::image::RgbImage) -> Self {
        Self {
            width: image.width() as usize,
            height: image.height() as usize,
            data: image.into_raw(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_values_make_a_plane_if_they_are_as_many_as_its_pixels_have() {
        let plane = RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(plane.row(0), [1, 2, 3, 4, 5, 6]);
        for (width, height, values) in [(2, 1, 5), (0, 1, 0), (usize::MAX, 2, 12), (1, 1, 4)] {
            let error = RgbImage::from_raw(width, height, vec![0; values]).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(&format!("{width}x{height}"))
                    && text.ends_with(&format!("found {values}")),
                "{text}"
            );
        }
    }
}
