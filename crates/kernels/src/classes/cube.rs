//! Loss and class map on GPUs, one pixel of the labels' size a unit. Logits are interpolated where
//! they are needed, so that no map of all classes exists at that size.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::permute_nhwc_to_nchw;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::ops::Classes;
use crate::gpu::launch::{buffer, element, elementwise, empty};
use crate::gpu::reduce::add_rows;
use crate::resize::Bilinear;
use crate::resize::cube::{Axis, Taps, readers, taps, weight_of};

/// Units that add up their pixels together.
const UNITS: usize = 256;

/// A logit at an output pixel, in a map of any strides.
#[cube]
fn interpolated<E: Float>(
    logits: &Tensor<E>,
    image: usize,
    class: usize,
    down: &Taps,
    across: &Taps,
) -> f32 {
    let plane = image * logits.stride(0) + class * logits.stride(1);
    let upper = plane + down.low * logits.stride(2);
    let lower = plane + down.high * logits.stride(2);
    let left = across.low * logits.stride(3);
    let right = across.high * logits.stride(3);
    let a = f32::cast_from(logits[upper + left]);
    let b = f32::cast_from(logits[upper + right]);
    let c = f32::cast_from(logits[lower + left]);
    let d = f32::cast_from(logits[lower + right]);
    let (wx, wy) = (across.weight, down.weight);
    (a * (1.0 - wx) + b * wx) * (1.0 - wy) + (c * (1.0 - wx) + d * wx) * wy
}

/// What is no number. By the bits of a value that is known when the kernel runs: compilers refuse a constant
/// that is none, and some assume that there are no such values.
#[cube]
fn no_number(value: f32) -> f32 {
    f32::reinterpret(u32::reinterpret(value) | 0x7fc0_0000u32)
}

/// Whether `label`, which was `stored`, is one of the classes: a kernel cannot refuse others, and calling
/// them some class would train a wrong one.
#[cube]
fn is_class<I: Numeric>(label: i32, stored: I, classes: usize) -> bool {
    label >= 0 && label < i32::cast_from(classes) && I::cast_from(label) == stored
}

/// Writes each pixel's log-sum-exp, and for each group of units the summed cross-entropy, the right
/// and the counted pixels: `[3, groups]`.
#[cube(launch_unchecked)]
fn cross_entropy<E: Float, I: Numeric>(
    logits: &Tensor<E>,
    labels: &[I],
    normalisers: &mut [f32],
    parts: &mut [f32],
    rows: Axis,
    columns: Axis,
    length: usize,
    groups: usize,
    ignored: i32,
    #[comptime] align_corners: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let index = ABSOLUTE_POS;
    let unit = UNIT_POS as usize;
    // Sums, right pixels, counted pixels.
    let mut tables = Shared::<[f32]>::new_slice(comptime!(3 * UNITS));
    let mut entropy = 0.0f32.runtime();
    let mut right = 0.0f32.runtime();
    let mut counted = 0.0f32.runtime();
    if index < length {
        let across = taps(index % columns.out, &columns, align_corners);
        let line = index / columns.out;
        let down = taps(line % rows.out, &rows, align_corners);
        let image = line / rows.out;
        let label = i32::cast_from(labels[index]);
        let exists = is_class::<I>(label, labels[index], logits.shape(1));

        // One pass: when a larger logit comes, what was summed before is rescaled.
        let mut largest = interpolated(logits, image, 0, &down, &across);
        let mut sum = 1.0f32.runtime();
        let mut best = 0i32.runtime();
        let mut picked = largest;
        for class in 1..logits.shape(1) {
            let value = interpolated(logits, image, class, &down, &across);
            let class = i32::cast_from(class);
            if value > largest {
                sum = sum * (largest - value).exp() + 1.0;
                largest = value;
                best = class;
            } else {
                sum += (value - largest).exp();
            }
            if class == label {
                picked = value;
            }
        }
        let normaliser = largest + sum.ln();
        normalisers[index] = normaliser;
        if label != ignored {
            entropy = select(exists, normaliser - picked, no_number(normaliser));
            right = select(best == label, 1.0, 0.0);
            counted = 1.0;
        }
    }
    tables[unit] = entropy;
    tables[UNITS + unit] = right;
    tables[2 * UNITS + unit] = counted;
    add_rows(&mut tables, unit, 0, 3usize, UNITS, 1usize, 1usize);
    if unit == 0 {
        parts[CUBE_POS] = tables[0];
        parts[groups + CUBE_POS] = tables[UNITS];
        parts[2 * groups + CUBE_POS] = tables[2 * UNITS];
    }
}

