//! What follows a convolution in a network that is not trained, as one kernel on GPUs.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::Activation;

/// `activation(scale * x + shift + skip)` in f32, rounded once to the dtype of `x` and `skip`; `scale` and `shift` are f32.
/// On GPUs, without autodiff.
pub fn affine(
    x: Tensor<4>,
    [scale, shift]: [Tensor<1>; 2],
    skip: Option<Tensor<4>>,
    activation: Activation,
) -> Tensor<4> {
    let x = x.into_dispatch();
    let (scale, shift) = (scale.into_dispatch(), shift.into_dispatch());
    Tensor::from_dispatch(match skip {
        Some(skip) => {
            Dispatch::halfseg_affine_skip(x, scale, shift, skip.into_dispatch(), activation)
        }
        None => Dispatch::halfseg_affine(x, scale, shift, activation),
    })
}

/// What this module adds to a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait ScaledAndShifted: Backend {
    /// See [`affine`].
    #[fusion(meta = |x, _scale, _shift, _activation| x.clone())]
    fn halfseg_affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// As above.
    #[fusion(meta = |x, _scale, _shift, _skip, _activation| x.clone())]
    fn halfseg_affine_skip(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
}
