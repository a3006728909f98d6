//! How much memory a training step will take.

use halfseg_data::Crop;
use halfseg_devices::Bytes;
use halfseg_segmentor::{Method, SegmentorConfig};

use crate::cost::{Layer, layers};
use crate::{Recipe, RunPrecision};

/// What a training step is expected to have in memory, in bytes.
///
/// The maps that are kept for the backward pass are counted as `halfseg-layers` keeps them: for each
/// convolution its output, from which the normalisation is differentiated, and the normalised map
/// that the next convolution reads. The peak is that of a step from the second on, with momentum: the
/// largest sum at the loss, at each convolution of the backward pass, and at the optimizer's step.
/// What an allocator wastes, and the program itself, are not part of it. On GPUs copies of the weights
/// in half precision and buffers of convolutions come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights, f32.
    pub weights: u64,
    /// Momentum of the optimizer, f32.
    pub momentum: u64,
    /// Gradients of the weights, f32, when all are there.
    pub gradients: u64,
    /// Images and labels of a batch.
    pub batch: u64,
    /// Maps kept between the forward and the backward pass.
    pub saved: u64,
    /// Maps of single operations on top of all that, where the peak is.
    pub workspace: u64,
    /// The most that is there at a time.
    pub peak: u64,
}

/// Bytes of an f32.
const F32: u64 = 4;

impl MemoryPlan {
    /// Of a step of `recipe`.
    pub fn of(recipe: &Recipe) -> Self {
        Self::new(
            &recipe.model,
            recipe.data.crop,
            recipe.train.batch,
            recipe.precision.dtype,
            recipe.train.gradient_checkpointing,
        )
    }

    /// Of a step with `batch` images of `crop`; with `checkpointing`, residual blocks are recomputed in
    /// the backward pass.
    pub fn new(
        model: &SegmentorConfig,
        crop: Crop,
        batch: usize,
        precision: RunPrecision,
        checkpointing: bool,
    ) -> Self {
        let plan = Walk {
            model,
            crop,
            batch: batch as u64,
            element: match precision {
                RunPrecision::F32 => 4,
                RunPrecision::F16 | RunPrecision::Bf16 => 2,
            },
            checkpointing,
        };
        plan.run()
    }

    /// The peak.
    pub fn total(&self) -> Bytes {
        Bytes(self.peak)
    }
}

struct Walk<'a> {
    model: &'a SegmentorConfig,
    crop: Crop,
    batch: u64,
    /// Bytes of a map's element.
    element: u64,
    checkpointing: bool,
}

/// What a layer adds, in bytes.
#[derive(Clone, Copy, Default)]
struct Kept {
    /// In the forward pass, until its own backward pass.
    saved: u64,
    /// From its own backward pass to the end of its block's: what is computed again.
    recomputed: u64,
    gradient: u64,
    /// At its own backward pass: gradients of its input and its output, and that of its weight before
    /// it is put in order.
    transient: u64,
}

impl Walk<'_> {
    fn run(&self) -> MemoryPlan {
        let layers = layers(self.model, self.crop);
        let pixels = self.batch * self.crop.height as u64 * self.crop.width as u64;
        let parameters: u64 = layers.iter().map(|layer| layer.parameters).sum();
        let kept: Vec<Kept> = (0..layers.len()).map(|i| self.kept(&layers, i)).collect();
        let total = |field: fn(&Kept) -> u64| kept.iter().map(field).sum::<u64>();

        let weights = F32 * parameters;
        let batch = pixels * (3 * F32 + LABEL);
        let image = match self.element {
            F32 => 0,
            half => 3 * half * pixels,
        };
        // The stem's pooling keeps its output, and where in the input each of its values was.
        let quarter = self.crop.height.div_ceil(4) * self.crop.width.div_ceil(4);
        let pooled = self.batch * self.model.stem_channels as u64 * quarter as u64;
        let saved = total(|kept| kept.saved) + image + pooled * (self.element + INDEX);
        let always = 2 * weights + batch;

        // Of one image at a time: the class maps at the labels' size, and what the loss makes of them.
        let loss = LOSS_MAPS * F32 * self.model.num_classes as u64 * pixels / self.batch;
        let mut plan = MemoryPlan {
            weights,
            momentum: weights,
            gradients: weights,
            batch,
            saved,
            workspace: 0,
            peak: 0,
        };
        let mut at = |there: u64, workspace: u64| {
            if there + workspace > plan.peak {
                plan.peak = there + workspace;
                plan.workspace = workspace;
            }
        };
        at(always + saved, loss);
        let (mut there, mut gradients) = (always + saved, 0);
        for kept in kept.iter().rev() {
            at(there + gradients, kept.recomputed + kept.transient);
            there -= kept.saved;
            gradients += kept.gradient;
        }
        // Gradients are all f32 in the end, and their squares are summed one by one.
        let largest = layers.iter().map(|layer| layer.weight).max().unwrap_or(0);
        at(always + weights, F32 * largest);
        plan
    }

    fn kept(&self, layers: &[Layer], index: usize) -> Kept {
        let layer = &layers[index];
        let map = self.element * self.batch;
        let gradient = F32 * layer.weight;
        let transient = map * (layer.input + 2 * layer.output) + 2 * gradient;
        let mut kept = Kept {
            saved: self.saved(layer),
            recomputed: 0,
            gradient,
            transient,
        };
        if let Some(block) = layer.block.filter(|_| self.checkpointing) {
            kept.saved = 0;
            if block.last {
                // The next block reads it; PSPNet only pools and joins the last one.
                let blocks: usize = self.model.backbone.blocks().iter().sum();
                let unread = self.model.method == Method::PspNet && block.index + 1 == blocks;
                kept.saved = if unread { 0 } else { map * layer.output };
                let same = |other: &&Layer| other.block.is_some_and(|b| b.index == block.index);
                let again = layers.iter().filter(same).map(|layer| self.saved(layer));
                kept.recomputed = again.sum();
            }
        }
        kept
    }

    /// Bytes that the layer keeps for the backward pass.
    fn saved(&self, layer: &Layer) -> u64 {
        let map = self.element * self.batch;
        if !layer.normalised {
            // Of the logits, their gradient, which is f32.
            return F32 * self.batch * layer.output;
        }
        let joined = if layer.joined_input { layer.input } else { 0 };
        let outputs = 1 + u64::from(layer.read_again);
        map * (joined + outputs * layer.output)
    }
}

/// Bytes of a pixel's label.
const LABEL: u64 = 4;
/// Bytes of a position that the pooling keeps.
const INDEX: u64 = 4;
/// Maps of all classes at the labels' size that the loss has at a time, of one image.
const LOSS_MAPS: u64 = 4;