/// The totals of `parts`, `[3, groups]` -> `[3]`, in one group of units.
#[cube(launch_unchecked)]
fn total(parts: &[f32], totals: &mut [f32], groups: usize) {
    let unit = UNIT_POS as usize;
    // Sums, right pixels, counted pixels.
    let mut tables = Shared::<[f32]>::new_slice(comptime!(3 * UNITS));
    let mut sum = 0.0f32.runtime();
    let mut right = 0.0f32.runtime();
    let mut counted = 0.0f32.runtime();
    let mut group = unit;
    while group < groups {
        sum += parts[group];
        right += parts[groups + group];
        counted += parts[2 * groups + group];
        group += UNITS;
    }
    tables[unit] = sum;
    tables[UNITS + unit] = right;
    tables[2 * UNITS + unit] = counted;
    add_rows(&mut tables, unit, 0, 3usize, UNITS, 1usize, 1usize);
    if unit == 0 {
        totals[0] = tables[0];
        totals[1] = tables[UNITS];
        totals[2] = tables[2 * UNITS];
    }
}

/// The gradient of the summed cross-entropy, `[n, h, w, c]`, one logit a unit: softmax less the label's one, by the
/// transpose of the resize. The classes of a pixel are beside each other, which read the same labels.
#[cube(launch_unchecked)]
fn cross_entropy_gradient<E: Float, I: Numeric>(
    logits: &Tensor<E>,
    labels: &[I],
    normalisers: &[f32],
    gradient: &mut [f32],
    rows: Axis,
    columns: Axis,
    length: usize,
    ignored: i32,
    #[comptime] align_corners: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let class = index % logits.shape(1);
    let pixel = index / logits.shape(1);
    let x = pixel % columns.size;
    let line = pixel / columns.size;
    let y = line % rows.size;
    let image = line / rows.size;

    let (top, bottom) = readers(y, &rows, align_corners);
    let (left, right) = readers(x, &columns, align_corners);
    let mut sum = 0.0f32.runtime();
    for row in top..bottom {
        let down = taps(row, &rows, align_corners);
        let weight = weight_of(y, &down);
        if weight > 0.0 {
            let start = (image * rows.out + row) * columns.out;
            let mut part = 0.0f32.runtime();
            for column in left..right {
                let across = taps(column, &columns, align_corners);
                let share = weight_of(x, &across);
                let label = i32::cast_from(labels[start + column]);
                let exists = is_class::<I>(label, labels[start + column], logits.shape(1));
                if share > 0.0 && label != ignored {
                    let value = interpolated(logits, image, class, &down, &across);
                    let one = select(label == i32::cast_from(class), 1.0, 0.0);
                    let change = (value - normalisers[start + column]).exp() - one;
                    part += share * select(exists, change, no_number(value));
                }
            }
            sum += weight * part;
        }
    }
    gradient[index] = sum;
}

/// The first class with the largest logit of each pixel.
#[cube(launch_unchecked)]
fn most_likely<E: Float, I: Numeric>(
    logits: &Tensor<E>,
    classes: &mut [I],
    rows: Axis,
    columns: Axis,
    length: usize,
    #[comptime] align_corners: bool,
    #[define(E, I)] _dtypes: [ElemType; 2],
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let across = taps(index % columns.out, &columns, align_corners);
    let line = index / columns.out;
    let down = taps(line % rows.out, &rows, align_corners);
    let image = line / rows.out;
    let mut largest = interpolated(logits, image, 0, &down, &across);
    let mut best = 0u32.runtime();
    for class in 1..logits.shape(1) {
        let value = interpolated(logits, image, class, &down, &across);
        if value > largest {
            largest = value;
            best = class as u32;
        }
    }
    classes[index] = I::cast_from(best);
}

