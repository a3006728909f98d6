//! Bilinear resizing on GPUs, forward and backward one launch each, both without atomics: in the
//! backward pass each input pixel looks up the outputs that read it.

use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Bilinear;
use super::ops::Resizing;
use crate::gpu::launch::{buffer, element, elementwise};
use crate::gpu::layout::Layout;

/// One direction of a [`Bilinear`], as kernels want it.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Axis {
    /// Pixels of the input.
    pub size: usize,
    /// Pixels of the output.
    pub out: usize,
    /// Input pixels from one output to the next.
    pub scale: f32,
    /// `1 / scale`; where all outputs read the first pixel, more than the outputs.
    pub inverse: f32,
}

/// The two input pixels that an output reads, and the weight of the second; the first has the rest.
#[derive(CubeType, Clone, Copy)]
pub struct Taps {
    pub low: usize,
    pub high: usize,
    pub weight: f32,
}

impl Bilinear {
    /// The kernels' arguments for rows and columns.
    pub fn axes(&self) -> [AxisLaunch; 2] {
        [0, 1].map(|axis| {
            let (size, out) = (self.input[axis], self.output[axis]);
            // In f32, as PyTorch does: at wide maps the rounding of these positions is visible.
            let scale = match self.align_corners {
                true if out > 1 => (size - 1) as f32 / (out - 1) as f32,
                true => 0.0,
                false => size as f32 / out as f32,
            };
            let inverse = if scale > 0.0 {
                1.0 / scale
            } else {
                2.0 * out as f32
            };
            AxisLaunch::new(size, out, scale, inverse)
        })
    }
}

/// What output `o` reads.
#[cube]
pub fn taps(o: usize, axis: &Axis, #[comptime] align_corners: bool) -> Taps {
    let o = f32::cast_from(o);
    let position = if comptime!(align_corners) {
        axis.scale * o
    } else {
        max(axis.scale * (o + 0.5) - 0.5, 0.0)
    };
    let low = min(usize::cast_from(position), axis.size - 1);
    let high = min(low + 1, axis.size - 1);
    Taps {
        low,
        high,
        weight: position - f32::cast_from(low),
    }
}

/// The weight that an output with `taps` gives to pixel `i`.
#[cube]
pub fn weight_of(i: usize, taps: &Taps) -> f32 {
    select(taps.low == i, 1.0 - taps.weight, 0.0) + select(taps.high == i, taps.weight, 0.0)
}

/// First and last-but-one of a range of outputs that holds all that read pixel `i`; it may hold
/// others, which give it no weight.
#[cube]
pub fn readers(i: usize, axis: &Axis, #[comptime] align_corners: bool) -> (usize, usize) {
    let i = f32::cast_from(i);
    let centre = comptime!(if align_corners { 0.0f32 } else { 0.5f32 });
    let first = (i - 1.0 + centre) * axis.inverse - centre - 1.0;
    let last = (i + 1.0 + centre) * axis.inverse - centre + 3.0;
    let limit = f32::cast_from(axis.out);
    (
        usize::cast_from(clamp(first, 0.0, limit)),
        usize::cast_from(clamp(last, 0.0, limit)),
    )
}

