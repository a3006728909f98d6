//! The kernels as operations of a Burn backend. They are not differentiable by themselves: the
//! loss hands out its gradient.

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Int, Shape, Tensor};

use super::CrossEntropyTerms;
use crate::resize::Bilinear;

/// See [`super::cross_entropy_terms`].
pub fn cross_entropy_terms(
    logits: Tensor<4>,
    labels: Tensor<3, Int>,
    ignored: i64,
    resize: Bilinear,
    with_gradient: bool,
) -> CrossEntropyTerms {
    let (low, labels) = (logits.into_dispatch(), labels.into_dispatch());
    let ignored = i32::try_from(ignored)
        .unwrap_or_else(|_| panic!("the ignored label must be an i32, not {ignored}"));
    let (totals, normalisers) =
        Dispatch::halfseg_cross_entropy(low.clone(), labels.clone(), ignored, resize);
    let gradient = with_gradient.then(|| {
        let gradient =
            Dispatch::halfseg_cross_entropy_gradient(low, labels, normalisers, ignored, resize);
        Tensor::from_dispatch(gradient)
    });
    let totals = Tensor::<1>::from_dispatch(totals);
    let [sum, right, counted] = [0, 1, 2].map(|i| totals.clone().narrow(0, i, 1));
    CrossEntropyTerms {
        sum,
        right,
        counted,
        gradient,
    }
}

/// See [`super::most_likely_classes`].
pub fn most_likely_classes(logits: Tensor<4>, resize: Bilinear) -> Tensor<3, Int> {
    let [_, classes, ..] = logits.dims();
    let dtype = match logits.device().supports_dtype(DType::U8) && classes <= 256 {
        true => DType::U8,
        false => DType::I32,
    };
    let map = Dispatch::halfseg_most_likely_classes(logits.into_dispatch(), resize, dtype);
    Tensor::from_dispatch(map)
}

/// What this module adds to a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait Classes: Backend {
    /// f32 `[3]`: the summed cross-entropy, the number of right and of counted pixels; and f32
    /// `[n, h, w]`: the logarithm of each pixel's sum of exponentials.
    #[fusion(meta = |logits, _labels, _ignored, resize| {
        let [n, ..] = logits.shape.dims::<4>();
        let [h, w] = resize.output;
        (
            TensorSpec::new(Shape::new([3]), DType::F32),
            TensorSpec::new(Shape::new([n, h, w]), DType::F32),
        )
    })]
    fn halfseg_cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        ignored: i32,
        resize: Bilinear,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradient of the summed cross-entropy, f32 and shaped as `logits`.
    #[fusion(meta = |logits, _labels, _normalisers, _ignored, _resize| {
        TensorSpec::new(logits.shape.clone(), DType::F32)
    })]
    fn halfseg_cross_entropy_gradient(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        normalisers: FloatTensor<Self>,
        ignored: i32,
        resize: Bilinear,
    ) -> FloatTensor<Self>;

    /// See [`super::most_likely_classes`].
    #[fusion(meta = |logits, resize, dtype| {
        let [n, ..] = logits.shape.dims::<4>();
        let [h, w] = resize.output;
        TensorSpec::new(Shape::new([n, h, w]), *dtype)
    })]
    fn halfseg_most_likely_classes(
        logits: FloatTensor<Self>,
        resize: Bilinear,
        dtype: DType,
    ) -> IntTensor<Self>;
}
