//! Input gradients as convolutions of the output's gradient, so that the forward pass's kernels serve.
//!
//! With a stride `s`, every `s`-th pixel of the input is read through the same taps: the input falls into
//! `s * s` interleaved grids, each of them a convolution of stride 1 with a part of the kernel, turned
//! around. Together they multiply as often as the forward pass does.

use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::Conv2dOptions;
use super::weight::{Taps, by_input, by_output, turned};
use super::window::{Pair, pair, vector_size};
use super::{dense, direct};
use crate::gpu::launch::{buffer, element, elementwise, empty, optional};

/// One of the interleaved grids, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Phase {
    /// The first pixel, and the number of all.
    first: usize,
    count: usize,
    /// The taps that it is read through, of which there may be none.
    taps: Taps,
    /// Of the convolution of the output's gradient.
    padding: usize,
    dilation: usize,
}

impl Phase {
    /// All grids of an input of `size` pixels that have any, or `None` where one of them would need a
    /// negative padding: where zeros are around the input that no tap needs.
    fn all(size: usize, kernel: usize, options: Conv2dOptions, axis: usize) -> Option<Vec<Self>> {
        let stride = options.stride[axis];
        let (padding, dilation) = (options.padding[axis], options.dilation[axis]);
        let one = |rest: usize| {
            let first = (rest + stride - padding % stride) % stride;
            let count = size.saturating_sub(first).div_ceil(stride);
            // Pixel y reads output (y + padding - tap * dilation) / stride where that is whole.
            let fitting: Vec<usize> = (0..kernel)
                .filter(|tap| tap * dilation % stride == rest)
                .collect();
            let Some(&tap) = fitting.first() else {
                return Some(Self {
                    first,
                    count,
                    taps: Taps {
                        first: 0,
                        step: 1,
                        count: 0,
                    },
                    padding: 0,
                    dilation: 1,
                });
            };
            let step = fitting.get(1).map_or(1, |second| second - tap);
            let taps = Taps {
                first: tap,
                step,
                count: fitting.len(),
            };
            // With a single tap the distance to the next means nothing.
            let dilation = if taps.count > 1 {
                step * dilation / stride
            } else {
                1
            };
            let step_to_first = (first + padding) as i64 - (tap * options.dilation[axis]) as i64;
            let padding = ((taps.count - 1) * dilation) as i64 - step_to_first / stride as i64;
            Some(Self {
                first,
                count,
                taps,
                padding: usize::try_from(padding).ok()?,
                dilation,
            })
        };
        let phases: Option<Vec<_>> = (0..stride).map(one).collect();
        Some(
            phases?
                .into_iter()
                .filter(|phase| phase.count > 0)
                .collect(),
        )
    }
}

/// Puts a grid into its place in a map, zeros where there is none; one vector of channels a unit.
#[cube(launch_unchecked)]
fn place<E: Float, N: Size>(
    grid: ComptimeOption<&[Vector<E, N>]>,
    output: &mut [Vector<E, N>],
    size: Pair,
    grid_size: Pair,
    first: Pair,
    stride: Pair,
    channels: usize,
    length: usize,
    #[define(E)] _dtype: ElemType,
) {
    let index = ABSOLUTE_POS;
    if index >= length {
        terminate!();
    }
    let pixel = index / channels;
    let x = first.x + pixel % grid_size.x * stride.x;
    let line = pixel / grid_size.x;
    let y = first.y + line % grid_size.y * stride.y;
    let image = line / grid_size.y;
    let at = ((image * size.y + y) * size.x + x) * channels + index % channels;
    #[comptime]
    let value = match grid {
        ComptimeOption::Some(grid) => grid[index],
        ComptimeOption::None => Vector::new(E::from_int(0)),
    };
    output[at] = value;
}