/// One output value a unit, or in a map that lies pixel by pixel one vector of channels: `inner`
/// are the vectors of a pixel, 1 where planes lie one after another.
#[cube(launch_unchecked)]
fn resize<E: Float, N: Size>(
    x: &[Vector<E, N>],
    output: &mut [Vector<E, N>],
    rows: Axis,
    columns: Axis,
    inner: usize,
    length: usize,
    #[comptime] align_corners: bool,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let lane = index % inner;
    let pixel = index / inner;
    let across = taps(pixel % columns.out, &columns, align_corners);
    let line = pixel / columns.out;
    let down = taps(line % rows.out, &rows, align_corners);
    let plane = line / rows.out * rows.size;

    let upper = (plane + down.low) * columns.size;
    let lower = (plane + down.high) * columns.size;
    let a = Vector::<f32, N>::cast_from(x[(upper + across.low) * inner + lane]);
    let b = Vector::<f32, N>::cast_from(x[(upper + across.high) * inner + lane]);
    let c = Vector::<f32, N>::cast_from(x[(lower + across.low) * inner + lane]);
    let d = Vector::<f32, N>::cast_from(x[(lower + across.high) * inner + lane]);
    let right = Vector::<f32, N>::new(across.weight);
    let left = Vector::<f32, N>::new(1.0 - across.weight);
    let top = Vector::<f32, N>::new(1.0 - down.weight);
    let bottom = Vector::<f32, N>::new(down.weight);
    let y = (a * left + b * right) * top + (c * left + d * right) * bottom;
    output[index] = Vector::cast_from(y);
}

/// The transpose of [`resize`], one value or vector of the input's gradient a unit.
#[cube(launch_unchecked)]
fn adjoint<E: Float, N: Size>(
    gradient: &[Vector<E, N>],
    output: &mut [Vector<E, N>],
    rows: Axis,
    columns: Axis,
    inner: usize,
    length: usize,
    #[comptime] align_corners: bool,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let lane = index % inner;
    let pixel = index / inner;
    let x = pixel % columns.size;
    let line = pixel / columns.size;
    let y = line % rows.size;
    let plane = line / rows.size * rows.out;

    let (top, bottom) = readers(y, &rows, align_corners);
    let (left, right) = readers(x, &columns, align_corners);
    let mut sum = Vector::<f32, N>::new(0.0);
    for row in top..bottom {
        let down = weight_of(y, &taps(row, &rows, align_corners));
        if down > 0.0 {
            let start = (plane + row) * columns.out;
            let mut part = Vector::<f32, N>::new(0.0);
            for column in left..right {
                let across = weight_of(x, &taps(column, &columns, align_corners));
                let value = Vector::cast_from(gradient[(start + column) * inner + lane]);
                part += value * Vector::new(across);
            }
            sum += part * Vector::new(down);
        }
    }
    output[index] = Vector::cast_from(sum);
}

impl Resizing for CubeBackend {
    fn halfseg_resize(x: CubeTensor, resize: Bilinear) -> CubeTensor {
        let (x, layout) = Layout::of(x);
        let (inner, vector) = layout.pixel(&x, x.dtype.size());
        let layout = layout.resized(resize.output);
        let output = layout.empty(&x);
        let length = layout.len() / vector;
        let (count, dim) = elementwise(&x, length);
        let [rows, columns] = resize.axes();
        let dtype = element(&x);
        // SAFETY: units beyond `length` stop; taps are within the input.
        unsafe {
            self::resize::launch_unchecked(
                &output.client,
                count,
                dim,
                vector,
                buffer(x),
                buffer(output.clone()),
                rows,
                columns,
                inner,
                length,
                resize.align_corners,
                dtype,
            );
        }
        layout.view(output)
    }

    fn halfseg_resize_adjoint(gradient: CubeTensor, resize: Bilinear) -> CubeTensor {
        let (gradient, layout) = Layout::of(gradient);
        let (inner, vector) = layout.pixel(&gradient, gradient.dtype.size());
        let layout = layout.resized(resize.input);
        let output = layout.empty(&gradient);
        let length = layout.len() / vector;
        let (count, dim) = elementwise(&gradient, length);
        let [rows, columns] = resize.axes();
        let dtype = element(&gradient);
        // SAFETY: units beyond `length` stop; readers are within the gradient.
        unsafe {
            adjoint::launch_unchecked(
                &output.client,
                count,
                dim,
                vector,
                buffer(gradient),
                buffer(output.clone()),
                rows,
                columns,
                inner,
                length,
                resize.align_corners,
                dtype,
            );
        }
        layout.view(output)
    }
}
