//! Cross-entropy over pixels, with MMSegmentation's denominator, and pixel accuracy.

use std::cell::RefCell;

use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Tensor};
use halfseg_amp::{Op, cast, observe};
use halfseg_kernels::{cross_entropy_terms, takes_gradients};

use crate::resize::ResizePlan;

/// The label of pixels that count neither as right nor as wrong.
pub const IGNORED_LABEL: i64 = 255;

/// `f32::EPSILON`, which MMSegmentation adds to its denominators.
pub(crate) const EPSILON: f64 = f32::EPSILON as f64;

/// The result of [`segmentation_loss`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SegmentationLoss {
    /// Cross-entropy, f32 `[1]`, differentiable.
    pub loss: Tensor<1>,
    /// Share of right pixels among those that count, in percent, f32 `[1]`; 0 if none counts.
    pub accuracy: Tensor<1>,
    /// Number of pixels that count, f32 `[1]`.
    pub counted: Tensor<1>,
}

/// Mean cross-entropy of `logits` against `labels`, f32 whatever the logits' dtype is.
///
/// The sum over pixels is divided by the number of **all** pixels plus 1.19e-7: ignored pixels add
/// nothing to the sum but count in the denominator, as in MMSegmentation 1.2
/// (`losses/cross_entropy_loss.py`). A map that is ignored everywhere has loss and gradient 0.
///
/// # Shapes
/// - `logits`: `[n, c, h, w]`
/// - `labels`: `[n, h, w]`, each `0..c` or 255
/// - output: `[1]`
///
/// # Panics
/// If sizes differ. Labels outside `0..c` other than 255 are a caller's bug: some backends panic,
/// others give garbage.
pub fn cross_entropy(logits: Tensor<4>, labels: Tensor<3, Int>) -> Tensor<1> {
    segmentation_loss(logits, labels, false).loss
}

/// The logits of two classes of which only the second's is given: the first's is 0, so that a softmax is a sigmoid,
/// and the cross-entropy is the binary one.
///
/// # Shapes
/// - `logit`: `[n, 1, h, w]`
/// - output: `[n, 2, h, w]`
pub fn binary_logits(logit: Tensor<4>) -> Tensor<4> {
    Tensor::cat(vec![logit.zeros_like(), logit], 1)
}

/// Share of pixels whose largest logit is the label's, in percent, among pixels whose label is not
/// 255: `[n, c, h, w]`, `[n, h, w]` -> f32 `[1]`.
pub fn pixel_accuracy(logits: Tensor<4>, labels: Tensor<3, Int>) -> Tensor<1> {
    segmentation_loss(logits.inner(), labels, false).accuracy
}

/// Resizes `logits` to the labels' size and takes [`cross_entropy`] and [`pixel_accuracy`].
///
/// The gradient is computed here, image by image, rather than in the backward pass: no map at the
/// labels' size outlives this call, where the usual composition keeps several. On GPUs no map of all
/// classes at that size is made at all.
///
/// # Shapes
/// - `logits`: `[n, c, h', w']`
/// - `labels`: `[n, h, w]`, each `0..c` or 255
///
/// # Panics
/// If the batches differ. See [`cross_entropy`] about labels.
pub fn segmentation_loss(
    logits: Tensor<4>,
    labels: Tensor<3, Int>,
    align_corners: bool,
) -> SegmentationLoss {
    let ([n, ..], [label_n, ..]) = (logits.dims(), labels.dims());
    assert_eq!(
        n, label_n,
        "{n} logit maps were given with {label_n} label maps"
    );
    let numbers = RefCell::new(None);
    let loss = observe(Op::Loss, "segmentation_loss", logits, |logits| {
        let result = exact_loss(cast(Op::Loss, logits), labels.clone(), align_corners);
        // An audit calls this in f32 first.
        let found = (result.accuracy, result.counted);
        numbers.borrow_mut().get_or_insert(found);
        result.loss
    });
    let (accuracy, counted) = numbers.into_inner().expect("the loss was computed");
    SegmentationLoss {
        loss,
        accuracy,
        counted,
    }
}

