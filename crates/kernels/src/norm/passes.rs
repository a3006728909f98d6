//! The passes of a normalisation one by one, as operations of a Burn backend, and the normalisation over
//! the parts of a batch that is made of them.

use std::sync::Arc;

#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn::tensor::{DType, Shape};

use super::BatchNormOutput;
use super::parts::{BatchParts, shared_statistics};
use crate::{Activation, AnyTensor, with_gradient};

/// See [`super::batch_norm_shared`]; shapes and dtypes were checked, and the device is one that has it.
pub fn batch_norm(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
    parts: Arc<dyn BatchParts>,
) -> BatchNormOutput {
    let [n, c, h, w] = x.dims();
    let mut inputs = vec![
        AnyTensor::from(x.clone()),
        gamma.clone().into(),
        beta.clone().into(),
    ];
    inputs.extend(skip.clone().map(AnyTensor::from));
    let (x, gamma, beta) = (x.inner(), gamma.inner(), beta.inner());
    let own = (n * h * w) as f64;

    let statistics = Dispatch::halfseg_norm_statistics(x.clone().into_dispatch(), epsilon);
    let statistics = Tensor::<2>::from_dispatch(statistics);
    let row = |index| statistics.clone().narrow(0, index, 1).reshape([c]);
    // The rest of the mean's digits are in the last row.
    let (own_mean, squares) = (row(0) + row(3), row(1) * own);
    let ([mean, variance], count) = shared_statistics(&*parts, own_mean, squares, own);
    let inverse = (variance.clone() + epsilon).sqrt().recip();
    let rest = mean.zeros_like();
    let rows = [&mean, &variance, &inverse, &rest].map(|row| row.clone().reshape([1, c]));
    let statistics: Tensor<2> = Tensor::cat(rows.to_vec(), 0);

    let skipped = skip.is_some();
    let primitives = [&gamma, &beta].map(|parameter| parameter.clone().into_dispatch());
    let output = {
        let (x, [gamma, beta]) = (x.clone().into_dispatch(), primitives);
        let statistics = statistics.clone().into_dispatch();
        Tensor::<4>::from_dispatch(match skip {
            Some(skip) => {
                let skip = skip.inner().into_dispatch();
                Dispatch::halfseg_norm_apply_skip(x, gamma, beta, statistics, skip, activation)
            }
            None => Dispatch::halfseg_norm_apply(x, gamma, beta, statistics, activation),
        })
    };
    // Behind a skip connection the mask is the output's.
    let kept = (skipped && activation == Activation::Relu).then(|| output.clone());
    let pass = Pass {
        x,
        gamma,
        beta,
        statistics,
        output: kept,
        skipped,
        activation,
        count,
        parts,
    };
    BatchNormOutput {
        output: with_gradient(inputs, output, move |gradient| pass.gradients(gradient)),
        mean,
        variance,
    }
}

/// What the backward pass reads.
struct Pass {
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    statistics: Tensor<2>,
    output: Option<Tensor<4>>,
    skipped: bool,
    activation: Activation,
    count: f64,
    parts: Arc<dyn BatchParts>,
}

impl Pass {
    fn gradients(&self, gradient: Tensor<4>) -> Vec<Option<AnyTensor>> {
        let [_, c, ..] = self.x.dims();
        let x = self.x.clone().into_dispatch();
        let [gamma, beta] = [&self.gamma, &self.beta].map(|p| p.clone().into_dispatch());
        let statistics = self.statistics.clone().into_dispatch();
        let output = self.output.clone().map(Tensor::into_dispatch);
        let activation = self.activation;
        let (dgamma, dbeta) = {
            let (x, gamma, statistics) = (x.clone(), gamma.clone(), statistics.clone());
            let gradient = gradient.clone().into_dispatch();
            match output.clone() {
                Some(output) => {
                    Dispatch::halfseg_norm_skip_relu_sums(x, gamma, statistics, output, gradient)
                }
                None => {
                    let beta = beta.clone();
                    Dispatch::halfseg_norm_sums(x, gamma, beta, statistics, gradient, activation)
                }
            }
        };
        // The parameters' gradients are those of this part; the statistics belong to all parts.
        let [dgamma, dbeta] = [dgamma, dbeta].map(Tensor::<1>::from_dispatch);
        let sums = Tensor::cat(vec![dbeta.clone(), dgamma.clone()], 0);
        let sums = self.parts.sum(sums).reshape([2, c]).flip([0]);
        let sums = sums.into_dispatch();
        let mut dskip = (self.skipped && output.is_none()).then(|| gradient.clone());
        let gradient = gradient.into_dispatch();
        let dx = match output {
            Some(output) => {
                let (dx, skip) = Dispatch::halfseg_norm_skip_relu_gradient(
                    x, gamma, statistics, output, sums, gradient, self.count,
                );
                dskip = Some(Tensor::from_dispatch(skip));
                dx
            }
            None => {
                let rows = [&self.gamma, &self.beta].map(|p| p.clone().reshape([1, c]));
                let parameters = Tensor::<2>::cat(rows.to_vec(), 0).into_dispatch();
                Dispatch::halfseg_norm_gradient(
                    x, parameters, statistics, sums, gradient, self.count, activation,
                )
            }
        };
        let dx = Tensor::<4>::from_dispatch(dx);
        let mut gradients = vec![Some(dx.into()), Some(dgamma.into()), Some(dbeta.into())];
        if self.skipped {
            gradients.push(dskip.map(AnyTensor::from));
        }
        gradients
    }
}

/// The passes of a normalisation one by one, with the statistics of
/// [`BatchNormalisation`](super::ops::BatchNormalisation).
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube")
)]
pub trait SharedNormalisation: Backend {
    /// The statistics of `x`, `[4, c]`.
    #[fusion(meta = |x, _epsilon| TensorSpec::new(Shape::new([4, x.shape[1]]), DType::F32))]
    fn halfseg_norm_statistics(x: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self>;

    /// The output.
    #[fusion(meta = |x, _gamma, _beta, _statistics, _activation| x.clone())]
    fn halfseg_norm_apply(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// The output.
    #[fusion(meta = |x, _gamma, _beta, _statistics, _skip, _activation| x.clone())]
    fn halfseg_norm_apply_skip(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// The gradients of gamma and beta of this map alone. A ReLU's mask is computed again from `x`.
    #[fusion(meta = |_x, gamma, beta, _statistics, _gradient, _activation| {
        (gamma.clone(), beta.clone())
    })]
    fn halfseg_norm_sums(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The same behind a skip connection and a ReLU, whose mask is read from `output`.
    #[fusion(meta = |_x, gamma, _statistics, _output, _gradient| (gamma.clone(), gamma.clone()))]
    fn halfseg_norm_skip_relu_sums(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        output: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradient of `x`, from the sums over all `count` values of a channel, `[2, c]` as the
    /// parameters are.
    #[fusion(meta = |x, _parameters, _statistics, _sums, _gradient, _count, _activation| x.clone())]
    fn halfseg_norm_gradient(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        count: f64,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// The gradients of `x` and of the skip connection.
    #[fusion(meta = |x, _gamma, _statistics, _output, _sums, _gradient, _count| {
        (x.clone(), x.clone())
    })]
    fn halfseg_norm_skip_relu_gradient(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        output: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        count: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
