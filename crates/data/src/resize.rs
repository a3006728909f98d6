//! Resizing as OpenCV does it on 8-bit data, value for value.

use std::ops::Range;

use crate::{CropBox, LabelMap, Plane};

/// The size that keeps the aspect ratio of `size` inside `bound`, both `(width, height)`: the
/// smaller of the two ratios of long and short edges, rounded half up (mmcv's `rescale_size`).
pub fn scaled_size(size: (usize, usize), bound: (usize, usize)) -> (usize, usize) {
    let (w, h) = (size.0 as f64, size.1 as f64);
    let long = bound.0.max(bound.1) as f64;
    let short = bound.0.min(bound.1) as f64;
    let factor = (long / w.max(h)).min(short / w.min(h));
    (
        ((w * factor + 0.5) as usize).max(1),
        ((h * factor + 0.5) as usize).max(1),
    )
}

/// The size of `size`, `(width, height)`, scaled by `ratio` (mmcv's `Resize` with `scale_factor` and
/// `keep_ratio`): both edges are rounded half up, and the aspect ratio is then kept inside that, so
/// that an edge may be a pixel shorter than its product says.
pub fn ratio_size(size: (usize, usize), ratio: f64) -> (usize, usize) {
    let rounded = |edge: usize| (edge as f64 * ratio + 0.5) as usize;
    scaled_size(size, (rounded(size.0), rounded(size.1)))
}

/// The two neighbours of one output position and their weights in 1/2048.
#[derive(Clone, Copy)]
struct Tap {
    at: usize,
    next: usize,
    weights: [i32; 2],
}

/// The two neighbours of an output position among `from` values, and the weight of the second.
pub(crate) fn neighbours(i: usize, from: usize, to: usize) -> (usize, usize, f32) {
    let scale = from as f64 / to as f64;
    let position = ((i as f64 + 0.5) * scale - 0.5) as f32;
    let floor = position.floor();
    let (at, last) = (floor as i64, from as i64 - 1);
    let (at, next) = (at.clamp(0, last), (at + 1).clamp(0, last));
    (at as usize, next as usize, position - floor)
}

fn tap(i: usize, from: usize, to: usize) -> Tap {
    let (at, next, fraction) = neighbours(i, from, to);
    Tap {
        at,
        next,
        weights: [
            ((1.0 - fraction) * 2048.0).round_ties_even() as i32,
            (fraction * 2048.0).round_ties_even() as i32,
        ],
    }
}

/// The source rows or columns that [`resize_bilinear`] reads for those `wanted` of `to`.
pub(crate) fn source_range(from: usize, to: usize, wanted: Range<usize>) -> Range<usize> {
    if wanted.is_empty() {
        return 0..0;
    }
    tap(wanted.start, from, to).at..tap(wanted.end - 1, from, to).next + 1
}

/// Positions of `range`, from the last one down where `mirrored`.
pub(crate) fn positions(range: Range<usize>, mirrored: bool) -> impl Iterator<Item = usize> {
    let (start, end) = (range.start, range.end);
    range.map(move |i| if mirrored { start + end - 1 - i } else { i })
}

pub(crate) fn check_region(region: CropBox, to: (usize, usize)) {
    assert!(
        region.left + region.width <= to.0 && region.top + region.height <= to.1,
        "the region {region:?} lies outside the size {to:?}"
    );
}

/// Bilinear resize to `to` (width, height), of which only `region` is computed.
///
/// # Panics
/// If `region` does not lie inside `to`.
pub fn resize_bilinear<const C: usize>(
    image: &Plane<C>,
    to: (usize, usize),
    region: CropBox,
) -> Plane<C> {
    let mut data = vec![0; region.width * region.height * C];
    let size = (image.width, image.height);
    let mut rows = Bilinear::new(image, (0, 0), size, to, region, false);
    for (i, out) in data.chunks_exact_mut((region.width * C).max(1)).enumerate() {
        rows.row(i, out);
    }
    Plane {
        width: region.width,
        height: region.height,
        data,
    }
}

