//! Backbone, decode head and auxiliary head together.

use burn::module::Module;
use burn::tensor::{FloatDType, Int, Tensor};
use halfseg_backbone::ResNet;
use halfseg_heads::{DeepLabV3Head, DeepLabV3PlusHead, FcnHead, PspHead};
use halfseg_layers::{
    Objective, SegmentationLoss, binary_logits, resize_with, with_rounded_weights,
};
use rand::Rng;

use crate::SegmentorConfig;

/// The head of one of the four methods.
#[allow(
    clippy::large_enum_variant,
    reason = "made once per network, never moved in a loop"
)]
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum DecodeHead {
    /// Fully convolutional.
    Fcn(FcnHead),
    /// Pyramid pooling.
    PspNet(PspHead),
    /// Atrous pyramid.
    DeepLabV3(DeepLabV3Head),
    /// Separable atrous pyramid with a low-level branch.
    DeepLabV3Plus(DeepLabV3PlusHead),
}

/// A semantic segmentation network.
///
/// On an autodiff device it trains ([`loss`](Self::loss)); [`Module::valid`] gives the network for
/// inference ([`forward`](Self::forward)).
#[derive(Module, Debug)]
pub struct Segmentor {
    /// Gives maps at four depths.
    pub backbone: ResNet,
    /// Gives class logits.
    pub decode_head: DecodeHead,
    /// Gives class logits from an earlier stage, in training only.
    pub auxiliary_head: Option<FcnHead>,
    #[module(skip)]
    config: SegmentorConfig,
}

/// Class logits at the heads' own sizes, as many as [`SegmentorConfig::outputs`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TrainLogits {
    /// `[n, outputs, h', w']`, smaller than the image by [`SegmentorConfig::logits_stride`].
    pub decode: Tensor<4>,
    /// `[n, outputs, h', w']`, of the size of the stage that the head reads.
    pub aux: Option<Tensor<4>>,
}

/// Losses of a batch, each f32 `[1]`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Losses {
    /// What training minimises: `decode + aux`.
    pub total: Tensor<1>,
    /// The loss of the decode head: the cross-entropy, unless an objective says otherwise.
    pub decode: Tensor<1>,
    /// Cross-entropy of the auxiliary head **times its weight**, as MMSegmentation logs it; 0
    /// without one.
    pub aux: Tensor<1>,
    /// Share of pixels that the decode head gets right, in percent.
    pub accuracy: Tensor<1>,
    /// The same for the auxiliary head.
    pub aux_accuracy: Option<Tensor<1>>,
    /// Number of pixels whose label counts.
    pub counted: Tensor<1>,
}

impl Segmentor {
    pub(crate) fn new(
        backbone: ResNet,
        decode_head: DecodeHead,
        auxiliary_head: Option<FcnHead>,
        config: SegmentorConfig,
    ) -> Self {
        Self {
            backbone,
            decode_head,
            auxiliary_head,
            config,
        }
    }

    /// The architecture.
    pub fn config(&self) -> &SegmentorConfig {
        &self.config
    }

    /// Whether training recomputes each residual block of the backbone in the backward pass instead
    /// of keeping its inner maps; see [`ResNet::with_gradient_checkpointing`].
    pub fn with_gradient_checkpointing(mut self, on: bool) -> Self {
        self.backbone = self.backbone.with_gradient_checkpointing(on);
        self
    }

    /// With a backbone that training leaves as it is in parts; see [`ResNet::with_frozen_stages`] and, for
    /// `statistics`, [`ResNet::with_frozen_statistics`].
    pub fn with_frozen_backbone(mut self, stages: Option<usize>, statistics: bool) -> Self {
        self.backbone = self.backbone.with_frozen_stages(stages);
        if statistics {
            self.backbone = self.backbone.with_frozen_statistics();
        }
        self
    }

