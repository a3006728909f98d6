//! Losses for less balanced or fewer data than the published recipe was made for.

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::loss::{EPSILON, SegmentationLoss, segmentation_loss};
use crate::{IGNORED_LABEL, resize_with};

/// What a network is trained to make small; the default is the published recipe's, the cross-entropy.
///
/// The loss is the sum of its parts, each times its weight. Pixels that are ignored take part in none.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Objective {
    /// Weight of the cross-entropy, whose sum over pixels is divided by the number of all pixels, ignored ones
    /// included.
    pub cross_entropy: f64,
    /// Weight of each class in the cross-entropy; empty: 1 for all.
    pub class_weights: Vec<f32>,
    /// Share of each label that is spread over all classes, as `label_smoothing` of PyTorch's
    /// `CrossEntropyLoss`.
    pub label_smoothing: f64,
    /// `gamma` of the focal loss (Lin et al. 2017, equation 4, over a softmax): the cross-entropy of a pixel times
    /// `(1 - p)^gamma`, where `p` is the probability of its class; 0 is the cross-entropy.
    pub focal_gamma: f64,
    /// Hard pixels alone (OHEM): those whose class has a smaller probability than this; 0 takes all pixels.
    pub ohem_threshold: f64,
    /// Hard pixels of each image, on average over a batch, that are taken at least: the hardest (`min_kept` of
    /// MMSegmentation's `OHEMPixelSampler`).
    pub ohem_kept: usize,
    /// Whether each class is told from all others by a sigmoid of its own, in place of the softmax: the binary
    /// cross-entropy, a mean over pixels and classes.
    pub sigmoid: bool,
    /// Weight of the Dice loss: one minus the mean over classes of `(2 sum(p y) + 1) / (sum(p) + sum(y) + 1)`, with
    /// sums over all pixels of the batch.
    pub dice: f64,
    /// Weight of the Lovász-softmax loss (Berman et al. 2018), over the classes that are present in the batch.
    pub lovasz: f64,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            cross_entropy: 1.0,
            class_weights: Vec::new(),
            label_smoothing: 0.0,
            focal_gamma: 0.0,
            ohem_threshold: 0.0,
            ohem_kept: 0,
            sigmoid: false,
            dice: 0.0,
            lovasz: 0.0,
        }
    }
}

impl Objective {
    /// Whether it is the published recipe's, which takes less memory and time.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the loss of a batch is the mean of those of its equal parts.
    pub fn is_mean_of_parts(&self) -> bool {
        self.dice == 0.0 && self.lovasz == 0.0 && self.ohem_threshold == 0.0
    }

    /// Resizes `logits` to the labels' size, in f32, and takes the loss and the accuracy.
    ///
    /// The plain objective is [`segmentation_loss`]; the others keep maps of all classes at the labels' size for
    /// the backward pass.
    ///
    /// # Shapes
    /// - `logits`: `[n, c, h', w']`
    /// - `labels`: `[n, h, w]`, each `0..c` or 255
    ///
    /// # Panics
    /// If the batches differ, or `class_weights` is not empty and has other than `c` values.
    pub fn loss(
        &self,
        logits: Tensor<4>,
        labels: Tensor<3, Int>,
        align_corners: bool,
    ) -> SegmentationLoss {
        if self.is_plain() {
            return segmentation_loss(logits, labels, align_corners);
        }
        let [_, height, width] = labels.dims();
        let logits = resize_with(logits.cast(FloatDType::F32), [height, width], align_corners);
        let SegmentationLoss {
            accuracy, counted, ..
        } = segmentation_loss(logits.clone().inner(), labels.clone(), false);
        let pixels = Pixels::new(&logits, labels, &self.class_weights);
        let mut loss: Option<Tensor<1>> = None;
        let mut add = |weight: f64, part: &dyn Fn() -> Tensor<1>| {
            if weight != 0.0 {
                let part = part() * weight;
                loss = Some(match loss.take() {
                    Some(sum) => sum + part,
                    None => part,
                });
            }
        };
        let logits = &logits;
        add(self.cross_entropy, &|| match self.sigmoid {
            true => pixels.binary_cross_entropy(logits.clone()),
            false => self.cross_entropy_of(&pixels, logits.clone()),
        });
        let probabilities = || match self.sigmoid {
            true => sigmoid(logits.clone()),
            false => softmax(logits.clone(), 1),
        };
        add(self.dice, &|| pixels.dice(probabilities()));
        add(self.lovasz, &|| pixels.lovasz(probabilities()));
        let zero = || (logits.clone() * 0.0).sum();
        SegmentationLoss {
            loss: loss.unwrap_or_else(zero),
            accuracy,
            counted,
        }
    }

