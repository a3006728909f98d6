//! Bilinear resizing, and the separable linear maps that it shares with pooling.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use halfseg_amp::{Op, cast, observe};
use halfseg_devices::is_host;
use halfseg_kernels::{
    Between, plane_sums, resample, resize_bilinear, takes_gradients, with_gradient,
};

/// Resizes a map bilinearly with pixel centres at half integers (`align_corners = false`), the one
/// place where these networks change a map's size without a convolution. Differentiable.
///
/// Computes in f32 and returns `x`'s dtype. On GPUs this is one kernel, and so it is on the CPU where no gradient
/// follows; elsewhere it is two products with constant matrices.
///
/// # Shapes
/// - `x`: `[n, c, h, w]`
/// - output: `[n, c, size[0], size[1]]`
///
/// # Panics
/// If either map is empty.
pub fn resize(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    resize_with(x, size, false)
}

/// [`resize`] with the choice of `align_corners`, which some 769x769 recipes of MMSegmentation set.
///
/// # Panics
/// If either map is empty.
pub fn resize_with(x: Tensor<4>, size: [usize; 2], align_corners: bool) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    if [h, w] == size {
        return x;
    }
    if [h, w] == [1, 1] {
        return repeat(x, size);
    }
    observe(Op::Interpolate, "resize", x, |x| {
        // The sums are f32 in any case; an audit asks what maps of half precision lose.
        let x = cast(Op::Pool, x);
        if let Some(y) = resize_bilinear(&x, size, align_corners) {
            return y;
        }
        if h * w > 0 {
            let rows = Between::bilinear(h, size[0], align_corners);
            let columns = Between::bilinear(w, size[1], align_corners);
            if let Some(y) = resample(&x, &rows, &columns) {
                return y;
            }
        }
        let plan = ResizePlan::new([h, w], size, align_corners, &x.device());
        let dtype = FloatDType::from(x.dtype());
        plan.forward(x).cast(dtype)
    })
}

/// A map of one pixel, repeated: `[n, c, 1, 1]` to `[n, c, size[0], size[1]]`.
fn repeat(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [n, c, ..] = x.dims();
    let shape = [n, c, size[0], size[1]];
    if is_host(&x.device()) || !takes_gradients(&x.device()) {
        return x.expand(shape);
    }
    // Burn's gradient is two sums, each rounded, for which its tuner compiles many kernels.
    let y = x.clone().inner().expand(shape);
    with_gradient(vec![x.into()], y, |gradient| {
        let sums = plane_sums(&gradient).unwrap_or_else(|| gradient.sum_dim(2).sum_dim(3));
        vec![Some(sums.into())]
    })
}

/// Bytes of the matrices that [`resize`] multiplies with where there is no kernel for it, in training on the CPU
/// among others: they grow with the square of a side. `from` and `to` are height and width in pixels.
pub fn resize_memory(from: [usize; 2], to: [usize; 2]) -> u64 {
    let matrix = |from: usize, to: usize| (4 * from as u64).saturating_mul(to as u64);
    matrix(from[0], to[0]).saturating_add(matrix(from[1], to[1]))
}

/// The constant matrices of one resize, for backends without a kernel of `halfseg-kernels`. Burn's
/// own interpolation has no gradient on all of them; two products with these do, and keep nothing
/// for the backward pass.
pub(crate) struct ResizePlan {
    rows: Tensor<2>,
    columns: Tensor<2>,
}

impl ResizePlan {
    pub(crate) fn new(
        [h, w]: [usize; 2],
        [out_h, out_w]: [usize; 2],
        align_corners: bool,
        device: &Device,
    ) -> Self {
        assert!(
            h * w * out_h * out_w > 0,
            "cannot resize a map of {h}x{w} to {out_h}x{out_w}: one of them is empty"
        );
        Self {
            rows: bilinear_matrix(h, out_h, align_corners, device),
            columns: bilinear_matrix(w, out_w, align_corners, device),
        }
    }

    /// The resized map, in f32.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        separable(x, self.rows.clone(), self.columns.clone())
    }

    /// The gradient of the input, given that of the output; both f32.
    pub(crate) fn adjoint(&self, gradient: Tensor<4>) -> Tensor<4> {
        separable(
            gradient,
            self.rows.clone().transpose(),
            self.columns.clone().transpose(),
        )
    }
}

/// `rows * x * columns^T` for every plane of `x`, in f32: `[n, c, h, w]` -> `[n, c, out_h, out_w]`
/// with `rows: [out_h, h]`, `columns: [out_w, w]`.
pub(crate) fn separable(x: Tensor<4>, rows: Tensor<2>, columns: Tensor<2>) -> Tensor<4> {
    let [n, c, h, w] = x.dims();
    let ([out_h, _], [out_w, _]) = (rows.dims(), columns.dims());
    let x = x.cast(FloatDType::F32);
    let along_rows = |x: Tensor<4>, w: usize| {
        rows.clone()
            .unsqueeze::<3>()
            .matmul(x.reshape([n * c, h, w]))
            .reshape([n, c, out_h, w])
    };
    let along_columns = |x: Tensor<4>, h: usize| {
        x.reshape([n * c * h, w])
            .matmul(columns.clone().transpose())
            .reshape([n, c, h, out_w])
    };
    // Both orders give the same sums; take the one with fewer products.
    if h * w * out_w + out_h * h * out_w <= out_h * h * w + out_h * w * out_w {
        along_rows(along_columns(x, h), out_w)
    } else {
        along_columns(along_rows(x, w), out_h)
    }
}

