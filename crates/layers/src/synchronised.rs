//! Batch normalisation over the parts of a batch that several workers have.

use std::sync::Arc;

use burn::tensor::{FloatDType, Tensor};
use halfseg_devices::Worker;
use halfseg_kernels::{
    Activation, AnyTensor, BatchNormOutput, Exchange, batch_norm_shared, shared_statistics,
    takes_gradients, with_gradient,
};

/// [`halfseg_kernels::batch_norm_train`] with the statistics of all workers' maps, which are of one
/// size. It exchanges two numbers a channel in each direction.
///
/// On GPUs kernels do it; elsewhere it is composed of Burn's operations in f32. It keeps `x` and the
/// output in their own dtype.
///
/// # Panics
/// If `x` is on a device that [`takes_gradients`] refuses.
pub fn batch_norm_train(
    worker: &Worker,
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    skip: Option<Tensor<4>>,
    activation: Activation,
) -> BatchNormOutput {
    assert!(
        takes_gradients(&x.device()),
        "synchronised batch normalisation needs the CPU or a GPU, without Burn's gradient \
         checkpointing"
    );
    let exchange: Arc<dyn Exchange> = Arc::new(Parts(worker.clone()));
    let parameters = [&gamma, &beta];
    let found = batch_norm_shared(
        &x,
        parameters,
        epsilon,
        skip.as_ref(),
        activation,
        &exchange,
    );
    if let Some(found) = found {
        return found;
    }
    let [n, c, h, w] = x.dims();
    let count = (n * h * w) as f64;
    let dtype = FloatDType::from(x.dtype());
    let sum = move |map: Tensor<4>| {
        let rows = map.swap_dims(0, 1).reshape([c, n * h * w]);
        rows.sum_dim(1).reshape([c])
    };
    let per_channel = move |values: Tensor<1>| values.reshape([1, c, 1, 1]);

    let mut inputs = vec![
        AnyTensor::from(x.clone()),
        gamma.clone().into(),
        beta.clone().into(),
    ];
    inputs.extend(skip.clone().map(AnyTensor::from));
    let (x, gamma, beta) = (x.inner(), gamma.inner(), beta.inner());

    let wide = x.clone().cast(FloatDType::F32);
    let own = sum(wide.clone()) / count;
    let squares = sum((wide.clone() - per_channel(own.clone())).square());
    let ([mean, variance], total) = shared_statistics(&*exchange, own, squares, count);
    let inverse = (variance.clone() + epsilon).sqrt().recip();

    let scale = per_channel(gamma * inverse.clone());
    let mut y = (wide - per_channel(mean.clone())) * scale.clone() + per_channel(beta);
    let skipped = skip.is_some();
    if let Some(skip) = skip {
        y = y + skip.inner().cast(FloatDType::F32);
    }
    if activation == Activation::Relu {
        // Not `max`, which may turn NaN into 0 and hide an overflow from the gradient scaler.
        let negative = y.clone().lower_scalar(0.0);
        y = y.mask_fill(negative, 0.0);
    }
    let output = y.cast(dtype);

    let result = BatchNormOutput {
        output: output.clone(),
        mean: mean.clone(),
        variance,
    };
    let kept = (activation == Activation::Relu).then_some(output);
    let (mean, inverse) = (per_channel(mean), per_channel(inverse));
    let worker = worker.clone();
    let output = with_gradient(inputs, result.output, move |gradient| {
        let mut gradient = gradient.cast(FloatDType::F32);
        if let Some(output) = &kept {
            gradient = gradient.mask_fill(output.clone().lower_equal_scalar(0.0), 0.0);
        }
        let normalised = (x.clone().cast(FloatDType::F32) - mean.clone()) * inverse.clone();
        let dbeta = sum(gradient.clone());
        let dgamma = sum(gradient.clone() * normalised.clone());
        // The parameters' gradients are those of this part; the statistics belong to all parts.
        let sums = worker.sum(Tensor::cat(vec![dbeta.clone(), dgamma.clone()], 0)) / total;
        let [sum, product] = [0, c].map(|start| per_channel(sums.clone().narrow(0, start, c)));
        let dx = (gradient.clone() - sum - normalised * product) * scale.clone();
        let mut gradients = vec![
            Some(dx.cast(dtype).into()),
            Some(dgamma.into()),
            Some(dbeta.into()),
        ];
        if skipped {
            gradients.push(Some(gradient.cast(dtype).into()));
        }
        gradients
    });
    BatchNormOutput { output, ..result }
}

/// The parts of a batch that the workers of a group have.
struct Parts(Worker);

impl Exchange for Parts {
    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        self.0.gather(own)
    }

    fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        self.0.sum(own)
    }
}