impl Classes for CubeBackend {
    fn halfseg_cross_entropy(
        logits: CubeTensor,
        labels: CubeTensor,
        ignored: i32,
        resize: Bilinear,
    ) -> (CubeTensor, CubeTensor) {
        let [n, ..] = logits.shape().dims::<4>();
        let labels = into_contiguous(labels);
        let [h, w] = resize.output;
        let normalisers = empty(&logits, [n, h, w], DType::F32);
        let length = n * h * w;
        let groups = length.div_ceil(UNITS);
        let (count, dim) = (cube_count(groups), CubeDim::new_1d(UNITS as u32));
        let launched = launched(&count);
        let parts = empty(&logits, [3, launched], DType::F32);
        let [rows, columns] = resize.axes();
        let dtypes = [element(&logits), element(&labels)];
        let client = logits.client.clone();
        // SAFETY: units beyond `length` add nothing; taps are within the logits.
        unsafe {
            cross_entropy::launch_unchecked(
                &client,
                count,
                dim,
                logits.clone().into_tensor_arg(),
                buffer(labels),
                buffer(normalisers.clone()),
                buffer(parts.clone()),
                rows,
                columns,
                length,
                launched,
                ignored,
                resize.align_corners,
                dtypes,
            );
        }
        let totals = empty(&logits, [3], DType::F32);
        // SAFETY: units read groups below `launched` only.
        unsafe {
            total::launch_unchecked(
                &client,
                CubeCount::Static(1, 1, 1),
                dim,
                buffer(parts),
                buffer(totals.clone()),
                launched,
            );
        }
        (totals, normalisers)
    }

    fn halfseg_cross_entropy_gradient(
        logits: CubeTensor,
        labels: CubeTensor,
        normalisers: CubeTensor,
        ignored: i32,
        resize: Bilinear,
    ) -> CubeTensor {
        let [n, c, h, w] = logits.shape().dims();
        let (labels, normalisers) = (into_contiguous(labels), into_contiguous(normalisers));
        let gradient = empty(&logits, [n, h, w, c], DType::F32);
        let length = n * c * h * w;
        let (count, dim) = elementwise(&logits, length);
        let [rows, columns] = resize.axes();
        let dtypes = [element(&logits), element(&labels)];
        // SAFETY: units beyond `length` stop; readers and taps are within their maps.
        unsafe {
            cross_entropy_gradient::launch_unchecked(
                &gradient.client,
                count,
                dim,
                logits.into_tensor_arg(),
                buffer(labels),
                buffer(normalisers),
                buffer(gradient.clone()),
                rows,
                columns,
                length,
                ignored,
                resize.align_corners,
                dtypes,
            );
        }
        permute_nhwc_to_nchw(gradient)
    }

    fn halfseg_most_likely_classes(
        logits: CubeTensor,
        resize: Bilinear,
        dtype: DType,
    ) -> CubeTensor {
        let [n, ..] = logits.shape().dims::<4>();
        let [h, w] = resize.output;
        let classes = empty(&logits, [n, h, w], dtype);
        let length = n * h * w;
        let (count, dim) = elementwise(&logits, length);
        let [rows, columns] = resize.axes();
        let dtypes = [element(&logits), element(&classes)];
        // SAFETY: units beyond `length` stop; taps are within the logits.
        unsafe {
            most_likely::launch_unchecked(
                &classes.client,
                count,
                dim,
                logits.into_tensor_arg(),
                buffer(classes.clone()),
                rows,
                columns,
                length,
                resize.align_corners,
                dtypes,
            );
        }
        classes
    }
}

/// Groups of units, in more than one row where the device's rows are too short.
fn cube_count(groups: usize) -> CubeCount {
    const ROW: usize = 1 << 15;
    match groups <= ROW {
        true => CubeCount::Static(groups as u32, 1, 1),
        false => CubeCount::Static(ROW as u32, groups.div_ceil(ROW) as u32, 1),
    }
}

/// Number of groups that `count` starts.
fn launched(count: &CubeCount) -> usize {
    match count {
        CubeCount::Static(x, y, z) => [x, y, z].iter().map(|n| **n as usize).product(),
        CubeCount::Dynamic(_) => unreachable!("the number of groups is known"),
    }
}