fn bilinear_matrix(size: usize, out: usize, align_corners: bool, device: &Device) -> Tensor<2> {
    let matrix = bilinear_weights(size, out, align_corners);
    Tensor::from_data(TensorData::new(matrix, [out, size]), (device, DType::F32))
}

/// `[out, size]`: row `o` holds the two weights that output `o` takes from the input.
pub(crate) fn bilinear_weights(size: usize, out: usize, align_corners: bool) -> Vec<f32> {
    let mut matrix = vec![0.0f32; out * size];
    let lines = Between::bilinear(size, out, align_corners);
    for (line, row) in lines.iter().zip(matrix.chunks_exact_mut(size)) {
        row[line.low] += 1.0 - line.share;
        row[line.high] += line.share;
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    fn ramp(shape: [usize; 4], device: &Device) -> Tensor<4> {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count)
            .map(|i| ((i * 37) % 101) as f32 / 25.0 - 2.0)
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// torch.nn.functional.interpolate(arange(6.).view(1, 1, 2, 3), (3, 5), mode='bilinear').
    #[test]
    fn resizing_gives_pytorchs_numbers() {
        let device = Device::flex();
        let x = Tensor::<4>::from_data([[[[0.0f32, 1., 2.], [3., 4., 5.]]]], &device);
        let y = resize(x.clone(), [3, 5]);
        let expected = TensorData::from([[[
            [0.0f32, 0.4, 1.0, 1.6, 2.0],
            [1.5, 1.9, 2.5, 3.1, 3.5],
            [3.0, 3.4, 4.0, 4.6, 5.0],
        ]]]);
        y.into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
        let aligned = resize_with(x, [3, 5], true);
        let expected = TensorData::from([[[
            [0.0f32, 0.5, 1.0, 1.5, 2.0],
            [1.5, 2.0, 2.5, 3.0, 3.5],
            [3.0, 3.5, 4.0, 4.5, 5.0],
        ]]]);
        aligned
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
    }

    #[test]
    fn without_gradients_a_map_of_either_order_is_resized_as_by_matrices() {
        let device = Device::flex();
        for (size, align_corners) in [([13, 16], false), ([13, 16], true), ([3, 5], false)] {
            let last = ramp([2, 5, 7, 33], &device).permute([0, 3, 1, 2]);
            let planar = Tensor::<4>::from_data(last.clone().into_data(), &device);
            let plan = ResizePlan::new([5, 7], size, align_corners, &device);
            let expected = plan.forward(planar.clone()).into_data();
            for x in [last, planar] {
                let found = resize_with(x, size, align_corners).into_data();
                found.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
            }
        }
    }

    #[test]
    fn the_adjoint_is_the_transpose_of_the_forward_pass() {
        let device = Device::flex();
        for (from, to) in [
            ([5, 7], [13, 16]),
            ([13, 16], [5, 7]),
            ([1, 9], [4, 3]),
            ([6, 1], [3, 8]),
        ] {
            let plan = ResizePlan::new(from, to, false, &device);
            let x = ramp([2, 3, from[0], from[1]], &device);
            let g = ramp([2, 3, to[0], to[1]], &device);
            let forward: f32 = (plan.forward(x.clone()) * g.clone()).sum().into_scalar();
            let backward: f32 = (plan.adjoint(g) * x).sum().into_scalar();
            assert!(
                (forward - backward).abs() < 1e-3,
                "{from:?} -> {to:?}: {forward} {backward}"
            );
        }
    }

    #[test]
    fn autodiff_gives_the_adjoint() {
        let device = Device::flex();
        let tracked = device.clone().autodiff();
        let plan = ResizePlan::new([5, 6], [9, 17], false, &device);
        let x = ramp([1, 2, 5, 6], &tracked).require_grad();
        let g = ramp([1, 2, 9, 17], &tracked);
        let grads = (resize(x.clone(), [9, 17]) * g.clone()).sum().backward();
        let found = x.grad(&grads).expect("x is tracked");
        let expected = plan.adjoint(g.inner());
        found
            .into_data()
            .assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(1e-5));
    }

    #[test]
    fn low_precision_maps_keep_their_dtype_and_only_round_once() {
        let device = Device::flex();
        for (dtype, tolerance) in [(FloatDType::F16, 2e-3), (FloatDType::BF16, 1.6e-2)] {
            let x = ramp([1, 2, 7, 5], &device).cast(dtype);
            let y = resize(x.clone(), [15, 23]);
            assert_eq!(y.dtype(), dtype.into());
            let exact = resize(x.cast(FloatDType::F32), [15, 23]);
            let worst: f32 = (y.cast(FloatDType::F32) - exact).abs().max().into_scalar();
            assert!(worst <= tolerance, "{dtype:?}: {worst}");
        }
    }

    #[test]
    fn a_single_pixel_spreads_over_the_map() {
        let device = Device::flex();
        let x = ramp([2, 3, 1, 1], &device);
        let y = resize(x.clone(), [4, 5]);
        assert_eq!(y.dims(), [2, 3, 4, 5]);
        let worst: f32 = (y - x).abs().max().into_scalar();
        assert_eq!(worst, 0.0);
    }
}