    /// Class logits at the image's size, f32: `[n, in_channels, h, w]`, normalised, ->
    /// `[n, outputs, h, w]`, see [`SegmentorConfig::outputs`].
    ///
    /// # Panics
    /// If `x` is on an autodiff device, where layers would train: use `self.valid()` and
    /// `x.inner()`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, h, w] = x.dims();
        resize_with(
            self.head_logits(x).cast(FloatDType::F32),
            [h, w],
            self.config.align_corners,
        )
    }

    /// Class logits at the decode head's own size, smaller than the image by
    /// [`SegmentorConfig::logits_stride`], in the dtype of the current autocast policy:
    /// `[n, in_channels, h, w]` -> `[n, outputs, h', w']`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn head_logits(&self, x: Tensor<4>) -> Tensor<4> {
        assert!(
            !x.device().is_autodiff(),
            "inference on an autodiff device would train the normalisations: use model.valid() and \
             an image without autodiff"
        );
        let stages = self.backbone.forward(x);
        let x = stages.at(self.config.head_index);
        match &self.decode_head {
            DecodeHead::Fcn(head) => head.forward(x),
            DecodeHead::PspNet(head) => head.forward(x),
            DecodeHead::DeepLabV3(head) => head.forward(x),
            DecodeHead::DeepLabV3Plus(head) => head.forward(x, stages.at(0)),
        }
    }

    /// Class logits of both heads at their own sizes, with dropout drawn from `rng`.
    ///
    /// # Panics
    /// If the batch is smaller than [`SegmentorConfig::min_train_batch`].
    pub fn forward_train(&self, x: Tensor<4>, rng: &mut impl Rng) -> TrainLogits {
        match self.backbone.recomputes() {
            // Its blocks are run again with weights of their own.
            true => self.run_train(x, rng),
            false => with_rounded_weights(self, || self.run_train(x, rng)),
        }
    }

    fn run_train(&self, x: Tensor<4>, rng: &mut impl Rng) -> TrainLogits {
        let stages = self.backbone.forward(x);
        let x = stages.at(self.config.head_index);
        let decode = match &self.decode_head {
            DecodeHead::Fcn(head) => head.forward_train(x, rng),
            DecodeHead::PspNet(head) => head.forward_train(x, rng),
            DecodeHead::DeepLabV3(head) => head.forward_train(x, rng),
            DecodeHead::DeepLabV3Plus(head) => head.forward_train(x, stages.at(0), rng),
        };
        let auxiliary = self.auxiliary_head.as_ref();
        let aux = auxiliary.map(|head| head.forward_train(stages.at(self.config.aux_index), rng));
        TrainLogits { decode, aux }
    }

    /// Losses of a batch of images `[n, in_channels, h, w]`, normalised, against labels `[n, h, w]`, each a
    /// class or 255 where nothing counts. Dropout is drawn from `rng`.
    ///
    /// Logits are resized to the labels' size first, in f32; see
    /// [`halfseg_layers::cross_entropy`] about the denominator. One output is the logit of the second of two classes,
    /// whose binary cross-entropy is the cross-entropy of it and 0.
    ///
    /// # Panics
    /// If the batch is smaller than [`SegmentorConfig::min_train_batch`].
    pub fn loss(&self, x: Tensor<4>, labels: Tensor<3, Int>, rng: &mut impl Rng) -> Losses {
        self.loss_with(x, labels, rng, &Objective::default())
    }

    /// As [`loss`](Self::loss), with another loss than the cross-entropy, of both heads.
    ///
    /// # Panics
    /// As [`loss`](Self::loss), and if `objective` has weights for another number of classes.
    pub fn loss_with(
        &self,
        x: Tensor<4>,
        labels: Tensor<3, Int>,
        rng: &mut impl Rng,
        objective: &Objective,
    ) -> Losses {
        let logits = self.forward_train(x, rng);
        let align_corners = self.config.align_corners;
        let of_classes = |logits: Tensor<4>| match self.config.binary {
            true => binary_logits(logits),
            false => logits,
        };
        let SegmentationLoss {
            loss: decode,
            accuracy,
            counted,
            ..
        } = objective.loss(of_classes(logits.decode), labels.clone(), align_corners);
        let Some(logits) = logits.aux else {
            let aux = decode.clone().inner().zeros_like();
            return Losses {
                total: decode.clone(),
                decode,
                aux,
                accuracy,
                aux_accuracy: None,
                counted,
            };
        };
        let aux = objective.loss(of_classes(logits), labels, align_corners);
        let aux_loss = aux.loss * self.config.aux_weight;
        Losses {
            total: decode.clone() + aux_loss.clone(),
            decode,
            aux: aux_loss,
            accuracy,
            aux_accuracy: Some(aux.accuracy),
            counted,
        }
    }
}
