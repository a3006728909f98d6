//! The CPU kernels for tensors of Burn's Flex backend.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;

use super::cpu::{self, Channels, Mask, Sizes, Statistics};
use super::forward::Forward;
use super::ops::BatchNormalisation;
use crate::Activation;
use crate::cpu::tensor::{shape, tensor, values, with_element};

fn forward(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    skip: Option<FlexTensor>,
    running: [FlexTensor; 2],
    pass: Forward,
) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
    let Forward {
        epsilon,
        activation,
        moves,
        ..
    } = pass;
    let (sizes, shape) = (sizes(&x), shape(&x));
    let (x, gamma, beta) = (
        x.to_contiguous(),
        gamma.to_contiguous(),
        beta.to_contiguous(),
    );
    let skip = skip.map(|skip| skip.to_contiguous());
    let relu = activation == Activation::Relu;
    let (output, statistics) = with_element!(x.dtype(), E => {
        let parameters = [gamma.storage(), beta.storage()];
        let skip = skip.as_ref().map(|skip| skip.storage::<E>());
        let (output, statistics) =
            cpu::forward::<E>(sizes, x.storage(), skip, parameters, epsilon, relu);
        (tensor(output, shape), statistics)
    });
    let [mean, variance] = running;
    let mean = moved(&mean, &statistics, |s| s.mean, moves.keep, moves.mean);
    let variance = moved(
        &variance,
        &statistics,
        |s| s.variance,
        moves.keep,
        moves.variance,
    );
    (output, rows_of(&statistics), mean, variance)
}

/// A running statistic of each channel, which keeps a share of itself and takes one of the batch's.
fn moved(
    running: &FlexTensor,
    statistics: &[Statistics],
    of: fn(&Statistics) -> f32,
    keep: f32,
    take: f32,
) -> FlexTensor {
    let running = running.to_contiguous();
    let values = values::<f32>(&running).iter().zip(statistics);
    let moved: Vec<_> = values
        .map(|(running, statistics)| running * keep + of(statistics) * take)
        .collect();
    tensor(moved, [statistics.len()])
}

/// `[4, c]`.
pub fn rows_of(statistics: &[Statistics]) -> FlexTensor {
    let row = |field: fn(&Statistics) -> f32| statistics.iter().map(field);
    let rows = row(|s| s.mean)
        .chain(row(|s| s.variance))
        .chain(row(|s| s.inverse_deviation))
        .chain(row(|s| s.remainder));
    tensor(rows.collect(), [4, statistics.len()])
}

/// From `[4, c]`.
pub fn statistics_in(rows: &FlexTensor, channels: usize) -> Vec<Statistics> {
    let rows = rows.to_contiguous();
    let rows = values::<f32>(&rows);
    let at = |row: usize, channel: usize| rows[row * channels + channel];
    let statistics = |channel| Statistics {
        mean: at(0, channel),
        variance: at(1, channel),
        inverse_deviation: at(2, channel),
        remainder: at(3, channel),
    };
    (0..channels).map(statistics).collect()
}

/// What [`cpu::backward`] reads the ReLU's mask from.
enum Source {
    Nothing,
    Input,
    Output(FlexTensor),
}

/// The gradients of the input, gamma, beta and, for [`Source::Output`], the skip connection.
fn backward(
    x: FlexTensor,
    [gamma, beta]: [FlexTensor; 2],
    statistics: FlexTensor,
    source: Source,
    gradient: FlexTensor,
) -> (FlexTensor, FlexTensor, FlexTensor, Option<FlexTensor>) {
    let (sizes, shape) = (sizes(&x), shape(&x));
    let x = x.to_contiguous();
    // The original goes before the gradient is written to: what it alone owns is not copied.
    let mut gradient = {
        let contiguous = gradient.to_contiguous();
        drop(gradient);
        contiguous
    };
    let (gamma, beta) = (gamma.to_contiguous(), beta.to_contiguous());
    let statistics = statistics_in(&statistics, sizes.channels);
    let channels = Channels {
        gamma: gamma.storage(),
        beta: beta.storage(),
        statistics: &statistics,
    };
    let (dx, dskip, dgamma, dbeta) = with_element!(x.dtype(), E => {
        let (mask, apart) = match &source {
            Source::Nothing => (Mask::None, false),
            Source::Input => (Mask::FromInput, false),
            Source::Output(output) => (Mask::FromOutput(output.storage::<E>()), true),
        };
        let values = gradient.storage_mut::<E>();
        let (target, dgamma, dbeta) =
            cpu::backward(sizes, x.storage(), channels, mask, values, apart);
        match target {
            Some(target) => (tensor(target, shape), Some(gradient), dgamma, dbeta),
            None => (gradient, None, dgamma, dbeta),
        }
    });
    let dgamma = tensor(dgamma, [sizes.channels]);
    let dbeta = tensor(dbeta, [sizes.channels]);
    (dx, dgamma, dbeta, dskip)
}

impl BatchNormalisation for Flex {
    fn halfseg_batch_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        pass: Forward,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        let running = [mean, variance];
        forward(x, gamma, beta, None, running, pass)
    }

    fn halfseg_batch_norm_skip(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        skip: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        pass: Forward,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        let running = [mean, variance];
        forward(x, gamma, beta, Some(skip), running, pass)
    }

    fn halfseg_batch_norm_backward(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        statistics: FlexTensor,
        gradient: FlexTensor,
        activation: Activation,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let source = match activation {
            Activation::None => Source::Nothing,
            Activation::Relu => Source::Input,
        };
        let (dx, dgamma, dbeta, _) = backward(x, [gamma, beta], statistics, source, gradient);
        (dx, dgamma, dbeta)
    }

    fn halfseg_batch_norm_skip_relu_backward(
        x: FlexTensor,
        gamma: FlexTensor,
        statistics: FlexTensor,
        output: FlexTensor,
        gradient: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        // The shift is not read where the mask comes from the output.
        let parameters = [gamma.clone(), gamma];
        let source = Source::Output(output.to_contiguous());
        let (dx, dgamma, dbeta, dskip) = backward(x, parameters, statistics, source, gradient);
        let dskip = dskip.expect("a mask from the output leaves the skip connection's gradient");
        (dx, dgamma, dbeta, dskip)
    }
}

pub fn sizes(tensor: &FlexTensor) -> Sizes {
    let [batch, channels, height, width] = shape(tensor);
    Sizes {
        batch,
        channels,
        pixels: height * width,
    }
}