    fn cross_entropy_of(&self, pixels: &Pixels, logits: Tensor<4>) -> Tensor<1> {
        let log_p = log_softmax(logits, 1);
        let own = log_p.clone().gather(1, pixels.labels.clone()).neg();
        let mut each = own.clone() * pixels.weights.clone();
        if self.label_smoothing > 0.0 {
            let [_, classes, ..] = log_p.dims();
            let spread = (log_p.neg() * pixels.class_weights.clone()).sum_dim(1);
            each = each * (1.0 - self.label_smoothing)
                + spread * (self.label_smoothing / classes as f64);
        }
        let p = || own.clone().neg().exp();
        if self.focal_gamma > 0.0 {
            // Just above 0, where the derivative of a power below 1 ends.
            let rest = (p().neg() + 1.0).clamp_min(1e-7);
            each = each * rest.powf_scalar(self.focal_gamma as f32);
        }
        let mut counted = pixels.counted.clone();
        if self.ohem_threshold > 0.0 {
            counted = counted * self.hard(pixels, p().inner());
        }
        (each * counted).sum() / (pixels.all as f64 + EPSILON)
    }

    /// 1 where a pixel is hard, from the probabilities of the pixels' classes, `[n, 1, h, w]`.
    fn hard(&self, pixels: &Pixels, p: Tensor<4>) -> Tensor<4> {
        let [images, ..] = p.dims();
        let values: Vec<f32> = p.clone().into_data().iter::<f32>().collect();
        let counted = pixels.counted.clone().inner().into_data();
        let counting = values
            .iter()
            .zip(counted.iter::<f32>())
            .filter(|(_, counts)| *counts > 0.0);
        let mut sorted: Vec<f32> = counting.map(|(p, _)| *p).collect();
        let kept = self.ohem_kept.saturating_mul(images);
        let mut threshold = self.ohem_threshold as f32;
        if let Some(last) = sorted.len().checked_sub(1) {
            let (_, least, _) = sorted.select_nth_unstable_by(kept.min(last), f32::total_cmp);
            threshold = threshold.max(*least);
        }
        let hard = values.iter().map(|p| f32::from(u8::from(*p < threshold)));
        let hard = TensorData::new(hard.collect::<Vec<_>>(), p.dims());
        constant(Tensor::from_data(hard, &p.device()), &pixels.device)
    }
}

/// `tensor` where the loss is, without a gradient.
fn constant<const D: usize>(tensor: Tensor<D>, device: &Device) -> Tensor<D> {
    match device.is_autodiff() && !tensor.device().is_autodiff() {
        true => Tensor::from_inner(tensor),
        false => tensor,
    }
}

/// The labels of a batch in the forms that losses take.
struct Pixels {
    device: Device,
    /// Number of all pixels.
    all: usize,
    /// `[n, 1, h, w]`, 0 where ignored.
    labels: Tensor<4, Int>,
    /// `[n, 1, h, w]`, 0 where ignored, else 1.
    counted: Tensor<4>,
    /// Weights of the pixels' classes, `[n, 1, h, w]`.
    weights: Tensor<4>,
    /// `[1, c, 1, 1]`.
    class_weights: Tensor<4>,
    /// `[n, c, h, w]`, 1 where a pixel that counts has the class.
    one_hot: Tensor<4>,
}