/// [`segmentation_loss`] in f32, whatever the dtype of the logits is.
fn exact_loss(logits: Tensor<4>, labels: Tensor<3, Int>, align_corners: bool) -> SegmentationLoss {
    let [n, _, low_h, low_w] = logits.dims();
    let [_, h, w] = labels.dims();
    let tracked = logits.device().is_autodiff();
    let pixels = (n * h * w) as f64 + EPSILON;
    let labels = labels.inner();
    let half = logits.clone().inner();
    if let Some(terms) = cross_entropy_terms(&half, &labels, IGNORED_LABEL, align_corners, tracked)
    {
        let loss = terms.sum.div_scalar(pixels);
        let gradient = terms.gradient.map(|gradient| gradient.div_scalar(pixels));
        return SegmentationLoss {
            loss: with_gradient(loss, logits.cast(FloatDType::F32), gradient),
            accuracy: terms.right * 100.0 / (terms.counted.clone() + EPSILON),
            counted: terms.counted,
        };
    }
    let logits = logits.cast(FloatDType::F32);
    let values = logits.clone().inner();
    let same_size = [low_h, low_w] == [h, w];
    let plan = (!same_size)
        .then(|| ResizePlan::new([low_h, low_w], [h, w], align_corners, &values.device()));

    let mut terms = Vec::with_capacity(n);
    let mut gradients = Vec::with_capacity(n);
    for i in 0..n {
        let map = values.clone().narrow(0, i, 1);
        let map = plan.as_ref().map_or(map.clone(), |plan| plan.forward(map));
        let term = ImageLoss::new(map, labels.clone().narrow(0, i, 1), tracked);
        if let Some(gradient) = term.gradient {
            let gradient = gradient.div_scalar(pixels);
            gradients.push(
                plan.as_ref()
                    .map_or(gradient.clone(), |plan| plan.adjoint(gradient)),
            );
        }
        terms.push(Tensor::cat(vec![term.sum, term.right, term.counted], 0).unsqueeze::<2>());
    }
    let [sum, right, counted] = {
        let totals = Tensor::cat(terms, 0).sum_dim(0).reshape([3]);
        [0, 1, 2].map(|i| totals.clone().narrow(0, i, 1))
    };
    let accuracy = right * 100.0 / (counted.clone() + EPSILON);
    let gradient = tracked.then(|| Tensor::cat(gradients, 0));
    let loss = with_gradient(sum.div_scalar(pixels), logits, gradient);
    SegmentationLoss {
        loss,
        accuracy,
        counted,
    }
}

/// `loss`, with the `gradient` found for it with respect to `logits`.
fn with_gradient(loss: Tensor<1>, logits: Tensor<4>, gradient: Option<Tensor<4>>) -> Tensor<1> {
    match gradient {
        Some(gradient) if takes_gradients(&logits.device()) => {
            halfseg_kernels::with_gradient(vec![logits.into()], loss, move |of_loss| {
                let of_loss = of_loss.reshape([1, 1, 1, 1]);
                vec![Some((gradient.clone() * of_loss).into())]
            })
        }
        Some(gradient) => {
            // A term whose value is exactly 0 and whose gradient is the one given.
            let carrier = (logits * gradient).sum();
            loss + (carrier.clone() - carrier.inner())
        }
        None => loss,
    }
}

/// One image's share of the loss; all tensors f32.
struct ImageLoss {
    /// Sum of the pixels' cross-entropies, `[1]`.
    sum: Tensor<1>,
    /// Number of right pixels, `[1]`.
    right: Tensor<1>,
    /// Number of pixels that are not ignored, `[1]`.
    counted: Tensor<1>,
    /// Gradient of `sum`, `[1, c, h, w]`.
    gradient: Option<Tensor<4>>,
}

impl ImageLoss {
    fn new(logits: Tensor<4>, labels: Tensor<3, Int>, with_gradient: bool) -> Self {
        let [_, c, h, w] = logits.dims();
        let logits = logits.reshape([c, h * w]);
        let labels = labels.reshape([1, h * w]);
        let ignored = labels.clone().equal_elem(IGNORED_LABEL);
        let labels = labels.mask_fill(ignored.clone(), 0);

        let (largest, best) = logits.clone().max_dim_with_indices(0);
        let exp = (logits.clone() - largest.clone()).exp();
        let sum_exp = exp.clone().sum_dim(0);
        let picked = logits.gather(0, labels.clone());
        let entropy = (largest + sum_exp.clone().log() - picked).mask_fill(ignored.clone(), 0.0);
        let right = best
            .equal(labels.clone())
            .float()
            .mask_fill(ignored.clone(), 0.0);
        let counted = ignored.clone().bool_not().float();
        // By rows first: a plain f32 sum over a megapixel would lose digits.
        let total = |pixels: Tensor<2>| pixels.reshape([h, w]).sum_dim(1).sum();

        let gradient = with_gradient.then(|| {
            let softmax = exp / sum_exp;
            let minus_one = Tensor::full([1, h * w], -1.0, &softmax.device());
            softmax
                .scatter(0, labels, minus_one, IndexingUpdateOp::Add)
                .mask_fill(ignored.expand([c, h * w]), 0.0)
                .reshape([1, c, h, w])
        });
        Self {
            sum: total(entropy),
            right: total(right),
            counted: total(counted),
            gradient,
        }
    }
}
