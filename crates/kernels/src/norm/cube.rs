//! The GPU kernels for tensors of Burn's CubeCL backends.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::{into_contiguous, slice};
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

use super::affine::ScaledAndShifted;
use super::forward::Forward;
use super::gpu::gradients::Backward;
use super::gpu::moments::{Moving, statistics_moving, statistics_of};
use super::gpu::normalise::apply;
use super::ops::BatchNormalisation;
use super::passes::SharedNormalisation;
use crate::Activation;
use crate::gpu::launch::empty;
use crate::gpu::layout::Layout;

fn forward(
    x: CubeTensor,
    parameters: [CubeTensor; 2],
    skip: Option<CubeTensor>,
    running: [CubeTensor; 2],
    pass: Forward,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    // Once, where it has gaps.
    let (x, layout) = Layout::of(x);
    let x = layout.view(x);
    let running = running.map(into_contiguous);
    let moved = [0, 1].map(|_| empty(&x, [layout.shape[1]], DType::F32));
    let moving = Moving {
        from: running,
        to: moved.clone(),
        moves: pass.moves,
    };
    let statistics = statistics_moving(x.clone(), pass.epsilon, Some(moving));
    let output = apply(
        x,
        parameters,
        Some(statistics.clone()),
        skip,
        pass.activation,
    );
    let [mean, variance] = moved;
    (output, statistics, mean, variance)
}

/// The gradients of the input, gamma, beta and, with `output`, the skip connection.
fn backward(
    x: CubeTensor,
    parameters: [CubeTensor; 2],
    statistics: CubeTensor,
    output: Option<CubeTensor>,
    gradient: CubeTensor,
    activation: Activation,
) -> (CubeTensor, CubeTensor, CubeTensor, Option<CubeTensor>) {
    let pass = Backward::new(x, parameters, statistics, output, activation);
    let gradient = pass.layout.arrange(gradient);
    let [n, _, h, w] = pass.layout.shape;
    let sums = pass.sums(&gradient);
    let (dx, dskip) = pass.gradients(gradient, sums.clone(), (n * h * w) as f32);
    let [dgamma, dbeta] = sums;
    (dx, dgamma, dbeta, dskip)
}

impl BatchNormalisation for CubeBackend {
    fn halfseg_batch_norm(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        pass: Forward,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let (parameters, running) = ([gamma, beta], [mean, variance]);
        forward(x, parameters, None, running, pass)
    }

    fn halfseg_batch_norm_skip(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        skip: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        pass: Forward,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let (parameters, running) = ([gamma, beta], [mean, variance]);
        forward(x, parameters, Some(skip), running, pass)
    }

    fn halfseg_batch_norm_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        gradient: CubeTensor,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let parameters = [gamma, beta];
        let (dx, dgamma, dbeta, _) =
            backward(x, parameters, statistics, None, gradient, activation);
        (dx, dgamma, dbeta)
    }

    fn halfseg_batch_norm_skip_relu_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        statistics: CubeTensor,
        output: CubeTensor,
        gradient: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        // The shift is not read where the mask comes from the output.
        let parameters = [gamma.clone(), gamma];
        let (output, relu) = (Some(output), Activation::Relu);
        let (dx, dgamma, dbeta, dskip) =
            backward(x, parameters, statistics, output, gradient, relu);
        let dskip = dskip.expect("with the output comes the skip connection's gradient");
        (dx, dgamma, dbeta, dskip)
    }
}

impl ScaledAndShifted for CubeBackend {
    fn halfseg_affine(
        x: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        activation: Activation,
    ) -> CubeTensor {
        apply(x, [scale, shift], None, None, activation)
    }

    fn halfseg_affine_skip(
        x: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        skip: CubeTensor,
        activation: Activation,
    ) -> CubeTensor {
        apply(x, [scale, shift], None, Some(skip), activation)
    }
}

impl SharedNormalisation for CubeBackend {
    fn halfseg_norm_statistics(x: CubeTensor, epsilon: f64) -> CubeTensor {
        statistics_of(x, epsilon)
    }

    fn halfseg_norm_apply(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        activation: Activation,
    ) -> CubeTensor {
        apply(x, [gamma, beta], Some(statistics), None, activation)
    }

    fn halfseg_norm_apply_skip(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        skip: CubeTensor,
        activation: Activation,
    ) -> CubeTensor {
        apply(x, [gamma, beta], Some(statistics), Some(skip), activation)
    }

    fn halfseg_norm_sums(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
        gradient: CubeTensor,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor) {
        let pass = Backward::new(x, [gamma, beta], statistics, None, activation);
        let gradient = pass.layout.arrange(gradient);
        let [dgamma, dbeta] = pass.sums(&gradient);
        (dgamma, dbeta)
    }

    fn halfseg_norm_skip_relu_sums(
        x: CubeTensor,
        gamma: CubeTensor,
        statistics: CubeTensor,
        output: CubeTensor,
        gradient: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        // The shift is not read where the mask comes from the output.
        let parameters = [gamma.clone(), gamma];
        let pass = Backward::new(x, parameters, statistics, Some(output), Activation::Relu);
        let gradient = pass.layout.arrange(gradient);
        let [dgamma, dbeta] = pass.sums(&gradient);
        (dgamma, dbeta)
    }

    fn halfseg_norm_gradient(
        x: CubeTensor,
        parameters: CubeTensor,
        statistics: CubeTensor,
        sums: CubeTensor,
        gradient: CubeTensor,
        count: f64,
        activation: Activation,
    ) -> CubeTensor {
        let pass = Backward::new(x, rows(parameters), statistics, None, activation);
        let gradient = pass.layout.arrange(gradient);
        pass.gradients(gradient, rows(sums), count as f32).0
    }

    fn halfseg_norm_skip_relu_gradient(
        x: CubeTensor,
        gamma: CubeTensor,
        statistics: CubeTensor,
        output: CubeTensor,
        sums: CubeTensor,
        gradient: CubeTensor,
        count: f64,
    ) -> (CubeTensor, CubeTensor) {
        let parameters = [gamma.clone(), gamma];
        let pass = Backward::new(x, parameters, statistics, Some(output), Activation::Relu);
        let gradient = pass.layout.arrange(gradient);
        let (dx, dskip) = pass.gradients(gradient, rows(sums), count as f32);
        (
            dx,
            dskip.expect("with the output comes the skip connection's gradient"),
        )
    }
}

/// The two rows of `[2, c]`.
fn rows(pair: CubeTensor) -> [CubeTensor; 2] {
    let [_, c] = pair.meta.shape().dims();
    [0, 1].map(|row| {
        let row = slice(pair.clone(), &[row..row + 1, 0..c]);
        reshape(row, [c].into())
    })
}
