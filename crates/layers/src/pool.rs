//! Pooling.

use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, module};
use halfseg_amp::{Op, cast, observe};
use halfseg_kernels::{averages, bins, max_pool2d};

use crate::resize::separable;

/// Averages a map over `size[0] x size[1]` rectangles that cover it, as PyTorch's adaptive average
/// pooling: bin `i` of `s` spans rows `floor(i h / s)` to `ceil((i + 1) h / s)`. Differentiable.
///
/// Sums in f32 (an f16 sum over a whole map overflows) and returns `x`'s dtype.
///
/// # Shapes
/// - `x`: `[n, c, h, w]`
/// - output: `[n, c, size[0], size[1]]`
pub fn adaptive_avg_pool2d(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    observe(Op::Pool, "adaptive_avg_pool2d", x, |x| {
        let x = cast(Op::Pool, x);
        if let Some(y) = averages(&x, size) {
            return y;
        }
        let (dtype, device) = (FloatDType::from(x.dtype()), x.device());
        let rows = averaging_matrix(h, size[0], &device);
        let columns = averaging_matrix(w, size[1], &device);
        separable(x, rows, columns).cast(dtype)
    })
}

/// The 3x3 maximum with stride 2 and padding 1 at the end of a ResNet's stem:
/// `[n, c, h, w]` -> `[n, c, ceil(h / 2), ceil(w / 2)]`.
pub fn stem_max_pool(x: Tensor<4>) -> Tensor<4> {
    let options = MaxPoolOptions {
        kernel_size: [3, 3],
        stride: [2, 2],
        padding: [(1, 1); 2],
        dilation: [1, 1],
        ceil_mode: false,
    };
    observe(Op::Pool, "stem_max_pool", x, |x| {
        let x = cast(Op::Pool, x);
        if let Some(y) = max_pool2d(&x, 3, 2, 1) {
            return y;
        }
        module::max_pool2d(x, options.clone())
    })
}

/// Averages squares of `side x side` pixels that lie side by side; those at the right and the bottom edge
/// may be smaller and are averaged over the pixels that they have: PyTorch's `AvgPool2d(side, side,
/// ceil_mode=True, count_include_pad=False)`. Differentiable.
///
/// # Shapes
/// - `x`: `[n, c, h, w]`
/// - output: `[n, c, ceil(h / side), ceil(w / side)]`
pub fn avg_pool_to(x: Tensor<4>, side: usize) -> Tensor<4> {
    let options = AvgPoolOptions {
        kernel_size: [side; 2],
        stride: [side; 2],
        padding: [(0, 0); 2],
        count_include_pad: false,
        ceil_mode: true,
    };
    observe(Op::Pool, "avg_pool_to", x, |x| {
        module::avg_pool2d(cast(Op::Pool, x), options.clone())
    })
}

fn averaging_matrix(size: usize, out: usize, device: &Device) -> Tensor<2> {
    let matrix = averaging_weights(size, out);
    Tensor::from_data(TensorData::new(matrix, [out, size]), (device, DType::F32))
}