impl Pixels {
    fn new(logits: &Tensor<4>, labels: Tensor<3, Int>, class_weights: &[f32]) -> Self {
        let [n, classes, h, w] = logits.dims();
        let device = logits.device();
        let given = class_weights.len();
        assert!(
            given == 0 || given == classes,
            "{given} weights were given for {classes} classes"
        );
        let weights = match given {
            0 => vec![1.0; classes],
            _ => class_weights.to_vec(),
        };
        let weights =
            Tensor::<1>::from_data(TensorData::new(weights, [classes]), (&device, DType::F32));
        let labels = labels.reshape([n, 1, h, w]);
        let ignored = labels.clone().equal_elem(IGNORED_LABEL);
        let counted = ignored.clone().bool_not().float().cast(FloatDType::F32);
        let labels = labels.mask_fill(ignored, 0);
        let of_pixels = weights
            .clone()
            .select(0, labels.clone().reshape([n * h * w]));
        let of_class = |class: usize| {
            let has = labels.clone().equal_elem(class as i64);
            has.float().cast(FloatDType::F32) * counted.clone()
        };
        let one_hot = Tensor::cat((0..classes).map(of_class).collect(), 1);
        Self {
            all: n * h * w,
            labels,
            counted,
            weights: of_pixels.reshape([n, 1, h, w]),
            class_weights: weights.reshape([1, classes, 1, 1]),
            one_hot,
            device,
        }
    }

    fn binary_cross_entropy(&self, logits: Tensor<4>) -> Tensor<1> {
        let [_, classes, ..] = logits.dims();
        // log(1 + exp(-|x|)) + max(x, 0) - x y, which no logit overflows.
        let magnitude = logits.clone().abs().neg().exp().log1p();
        let each = magnitude + logits.clone().clamp_min(0.0) - logits * self.one_hot.clone();
        let each = each * self.class_weights.clone() * self.counted.clone();
        each.sum() / (self.all as f64 * classes as f64 + EPSILON)
    }

    fn dice(&self, probabilities: Tensor<4>) -> Tensor<1> {
        let by_class = |map: Tensor<4>| {
            let [_, classes, ..] = map.dims();
            map.sum_dim(0).sum_dim(2).sum_dim(3).reshape([classes])
        };
        let probabilities = probabilities * self.counted.clone();
        let common = by_class(probabilities.clone() * self.one_hot.clone());
        let both = by_class(probabilities) + by_class(self.one_hot.clone());
        let score = (common * 2.0 + 1.0) / (both + 1.0);
        score.mean().neg() + 1.0
    }

    /// The extension is linear in the errors for a given order of them, so that its coefficients are found on the
    /// host and the rest is a product.
    fn lovasz(&self, probabilities: Tensor<4>) -> Tensor<1> {
        let [n, classes, h, w] = probabilities.dims();
        // |y - p|, and 0 where ignored.
        let errors = (self.one_hot.clone() - probabilities).abs() * self.counted.clone();
        let values: Vec<f32> = errors.clone().inner().into_data().iter::<f32>().collect();
        let of_class: Vec<f32> = self
            .one_hot
            .clone()
            .inner()
            .into_data()
            .iter::<f32>()
            .collect();
        let counted: Vec<f32> = self
            .counted
            .clone()
            .inner()
            .into_data()
            .iter::<f32>()
            .collect();
        let area = h * w;
        let mut coefficients = vec![0.0f32; values.len()];
        let mut present = 0u32;
        for class in 0..classes {
            let place = |pixel: usize| (pixel / area * classes + class) * area + pixel % area;
            let mut order: Vec<usize> = (0..n * area)
                .filter(|pixel| counted[*pixel] > 0.0)
                .collect();
            let all: f64 = order
                .iter()
                .map(|pixel| f64::from(of_class[place(*pixel)]))
                .sum();
            if all == 0.0 {
                continue;
            }
            present += 1;
            order.sort_by(|a, b| values[place(*b)].total_cmp(&values[place(*a)]));
            let (mut hit, mut missed, mut before) = (0.0f64, 0.0f64, 0.0f64);
            for pixel in order {
                let y = f64::from(of_class[place(pixel)]);
                hit += y;
                missed += 1.0 - y;
                let jaccard = 1.0 - (all - hit) / (all + missed);
                coefficients[place(pixel)] = (jaccard - before) as f32;
                before = jaccard;
            }
        }
        let shape = [n, classes, h, w];
        let coefficients = Tensor::from_data(
            TensorData::new(coefficients, shape),
            &errors.clone().inner().device(),
        );
        let coefficients = constant(coefficients, &self.device);
        (errors * coefficients).sum() / f64::from(present.max(1))
    }
}
