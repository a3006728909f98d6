//! What is done to one sample, and the half of the pipeline that works on whole numbers.

use serde::{Deserialize, Serialize};

use crate::augment::{Augmented, Fill, Value};
use crate::resize::{Bilinear, resize_nearest_into, source_range};
use crate::{CropBox, IGNORE, LabelMap, Photometric, RgbImage};

/// Every random choice of one pass through a [`Pipeline`](crate::Pipeline): the same choices give the same values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    /// Width and height after the resize, in pixels.
    pub size: (usize, usize),
    /// What is kept of it.
    pub region: CropBox,
    /// Whether it is mirrored left to right.
    pub flip: bool,
    /// How its colours change; the default leaves them.
    pub photometric: Photometric,
    /// What else is done to it.
    #[serde(default, skip_serializing_if = "Augmented::is_none")]
    pub augmented: Augmented,
}

impl Choices {
    /// Resizes, cuts, mirrors and distorts: the 8-bit half of the pipeline.
    ///
    /// # Panics
    /// If the region does not lie inside the size.
    pub fn apply(&self, image: &RgbImage, label: &LabelMap) -> (RgbImage, LabelMap) {
        let (width, height) = (self.region.width, self.region.height);
        let mut map = LabelMap::filled(width, height, [0]);
        self.label_into(label, &mut map.data, width);
        let size = (image.width, image.height);
        let rows = self.image_rows(image, (0, 0), size);
        let data = match self.augmented.is_none() {
            true => filled(width * 3, height, rows),
            false => self.augmented_rgb(rows),
        };
        let out = RgbImage {
            width,
            height,
            data,
        };
        (out, map)
    }

    /// The classes of the region, into the upper left corner of `map`, whose rows have `stride` values.
    pub(crate) fn label_into(&self, label: &LabelMap, map: &mut [u8], stride: usize) {
        let (width, height) = (self.region.width, self.region.height);
        if self.augmented.is_none() {
            resize_nearest_into(label, self.size, self.region, self.flip, map, stride);
            return;
        }
        let mut crop = vec![0; width * height];
        resize_nearest_into(label, self.size, self.region, self.flip, &mut crop, width);
        let (augmented, fill) = (&self.augmented, Fill::Nearest(IGNORE));
        augmented.place(&mut crop, (width, height), 1, fill);
        for (out, row) in map.chunks_mut(stride.max(1)).zip(crop.chunks(width.max(1))) {
            out[..width].copy_from_slice(row);
        }
    }

    /// The whole crop of RGB, from what computes its rows.
    pub(crate) fn augmented_rgb(&self, rows: impl FnMut(usize, &mut [u8])) -> Vec<u8> {
        let colors = |row: &mut [u8]| self.photometric.apply_row(row);
        self.augmented_crop(3, u8::MAX.into(), rows, colors)
    }

    /// The whole crop, from what computes its rows; `colors` distorts a row after it has been moved.
    pub(crate) fn augmented_crop<V: Value>(
        &self,
        channels: usize,
        largest: u16,
        rows: impl FnMut(usize, &mut [V]),
        colors: impl Fn(&mut [V]),
    ) -> Vec<V> {
        let size = (self.region.width, self.region.height);
        let mut data = filled(size.0 * channels, size.1, rows);
        let fill = Fill::Blended(V::default());
        self.augmented.place(&mut data, size, channels, fill);
        let row = (size.0 * channels).max(1);
        data.chunks_exact_mut(row).for_each(colors);
        self.augmented.change(&mut data, size, channels, largest);
        data
    }

    /// What computes a row of the 8-bit picture, from the part of a picture of `size` that begins at
    /// `origin`: with its colours distorted, unless something else is done to the crop first.
    pub(crate) fn image_rows(
        &self,
        image: &RgbImage,
        origin: (usize, usize),
        size: (usize, usize),
    ) -> impl FnMut(usize, &mut [u8]) {
        let part = CropBox {
            left: origin.0,
            top: origin.1,
            width: image.width,
            height: image.height,
        };
        let needed = self.source_region(size);
        assert!(
            part.contains(needed),
            "the part {part:?} of a picture lacks some of {needed:?}"
        );
        let mut rows = Bilinear::new(image, origin, size, self.size, self.region, self.flip);
        let distorts = self.augmented.is_none();
        move |y, out| {
            rows.row(y, out);
            if distorts {
                self.photometric.apply_row(out);
            }
        }
    }

    /// The part of a picture of `size` (width, height) that these choices read.
    pub fn source_region(&self, size: (usize, usize)) -> CropBox {
        let region = self.region;
        let columns = region.left..region.left + region.width;
        let rows = region.top..region.top + region.height;
        let columns = source_range(size.0, self.size.0, columns);
        let rows = source_range(size.1, self.size.1, rows);
        CropBox {
            left: columns.start,
            top: rows.start,
            width: columns.len(),
            height: rows.len(),
        }
    }
}

/// `height` rows of `row` values.
fn filled<V: Value>(row: usize, height: usize, mut rows: impl FnMut(usize, &mut [V])) -> Vec<V> {
    let mut data = vec![V::default(); row * height];
    let lines = data.chunks_exact_mut(row.max(1)).enumerate();
    lines.for_each(|(y, out)| rows(y, out));
    data
}