/// A bilinear resize that computes one row after the other.
pub(crate) struct Bilinear<'a, const C: usize> {
    image: &'a Plane<C>,
    /// First row of the image.
    first: usize,
    /// Height of the picture that the image is a part of, and of the result.
    heights: (usize, usize),
    /// First row that is computed.
    top: usize,
    columns: Vec<Tap>,
    lines: Lines<i32>,
}

impl<'a, const C: usize> Bilinear<'a, C> {
    /// Resizes a picture of `size` to `to`, of which only `region` is computed, and mirrored left
    /// to right within the region where `mirrored`. `image` is the part of the picture that begins
    /// at `origin`, column and row, and has what [`source_range`] names.
    pub(crate) fn new(
        image: &'a Plane<C>,
        origin: (usize, usize),
        size: (usize, usize),
        to: (usize, usize),
        region: CropBox,
        mirrored: bool,
    ) -> Self {
        check_region(region, to);
        let columns = positions(region.left..region.left + region.width, mirrored).map(|x| {
            let tap = tap(x, size.0, to.0);
            Tap {
                at: tap.at - origin.0,
                next: tap.next - origin.0,
                ..tap
            }
        });
        Self {
            image,
            first: origin.1,
            heights: (size.1, to.1),
            top: region.top,
            columns: columns.collect(),
            lines: Lines::new(region.width * C),
        }
    }

    /// Row `i` of the region, into `width * C` values.
    pub(crate) fn row(&mut self, i: usize, out: &mut [u8]) {
        let tap = tap(self.top + i, self.heights.0, self.heights.1);
        let [above, below] = self.lines.at([tap.at, tap.next], |y, sums| {
            let row = self.image.row(y - self.first);
            vectorized!(move sums => horizontal::<C>(row, &self.columns, sums));
        });
        vectorized!(move out => vertical(above, below, tap.weights, out));
    }
}

/// Two source rows and their horizontal sums; neighbouring outputs mostly reuse them.
pub(crate) struct Lines<T>([(usize, Vec<T>); 2]);

impl<T: Clone + Default> Lines<T> {
    /// None yet, each of so many sums.
    pub(crate) fn new(length: usize) -> Self {
        let line = || (usize::MAX, vec![T::default(); length]);
        Self([line(), line()])
    }

    /// Those of two source rows; `fill` computes what is not there from before.
    pub(crate) fn at(
        &mut self,
        rows: [usize; 2],
        mut fill: impl FnMut(usize, &mut [T]),
    ) -> [&[T]; 2] {
        let lines = &mut self.0;
        if lines[0].0 != rows[0] && lines[1].0 == rows[0] {
            lines.swap(0, 1);
        }
        for (line, y) in lines.iter_mut().zip(rows) {
            if line.0 != y {
                line.0 = y;
                fill(y, &mut line.1);
            }
        }
        [&lines[0].1, &lines[1].1]
    }
}

#[inline(always)]
fn horizontal<const C: usize>(row: &[u8], columns: &[Tap], out: &mut [i32]) {
    // Four channels at a time, the surplus overwritten by the next pixel: one vector operation
    // where three channels would be nine scalar ones.
    let mut scalar_from = 0;
    if C == 3 {
        for (x, tap) in columns.iter().enumerate() {
            let (a, b) = (
                row.get(tap.at * 3..tap.at * 3 + 4),
                row.get(tap.next * 3..tap.next * 3 + 4),
            );
            let (Some(a), Some(b), Some(out)) = (a, b, out.get_mut(x * 3..x * 3 + 4)) else {
                horizontal_pixel::<C>(row, tap, &mut out[x * C..(x + 1) * C]);
                continue;
            };
            let sum = |c: usize| a[c] as i32 * tap.weights[0] + b[c] as i32 * tap.weights[1];
            out.copy_from_slice(&[sum(0), sum(1), sum(2), sum(3)]);
        }
        scalar_from = columns.len();
    }
    for (x, tap) in columns.iter().enumerate().skip(scalar_from) {
        horizontal_pixel::<C>(row, tap, &mut out[x * C..(x + 1) * C]);
    }
}