/// The input's gradient, `[n, *size, c_in]`, from that of the output, which lies pixel by pixel; `weight`
/// is `[c_out, c_in, kh, kw]`, in any dtype. For one group.
pub fn input_gradient(
    weight: CubeTensor,
    gradient: CubeTensor,
    size: [usize; 2],
    options: Conv2dOptions,
) -> CubeTensor {
    let dtype = gradient.dtype;
    let [n, ..] = gradient.meta.shape().dims::<4>();
    let [c_out, c_in, kh, kw] = weight.meta.shape().dims();
    if dense::is_pointwise([kh, kw], options) {
        // As it lies, in the dtype of the maps: nothing is turned around.
        let weight = reshape(by_output(weight.clone(), dtype), [c_out, c_in].into());
        if let Ok(output) = dense::product(gradient.clone(), weight) {
            return output;
        }
    }
    let (Some(rows), Some(columns)) = (
        Phase::all(size[0], kh, options, 0),
        Phase::all(size[1], kw, options, 1),
    ) else {
        return direct::convolve(gradient, by_input(weight, 1, dtype), size, options, true);
    };
    let output = (options.stride != [1, 1])
        .then(|| empty(&gradient, [n, size[0], size[1], c_in], gradient.dtype));
    for rows in &rows {
        for columns in &columns {
            let grid = (rows.taps.count * columns.taps.count > 0).then(|| {
                let part = turned(weight.clone(), [rows.taps, columns.taps], dtype);
                let options = Conv2dOptions {
                    stride: [1, 1],
                    padding: [rows.padding, columns.padding],
                    dilation: [rows.dilation, columns.dilation],
                    groups: 1,
                };
                let to = [rows.count, columns.count];
                dense::correlate(gradient.clone(), part, to, options)
            });
            let Some(output) = &output else {
                return grid.expect("with stride 1 every tap reads every pixel");
            };
            let vector = vector_size(output, c_in);
            let channels = c_in / vector;
            let length = n * rows.count * columns.count * channels;
            let (count, dim) = elementwise(output, length);
            // SAFETY: units beyond `length` stop; the grid's pixels are within the output.
            unsafe {
                place::launch_unchecked(
                    &output.client,
                    count,
                    dim,
                    vector,
                    optional(grid.map(into_contiguous)),
                    buffer(output.clone()),
                    pair(size),
                    pair([rows.count, columns.count]),
                    pair([rows.first, columns.first]),
                    pair(options.stride),
                    channels,
                    length,
                    element(output),
                );
            }
        }
    }
    output.expect("with stride 1 the only grid was returned")
}

#[cfg(test)]
mod tests {
    use super::super::problem::ends_early;
    use super::*;

    /// Every pair of a pixel and an output that reads it through a tap is in one grid, once.
    #[test]
    fn the_grids_make_up_the_input_gradient() {
        let mut grids = 0;
        for (kernel, stride, padding, dilation) in [
            (3, 2, 1, 1),
            (3, 1, 2, 2),
            (1, 2, 0, 1),
            (3, 2, 2, 2),
            (5, 3, 2, 1),
            (4, 2, 1, 3),
            (7, 4, 3, 1),
            (2, 3, 0, 2),
        ] {
            for size in 7..20 {
                let options = Conv2dOptions {
                    stride: [stride; 2],
                    padding: [padding; 2],
                    dilation: [dilation; 2],
                    groups: 1,
                };
                let Some(outputs) = options.outputs(0, size, kernel) else {
                    continue;
                };
                let mut expected = Vec::new();
                for output in 0..outputs {
                    for tap in 0..kernel {
                        let at = output * stride + tap * dilation;
                        if (padding..padding + size).contains(&at) {
                            expected.push((at - padding, output, tap));
                        }
                    }
                }
                let Some(phases) = Phase::all(size, kernel, options, 0) else {
                    panic!("{options:?} has grids");
                };
                let mut found = Vec::new();
                for phase in phases {
                    grids += 1;
                    for i in 0..phase.count {
                        for m in 0..phase.taps.count {
                            let at = i + m * phase.dilation;
                            if (phase.padding..phase.padding + outputs).contains(&at) {
                                let back = phase.taps.count - 1 - m;
                                let tap = phase.taps.first + back * phase.taps.step;
                                let pixel = phase.first + i * stride;
                                found.push((pixel, at - phase.padding, tap));
                            }
                        }
                    }
                }
                expected.sort_unstable();
                found.sort_unstable();
                assert_eq!(found, expected, "{size} {kernel} {options:?}");
            }
        }
        assert!(grids > 100);
    }

    /// As with a padding that only the first of two outputs reads: TMA is not for these.
    #[test]
    fn grids_that_end_before_their_padding_are_told_apart() {
        for (size, kernel, stride, padding, early) in [
            (4, 2, 2, 1, true),
            (4, 3, 3, 1, true),
            (8, 3, 1, 1, false),
            (9, 3, 2, 1, false),
        ] {
            let options = Conv2dOptions {
                stride: [stride; 2],
                padding: [padding; 2],
                ..Conv2dOptions::default()
            };
            let outputs = options.outputs(0, size, kernel).expect("the window fits");
            let phases = Phase::all(size, kernel, options, 0).expect("there are grids");
            let found = phases
                .iter()
                .filter(|phase| phase.taps.count > 0)
                .any(|phase| {
                    let options = Conv2dOptions {
                        padding: [phase.padding; 2],
                        dilation: [phase.dilation; 2],
                        ..Conv2dOptions::default()
                    };
                    let kernel = [phase.taps.count; 2];
                    ends_early([phase.count; 2], [outputs; 2], kernel, options)
                });
            assert_eq!(found, early, "{size} {kernel} {options:?}");
        }
    }

    #[test]
    fn zeros_that_no_tap_needs_have_no_grids() {
        let options = Conv2dOptions {
            padding: [1, 1],
            ..Conv2dOptions::default()
        };
        assert_eq!(Phase::all(8, 1, options, 0), None);
    }
}
