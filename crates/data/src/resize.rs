//! Resizing as OpenCV does it on 8-bit data, value for value.

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

struct Tap {
    at: usize,
    next: usize,
    weights: [i32; 2],
}

fn taps(from: usize, to: usize, range: std::ops::Range<usize>) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    range
        .map(|i| {
            let position = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let floor = position.floor();
            let fraction = position - floor;
            let last = from as i64 - 1;
            let at = floor as i64;
            Tap {
                at: at.clamp(0, last) as usize,
                next: (at + 1).clamp(0, last) as usize,
                weights: [
                    ((1.0 - fraction) * 2048.0).round_ties_even() as i32,
                    (fraction * 2048.0).round_ties_even() as i32,
                ],
            }
        })
        .collect()
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
    assert!(
        region.left + region.width <= to.0 && region.top + region.height <= to.1,
        "the region {region:?} lies outside the size {to:?}"
    );
    let columns = taps(image.width, to.0, region.left..region.left + region.width);
    let rows = taps(image.height, to.1, region.top..region.top + region.height);
    let length = region.width * C;
    let horizontal = |y: usize, out: &mut Vec<i32>| {
        let row = image.row(y);
        out.clear();
        for tap in &columns {
            for c in 0..C {
                let (a, b) = (row[tap.at * C + c] as i32, row[tap.next * C + c] as i32);
                out.push(a * tap.weights[0] + b * tap.weights[1]);
            }
        }
    };
    // Two rows of horizontal sums are alive; neighbouring outputs mostly reuse them.
    let mut lines: [(usize, Vec<i32>); 2] = [
        (usize::MAX, Vec::with_capacity(length)),
        (usize::MAX, Vec::with_capacity(length)),
    ];
    let mut data = Vec::with_capacity(length * region.height);
    for tap in &rows {
        if lines[0].0 != tap.at {
            if lines[1].0 == tap.at {
                lines.swap(0, 1);
            } else {
                lines[0].0 = tap.at;
                horizontal(tap.at, &mut lines[0].1);
            }
        }
        if lines[1].0 != tap.next {
            lines[1].0 = tap.next;
            horizontal(tap.next, &mut lines[1].1);
        }
        let [b0, b1] = tap.weights;
        data.extend(lines[0].1.iter().zip(&lines[1].1).map(|(&s0, &s1)| {
            let sum = ((b0 * (s0 >> 4)) >> 16) + ((b1 * (s1 >> 4)) >> 16);
            ((sum + 2) >> 2).clamp(0, 255) as u8
        }));
    }
    Plane {
        width: region.width,
        height: region.height,
        data,
    }
}

/// Nearest-neighbour resize to `to` (width, height), of which only `region` is computed.
///
/// # Panics
/// If `region` does not lie inside `to`.
pub fn resize_nearest(label: &LabelMap, to: (usize, usize), region: CropBox) -> LabelMap {
    assert!(
        region.left + region.width <= to.0 && region.top + region.height <= to.1,
        "the region {region:?} lies outside the size {to:?}"
    );
    let source = |i: usize, from: usize, to: usize| {
        ((i as f64 * (1.0 / (to as f64 / from as f64))).floor() as usize).min(from - 1)
    };
    let columns: Vec<usize> = (region.left..region.left + region.width)
        .map(|x| source(x, label.width, to.0))
        .collect();
    let mut data = Vec::with_capacity(region.width * region.height);
    for y in region.top..region.top + region.height {
        let row = label.row(source(y, label.height, to.1));
        data.extend(columns.iter().map(|&x| row[x]));
    }
    LabelMap {
        width: region.width,
        height: region.height,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_rounding_of_sizes_is_kept() {
        let base = (256.0 * 0.6137, 128.0 * 0.6137);
        let bound = (base.0 as usize, base.1 as usize);
        assert_eq!(bound, (157, 78));
        assert_eq!(scaled_size((256, 128), bound), (156, 78));
    }

    #[test]
    fn resizing_to_the_own_size_changes_nothing_and_a_region_equals_the_crop() {
        let data = (0..40 * 30 * 3).map(|i| (i * 7919 % 251) as u8).collect();
        let image = Plane::<3> {
            width: 40,
            height: 30,
            data,
        };
        let whole = CropBox {
            left: 0,
            top: 0,
            width: 40,
            height: 30,
        };
        assert_eq!(resize_bilinear(&image, (40, 30), whole), image);
        let full = CropBox {
            left: 0,
            top: 0,
            width: 67,
            height: 51,
        };
        let big = resize_bilinear(&image, (67, 51), full);
        let part = CropBox {
            left: 11,
            top: 7,
            width: 33,
            height: 21,
        };
        assert_eq!(
            resize_bilinear(&image, (67, 51), part),
            crate::crop(&big, part)
        );
    }
}
