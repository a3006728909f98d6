//! The orientation that cameras note in a file instead of turning its pixels.

use crate::RgbImage;

/// One of the eight orientations of EXIF tag 0x0112.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Orientation {
    /// Whether rows and columns change places, before the two mirrors.
    transposed: bool,
    mirrored: bool,
    upside_down: bool,
}

impl Orientation {
    /// Reads the tag from a TIFF block (with or without the `Exif` prefix); nothing where it is
    /// absent, damaged or says that nothing has to be turned.
    pub(crate) fn from_exif(exif: &[u8]) -> Option<Self> {
        let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
        let little = match tiff.get(..2)? {
            b"II" => true,
            b"MM" => false,
            _ => return None,
        };
        let short = |at: usize| {
            let bytes = [*tiff.get(at)?, *tiff.get(at + 1)?];
            Some(match little {
                true => u16::from_le_bytes(bytes),
                false => u16::from_be_bytes(bytes),
            } as usize)
        };
        let long = |at: usize| {
            let (first, second) = (short(at)?, short(at + 2)?);
            Some(match little {
                true => second << 16 | first,
                false => first << 16 | second,
            })
        };
        let directory = long(4)?;
        let entries = (0..short(directory)?).map(|i| directory + 2 + 12 * i);
        let entry = entries
            .take_while(|&entry| entry < tiff.len())
            .find(|&entry| short(entry) == Some(0x0112))?;
        Self::of(short(entry + 8)?)
    }

    /// That of this value of the tag, which TIFF has outside of Exif, too; nothing where that says that nothing
    /// has to be turned.
    pub(crate) fn of(value: usize) -> Option<Self> {
        let (transposed, mirrored, upside_down) = match value {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => return None,
        };
        Some(Self {
            transposed,
            mirrored,
            upside_down,
        })
    }

    /// Width and height of a picture of `size`, the right way up.
    pub(crate) fn size(self, (width, height): (usize, usize)) -> (usize, usize) {
        match self.transposed {
            true => (height, width),
            false => (width, height),
        }
    }

    /// The picture the right way up.
    pub(crate) fn apply(self, image: RgbImage) -> RgbImage {
        let stored = (image.width, image.height);
        let (width, height) = self.size(stored);
        let pixels = image.data.as_chunks::<3>().0;
        RgbImage {
            width,
            height,
            data: self.turned(pixels, stored).into_flattened(),
        }
    }

    /// The pixels of a picture of `stored` size, in the order of the one that is the right way up.
    pub(crate) fn turned<T: Copy>(self, pixels: &[T], stored: (usize, usize)) -> Vec<T> {
        let (width, height) = self.size(stored);
        let mut data = Vec::with_capacity(pixels.len());
        for y in 0..height {
            let y = if self.upside_down { height - 1 - y } else { y };
            for x in 0..width {
                let x = if self.mirrored { width - 1 - x } else { x };
                let at = match self.transposed {
                    true => x * stored.0 + y,
                    false => y * stored.0 + x,
                };
                data.push(pixels[at]);
            }
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(value: u8) -> Vec<u8> {
        let mut block = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01".to_vec();
        block.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, value, 0, 0]);
        block
    }

    /// A picture 3 wide and 2 high whose red channel is `letters`, turned as `value` says.
    fn turned(value: u8) -> (usize, String) {
        let image = RgbImage {
            width: 3,
            height: 2,
            data: b"abcdef"
                .iter()
                .flat_map(|&letter| [letter, 0, 0])
                .collect(),
        };
        let image = match Orientation::from_exif(&exif(value)) {
            Some(orientation) => orientation.apply(image),
            None => image,
        };
        let letters = image.data.chunks(3).map(|pixel| pixel[0] as char).collect();
        (image.width, letters)
    }

    #[test]
    fn all_eight_orientations_are_undone() {
        let expected = [
            (3, "abcdef"),
            (3, "cbafed"),
            (3, "fedcba"),
            (3, "defabc"),
            (2, "adbecf"),
            (2, "daebfc"),
            (2, "fcebda"),
            (2, "cfbead"),
        ];
        for (value, (width, letters)) in (1..).zip(expected) {
            assert_eq!(
                turned(value),
                (width, letters.to_owned()),
                "orientation {value}"
            );
        }
    }

    #[test]
    fn damaged_blocks_turn_nothing() {
        let whole = exif(6);
        for length in 0..whole.len() - 3 {
            assert_eq!(Orientation::from_exif(&whole[..length]), None);
        }
    }
}