/// What [`adaptive_avg_pool2d`] takes along a side, `[out, size]` row by row: of each of `size` pixels for each of `out`
/// bins.
pub fn averaging_weights(size: usize, out: usize) -> Vec<f32> {
    let mut matrix = vec![0.0f32; out * size];
    for (bin, row) in bins(size, out)
        .into_iter()
        .zip(matrix.chunks_exact_mut(size))
    {
        let share = 1.0 / bin.len() as f32;
        row[bin].fill(share);
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn pooling_agrees_with_burns_at_odd_sizes() {
        let device = Device::flex();
        for (h, w) in [(13, 21), (6, 6), (7, 5), (3, 4)] {
            let values: Vec<f32> = (0..2 * 3 * h * w).map(|i| ((i * 7) % 31) as f32).collect();
            let x = Tensor::<4>::from_data(TensorData::new(values, [2, 3, h, w]), &device);
            for s in [1, 2, 3, 6] {
                let found = adaptive_avg_pool2d(x.clone(), [s, s]).into_data();
                let expected = module::adaptive_avg_pool2d(x.clone(), [s, s]).into_data();
                found.assert_approx_eq::<f32>(&expected, Tolerance::relative(1e-5));
            }
        }
    }

    #[test]
    fn maps_whose_channels_are_neighbours_in_memory_are_pooled_alike() {
        let device = Device::flex();
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            let values: Vec<f32> = (0..2 * 9 * 11 * 70)
                .map(|i| ((i * 7) % 61) as f32)
                .collect();
            let last = Tensor::<4>::from_data(TensorData::new(values, [2, 9, 11, 70]), &device);
            let last = last.cast(dtype).permute([0, 3, 1, 2]);
            let planar = Tensor::<4>::from_data(last.clone().into_data(), (&device, dtype.into()));
            let pooled = [&last, &planar].map(|x| stem_max_pool(x.clone()).into_data());
            // Burn's, where a gradient may follow.
            let graph = Tensor::<4>::from_data(
                planar.clone().into_data(),
                (&device.clone().autodiff(), dtype.into()),
            );
            let expected = stem_max_pool(graph).into_data();
            assert_eq!(pooled, [expected.clone(), expected], "{dtype:?}");
            for size in [[1, 1], [2, 3], [6, 6]] {
                let [found, expected] =
                    [&last, &planar].map(|x| adaptive_avg_pool2d(x.clone(), size).into_data());
                // One rounding.
                found.assert_approx_eq::<f32>(&expected, Tolerance::relative(2f32.powi(-7)));
            }
        }
    }

    #[test]
    fn squares_at_the_edges_are_averaged_over_their_own_pixels() {
        let device = Device::flex().autodiff();
        let (h, w) = (5usize, 7usize);
        let values: Vec<f32> = (0..h * w).map(|i| ((i * 7) % 31) as f32).collect();
        let data = TensorData::new(values.clone(), [1, 1, h, w]);
        let x = Tensor::<4>::from_data(data, &device).require_grad();
        for side in [2, 3] {
            let y = avg_pool_to(x.clone(), side);
            let [_, _, rows, columns] = y.dims();
            assert_eq!([rows, columns], [h.div_ceil(side), w.div_ceil(side)]);
            let (mut expected, mut share) = (vec![], vec![0.0; h * w]);
            for square in 0..rows * columns {
                let (top, left) = (square / columns * side, square % columns * side);
                let pixels = (top..h.min(top + side))
                    .flat_map(|y| (left..w.min(left + side)).map(move |x| y * w + x));
                let pixels: Vec<usize> = pixels.collect();
                let sum: f32 = pixels.iter().map(|&pixel| values[pixel]).sum();
                expected.push(sum / pixels.len() as f32);
                for &pixel in &pixels {
                    share[pixel] = 1.0 / pixels.len() as f32;
                }
            }
            let found = y.clone().inner().into_data();
            let expected = TensorData::new(expected, [1, 1, rows, columns]);
            found.assert_approx_eq::<f32>(&expected, Tolerance::relative(1e-6));
            let gradient = x.grad(&y.sum().backward()).unwrap().into_data();
            let share = TensorData::new(share, [1, 1, h, w]);
            gradient.assert_approx_eq::<f32>(&share, Tolerance::relative(1e-6));
        }
    }

    #[test]
    fn an_f16_map_whose_sum_overflows_has_a_finite_average() {
        let device = Device::flex();
        let x = Tensor::<4>::full([1, 1, 64, 64], 1000.0, &device).cast(FloatDType::F16);
        let y = adaptive_avg_pool2d(x, [1, 1]).cast(FloatDType::F32);
        assert_eq!(y.into_scalar::<f32>(), 1000.0);
    }
}
