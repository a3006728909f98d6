//! The passes of the CPU one by one for tensors of Burn's Flex backend.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;

use super::cpu::{Channels, Mask};
use super::cpu_passes;
use super::flex::{rows_of, sizes, statistics_in};
use super::passes::SharedNormalisation;
use crate::Activation;
use crate::cpu::tensor::{shape, tensor, values, with_element};

/// What the passes over a map read besides it.
struct Pass {
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    statistics: FlexTensor,
    /// What a ReLU's mask is read from, if not from `x`.
    output: Option<FlexTensor>,
    relu: bool,
}

/// Calls `$body` with the channels and the mask of a [`Pass`].
macro_rules! with_channels {
    ($pass:expr, $E:ident, |$sizes:ident, $x:ident, $channels:ident, $mask:ident| $body:expr) => {{
        let pass: &Pass = $pass;
        let $sizes = sizes(&pass.x);
        let x = pass.x.to_contiguous();
        let (gamma, beta) = (pass.gamma.to_contiguous(), pass.beta.to_contiguous());
        let statistics = statistics_in(&pass.statistics, $sizes.channels);
        let output = pass.output.as_ref().map(|output| output.to_contiguous());
        let $channels = Channels {
            gamma: values(&gamma),
            beta: values(&beta),
            statistics: &statistics,
        };
        with_element!(x.dtype(), $E => {
            let $mask = match &output {
                Some(output) => Mask::FromOutput(values::<$E>(output)),
                None if pass.relu => Mask::FromInput,
                None => Mask::None,
            };
            let $x = values::<$E>(&x);
            $body
        })
    }};
}

impl Pass {
    /// Without a skip connection in the backward pass: a ReLU's mask is read from `x`.
    fn new(
        x: FlexTensor,
        [gamma, beta]: [FlexTensor; 2],
        statistics: FlexTensor,
        activation: Activation,
    ) -> Self {
        Self {
            x,
            gamma,
            beta,
            statistics,
            output: None,
            relu: activation == Activation::Relu,
        }
    }

    /// Behind a skip connection and a ReLU, whose mask is the output's: the shift is not read.
    fn behind_skip(
        x: FlexTensor,
        gamma: FlexTensor,
        statistics: FlexTensor,
        output: FlexTensor,
    ) -> Self {
        let parameters = [gamma.clone(), gamma];
        Self {
            output: Some(output),
            ..Self::new(x, parameters, statistics, Activation::Relu)
        }
    }

    fn apply(&self, skip: Option<FlexTensor>) -> FlexTensor {
        let skip = skip.map(|skip| skip.to_contiguous());
        with_channels!(self, E, |sizes, x, channels, _mask| {
            let skip = skip.as_ref().map(values::<E>);
            let output = cpu_passes::apply(sizes, x, skip, channels, self.relu);
            tensor(output, shape(&self.x))
        })
    }

    fn sums(&self, gradient: FlexTensor) -> (FlexTensor, FlexTensor) {
        let gradient = gradient.to_contiguous();
        let (dgamma, dbeta) = with_channels!(self, E, |sizes, x, channels, mask| {
            cpu_passes::sums(sizes, x, channels, mask, values::<E>(&gradient))
        });
        let count = dgamma.len();
        (tensor(dgamma, [count]), tensor(dbeta, [count]))
    }

    /// The gradients of `x` and, where the mask is read from the output, of the skip connection.
    fn gradient(
        &self,
        sums: &FlexTensor,
        gradient: FlexTensor,
        count: f64,
    ) -> (FlexTensor, Option<FlexTensor>) {
        // The original goes before the gradient is written to: what it alone owns is not copied.
        let mut gradient = {
            let contiguous = gradient.to_contiguous();
            drop(gradient);
            contiguous
        };
        let sums = sums.to_contiguous();
        let totals = values::<f32>(&sums);
        let totals = totals.split_at(totals.len() / 2);
        let apart = self.output.is_some();
        with_channels!(self, E, |sizes, x, channels, mask| {
            let all = ([totals.0, totals.1], count);
            let values = gradient.storage_mut::<E>();
            match cpu_passes::gradient(sizes, x, channels, mask, all, values, apart) {
                Some(target) => (tensor(target, shape(&self.x)), Some(gradient)),
                None => (gradient, None),
            }
        })
    }
}

impl SharedNormalisation for Flex {
    fn halfseg_norm_statistics(x: FlexTensor, epsilon: f64) -> FlexTensor {
        let (sizes, x) = (sizes(&x), x.to_contiguous());
        let statistics = with_element!(x.dtype(), E => {
            cpu_passes::statistics::<E>(sizes, values(&x), epsilon)
        });
        rows_of(&statistics)
    }

    fn halfseg_norm_apply(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        statistics: FlexTensor,
        activation: Activation,
    ) -> FlexTensor {
        Pass::new(x, [gamma, beta], statistics, activation).apply(None)
    }

    fn halfseg_norm_apply_skip(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        statistics: FlexTensor,
        skip: FlexTensor,
        activation: Activation,
    ) -> FlexTensor {
        Pass::new(x, [gamma, beta], statistics, activation).apply(Some(skip))
    }

    fn halfseg_norm_sums(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        statistics: FlexTensor,
        gradient: FlexTensor,
        activation: Activation,
    ) -> (FlexTensor, FlexTensor) {
        Pass::new(x, [gamma, beta], statistics, activation).sums(gradient)
    }

    fn halfseg_norm_skip_relu_sums(
        x: FlexTensor,
        gamma: FlexTensor,
        statistics: FlexTensor,
        output: FlexTensor,
        gradient: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        Pass::behind_skip(x, gamma, statistics, output).sums(gradient)
    }

    fn halfseg_norm_gradient(
        x: FlexTensor,
        parameters: FlexTensor,
        statistics: FlexTensor,
        sums: FlexTensor,
        gradient: FlexTensor,
        count: f64,
        activation: Activation,
    ) -> FlexTensor {
        let parameters = parameters.to_contiguous();
        let rows = values::<f32>(&parameters);
        let (gamma, beta) = rows.split_at(rows.len() / 2);
        let parameters = [gamma, beta].map(|row| tensor(row.to_vec(), [row.len()]));
        let pass = Pass::new(x, parameters, statistics, activation);
        pass.gradient(&sums, gradient, count).0
    }

    fn halfseg_norm_skip_relu_gradient(
        x: FlexTensor,
        gamma: FlexTensor,
        statistics: FlexTensor,
        output: FlexTensor,
        sums: FlexTensor,
        gradient: FlexTensor,
        count: f64,
    ) -> (FlexTensor, FlexTensor) {
        let pass = Pass::behind_skip(x, gamma, statistics, output);
        let (dx, dskip) = pass.gradient(&sums, gradient, count);
        (
            dx,
            dskip.expect("with the output comes the skip connection's gradient"),
        )
    }
}