#[inline(always)]
fn horizontal_pixel<const C: usize>(row: &[u8], tap: &Tap, out: &mut [i32]) {
    for (c, out) in out.iter_mut().enumerate() {
        let (a, b) = (row[tap.at * C + c] as i32, row[tap.next * C + c] as i32);
        *out = a * tap.weights[0] + b * tap.weights[1];
    }
}

#[inline(always)]
fn vertical(above: &[i32], below: &[i32], [b0, b1]: [i32; 2], out: &mut [u8]) {
    for ((out, &s0), &s1) in out.iter_mut().zip(above).zip(below) {
        // OpenCV's vector code multiplies 16-bit halves; the shifts are part of the result.
        let sum = ((b0 * (s0 >> 4)) >> 16) + ((b1 * (s1 >> 4)) >> 16);
        *out = ((sum + 2) >> 2).clamp(0, 255) as u8;
    }
}

/// The source position of a nearest neighbour: OpenCV's `INTER_NEAREST`, which floors.
fn nearest(i: usize, from: usize, to: usize) -> usize {
    ((i as f64 * (1.0 / (to as f64 / from as f64))).floor() as usize).min(from - 1)
}

/// Nearest-neighbour resize to `to` (width, height), of which only `region` is computed.
///
/// # Panics
/// If `region` does not lie inside `to`.
pub fn resize_nearest(label: &LabelMap, to: (usize, usize), region: CropBox) -> LabelMap {
    let mut data = vec![0; region.width * region.height];
    resize_nearest_into(label, to, region, false, &mut data, region.width);
    LabelMap {
        width: region.width,
        height: region.height,
        data,
    }
}

/// [`resize_nearest`] into the upper left corner of `out`, whose rows have `stride` values.
pub(crate) fn resize_nearest_into(
    label: &LabelMap,
    to: (usize, usize),
    region: CropBox,
    mirrored: bool,
    out: &mut [u8],
    stride: usize,
) {
    check_region(region, to);
    let columns: Vec<usize> = positions(region.left..region.left + region.width, mirrored)
        .map(|x| nearest(x, label.width, to.0))
        .collect();
    for (i, out) in out
        .chunks_exact_mut(stride.max(1))
        .take(region.height)
        .enumerate()
    {
        let row = label.row(nearest(region.top + i, label.height, to.1));
        for (out, &x) in out.iter_mut().zip(&columns) {
            *out = row[x];
        }
    }
}

/// How often each value occurs in `region` of the label map resized to `to` (width, height).
pub(crate) fn count_nearest(label: &LabelMap, to: (usize, usize), region: CropBox) -> [u64; 256] {
    check_region(region, to);
    let columns: Vec<usize> = positions(region.left..region.left + region.width, false)
        .map(|x| nearest(x, label.width, to.0))
        .collect();
    let mut counts = [0u64; 256];
    let mut y = region.top;
    let end = region.top + region.height;
    while y < end {
        // Enlarged maps repeat rows: count such a row once.
        let source = nearest(y, label.height, to.1);
        let mut repeats = 1;
        while y + repeats < end && nearest(y + repeats, label.height, to.1) == source {
            repeats += 1;
        }
        count_row(label.row(source), &columns, repeats as u64, &mut counts);
        y += repeats;
    }
    counts
}

