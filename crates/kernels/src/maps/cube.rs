//! Averages over parts of a map on GPUs, without atomics: forward along one side and then along the other, backward one
//! launch in which each pixel looks up the averages that it is a part of.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::ops::Averaging;
use crate::gpu::launch::{buffer, element, elementwise, empty};
use crate::gpu::layout::Layout;

/// Part `index` of `parts` that cover `size` pixels: its first pixel and the one after its last. Pixel `index` of `parts` is in
/// those of `size` averages that the same formula gives.
#[cube]
fn span(index: usize, parts: usize, size: usize) -> (usize, usize) {
    (index * size / parts, ((index + 1) * size).div_ceil(parts))
}

/// What one of as many pixels as a part has adds to its average.
#[cube]
fn share(index: usize, parts: usize, size: usize) -> f32 {
    let (start, end) = span(index, parts, size);
    1.0 / f32::cast_from(end - start)
}

/// One side of a map: `[lines, size, inner]` to `[lines, parts, inner]`, one vector a unit. Averages, or sums.
#[cube(launch_unchecked)]
fn along<I: Float, O: Float, N: Size>(
    map: &[Vector<I, N>],
    output: &mut [Vector<O, N>],
    size: usize,
    parts: usize,
    inner: usize,
    length: usize,
    #[comptime] averages: bool,
    #[define(I)] _from: ElemType,
    #[define(O)] _to: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let lane = index % inner;
    let part = index / inner % parts;
    let line = index / inner / parts;
    let (start, end) = span(part, parts, size);
    let mut sum = Vector::<f32, N>::new(0.0);
    for pixel in start..end {
        sum += Vector::cast_from(map[(line * size + pixel) * inner + lane]);
    }
    if comptime!(averages) {
        sum *= Vector::new(share(part, parts, size));
    }
    output[index] = Vector::cast_from(sum);
}

/// The gradient of the input, one vector a unit.
#[cube(launch_unchecked)]
fn spread<E: Float, N: Size>(
    gradient: &[Vector<E, N>],
    output: &mut [Vector<E, N>],
    height: usize,
    width: usize,
    rows: usize,
    columns: usize,
    inner: usize,
    length: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let lane = index % inner;
    let pixel = index / inner;
    let line = pixel / width;
    let (left, right) = span(pixel % width, width, columns);
    let (top, bottom) = span(line % height, height, rows);
    let mut sum = Vector::<f32, N>::new(0.0);
    for row in top..bottom {
        let start = (line / height * rows + row) * columns;
        let mut part = Vector::<f32, N>::new(0.0);
        for column in left..right {
            let value = Vector::cast_from(gradient[(start + column) * inner + lane]);
            part += value * Vector::new(share(column, columns, width));
        }
        sum += part * Vector::new(share(row, rows, height));
    }
    output[index] = Vector::cast_from(sum);
}

/// Averages or sums of `rows x columns` parts.
fn pooled(map: CubeTensor, [rows, columns]: [usize; 2], averages: bool) -> CubeTensor {
    let (map, layout) = Layout::of(map);
    let (inner, vector) = layout.pixel(&map, size_of::<f32>());
    let [_, _, height, width] = layout.shape;
    let (client, dtype) = (map.client.clone(), element(&map));
    let between = layout.resized([height, columns]);
    let output = layout.resized([rows, columns]);
    let sums = empty(&map, between.dims(), DType::F32);
    let pooled = output.empty(&map);
    let wide = element(&sums);
    let sides = [
        (
            map,
            sums.clone(),
            [width, columns, inner],
            [dtype, wide],
            between,
        ),
        (
            sums,
            pooled.clone(),
            [height, rows, columns * inner],
            [wide, dtype],
            output,
        ),
    ];
    for (from, to, [size, parts, inner], [input, output], layout) in sides {
        let length = layout.len() / vector;
        let (count, dim) = elementwise(&from, length);
        // SAFETY: units beyond `length` stop; parts are within the map.
        unsafe {
            along::launch_unchecked(
                &client,
                count,
                dim,
                vector,
                buffer(from),
                buffer(to),
                size,
                parts,
                inner,
                length,
                averages,
                input,
                output,
            );
        }
    }
    output.view(pooled)
}

impl Averaging for CubeBackend {
    fn halfseg_averages(map: CubeTensor, size: [usize; 2]) -> CubeTensor {
        pooled(map, size, true)
    }

    fn halfseg_averages_adjoint(gradient: CubeTensor, size: [usize; 2]) -> CubeTensor {
        let (gradient, layout) = Layout::of(gradient);
        let (inner, vector) = layout.pixel(&gradient, size_of::<f32>());
        let [_, _, rows, columns] = layout.shape;
        let layout = layout.resized(size);
        let output = layout.empty(&gradient);
        let length = layout.len() / vector;
        let (count, dim) = elementwise(&gradient, length);
        let dtype = element(&gradient);
        // SAFETY: units beyond `length` stop; the averages of a pixel are among them.
        unsafe {
            spread::launch_unchecked(
                &output.client,
                count,
                dim,
                vector,
                buffer(gradient),
                buffer(output.clone()),
                size[0],
                size[1],
                rows,
                columns,
                inner,
                length,
                dtype,
            );
        }
        layout.view(output)
    }

    fn halfseg_plane_sums(map: CubeTensor) -> CubeTensor {
        pooled(map, [1, 1], false)
    }
}