fn count_row(row: &[u8], columns: &[usize], repeats: u64, counts: &mut [u64; 256]) {
    // Neighbours mostly have one class: a run costs one addition to memory.
    let mut run = (0u8, 0u64);
    for &x in columns {
        let value = row[x];
        if value != run.0 {
            counts[run.0 as usize] += run.1 * repeats;
            run = (value, 0);
        }
        run.1 += 1;
    }
    counts[run.0 as usize] += run.1 * repeats;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Plane<3> {
        let data = (0..width * height * 3).map(|i| (i * 7919 % 251) as u8);
        Plane {
            width,
            height,
            data: data.collect(),
        }
    }

    fn whole(size: (usize, usize)) -> CropBox {
        CropBox {
            left: 0,
            top: 0,
            width: size.0,
            height: size.1,
        }
    }

    #[test]
    fn the_peers_rounding_of_sizes_is_kept() {
        let base = (256.0 * 0.6137, 128.0 * 0.6137);
        let bound = (base.0 as usize, base.1 as usize);
        assert_eq!(bound, (157, 78));
        assert_eq!(scaled_size((256, 128), bound), (156, 78));
    }

    /// Sizes that mmcv 2.1.0 gave the views of test-time augmentation.
    #[test]
    fn scaling_by_a_ratio_keeps_the_aspect_of_the_rounded_size() {
        const RATIOS: [f64; 6] = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75];
        for (size, expected) in [
            (
                (161, 97),
                [
                    (81, 49),
                    (121, 73),
                    (161, 97),
                    (201, 121),
                    (242, 146),
                    (282, 170),
                ],
            ),
            (
                (75, 113),
                [
                    (38, 57),
                    (56, 84),
                    (75, 113),
                    (94, 141),
                    (113, 170),
                    (131, 197),
                ],
            ),
            (
                (67, 85),
                [
                    (34, 43),
                    (50, 63),
                    (67, 85),
                    (84, 106),
                    (101, 128),
                    (117, 148),
                ],
            ),
            (
                (131, 67),
                [
                    (66, 34),
                    (98, 50),
                    (131, 67),
                    (164, 84),
                    (197, 101),
                    (229, 117),
                ],
            ),
        ] {
            assert_eq!(RATIOS.map(|ratio| ratio_size(size, ratio)), expected);
        }
    }

    #[test]
    fn resizing_to_the_own_size_changes_nothing() {
        let image = picture(40, 30);
        assert_eq!(resize_bilinear(&image, (40, 30), whole((40, 30))), image);
    }

    #[test]
    fn a_region_equals_the_crop_of_the_whole_and_mirrors_within_itself() {
        for to in [(67, 51), (23, 17), (1, 1), (40, 90)] {
            let image = picture(40, 30);
            let big = resize_bilinear(&image, to, whole(to));
            let region = CropBox {
                left: to.0 / 5,
                top: to.1 / 7,
                width: to.0 - to.0 / 3,
                height: to.1 - to.1 / 3,
            };
            let mut part = crate::crop(&big, region);
            assert_eq!(resize_bilinear(&image, to, region), part);
            crate::flip(&mut part);
            let mut rows = Bilinear::new(&image, (0, 0), (40, 30), to, region, true);
            let mut row = vec![0; region.width * 3];
            for y in 0..region.height {
                rows.row(y, &mut row);
                assert_eq!(row, part.row(y));
            }
        }
    }

    #[test]
    fn only_the_source_rows_that_are_named_matter() {
        let (to, image) = ((61, 57), picture(40, 30));
        for top in 0..50 {
            let region = CropBox {
                left: 3,
                top,
                width: 50,
                height: 7,
            };
            let rows = source_range(30, to.1, top..top + 7);
            let mut blanked = image.clone();
            blanked.data[..rows.start * 120].fill(0);
            blanked.data[rows.end * 120..].fill(0);
            assert_eq!(
                resize_bilinear(&blanked, to, region),
                resize_bilinear(&image, to, region)
            );
        }
    }

    #[test]
    fn counting_equals_resizing_and_counting() {
        let label = LabelMap {
            width: 31,
            height: 23,
            data: (0..31 * 23).map(|i| (i / 5 % 7) as u8).collect(),
        };
        for to in [(31, 23), (70, 50), (15, 11)] {
            let region = CropBox {
                left: 2,
                top: 1,
                width: to.0 - 3,
                height: to.1 - 4,
            };
            let mut expected = [0u64; 256];
            for id in resize_nearest(&label, to, region).data {
                expected[id as usize] += 1;
            }
            assert_eq!(count_nearest(&label, to, region), expected);
        }
    }
}
