//! How much memory a training step will take.

use super::convolutions::{AUXILIARY, BACKBONE, Layer, layers};
use crate::{Method, SegmentorConfig};

/// A training step, as far as its memory depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingStep {
    /// Height and width of an image, in pixels.
    pub size: [usize; 2],
    /// Images of a batch.
    pub images: usize,
    /// Bytes of an element of the maps: 4 in f32, 2 in half precision.
    pub element_bytes: u64,
    /// Whether residual blocks are recomputed in the backward pass, see
    /// [`Segmentor::with_gradient_checkpointing`](crate::Segmentor::with_gradient_checkpointing).
    pub recomputes: bool,
    /// Whether normalised maps are made again in the backward pass, as they are on GPUs where nothing was added to
    /// them, instead of being kept.
    pub normalises_again: bool,
    /// Stages of the backbone that are not trained, behind a stem that is not; see
    /// [`Segmentor::with_frozen_backbone`](crate::Segmentor::with_frozen_backbone).
    pub frozen_stages: Option<usize>,
}

impl TrainingStep {
    /// The pixels of an image.
    fn pixels(&self) -> u64 {
        let [height, width] = self.size;
        (height as u64).saturating_mul(width as u64)
    }

    /// Whether `layer` is not trained, so that neither gradients nor maps are kept for it.
    fn freezes(&self, layer: &Layer) -> bool {
        let frozen = self.frozen_stages.map_or(0, |stages| stages + 1);
        BACKBONE.iter().take(frozen).any(|part| *part == layer.part)
    }

    /// Images of a batch, so many that nothing in this file overflows.
    fn images(&self) -> u128 {
        self.images.min(1 << 32) as u128
    }
}

/// A lower bound of the memory that training takes: weights, gradients and momentum in f32, the
/// maps that the backward pass reads, and the loss of one image.
///
/// Of the maps, the outputs of all convolutions are counted, which every implementation keeps at
/// least once (in half precision: at two bytes each), so that what is refused could not have run. If the
/// step recomputes, only one map is counted for each residual block. Measured peaks lie above it; see
/// [`MemoryPlan`] for what is expected. In bytes.
pub fn training_memory(model: &SegmentorConfig, step: &TrainingStep) -> u64 {
    let (mut parameters, mut frozen, mut maps) = (0, 0, 0);
    for layer in layers(model, step.size) {
        if step.freezes(&layer) {
            frozen += u128::from(layer.parameters());
            continue;
        }
        parameters += u128::from(layer.parameters());
        if !(step.recomputes && layer.block.is_some_and(|block| !block.last)) {
            maps += u128::from(layer.output);
        }
    }
    let pixels = u128::from(step.pixels());
    let image = maps * u128::from(step.element_bytes) + model.in_channels as u128 * F32 * pixels;
    // Logits at label size, their exponentials and their gradient, one image at a time.
    let loss = 3 * F32 * model.num_classes as u128 * pixels;
    let bytes = step.images() * image + F32 * (3 * parameters + frozen) + loss;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// A lower bound of the memory that inference on one image takes besides the image and the network, in
/// bytes: the map that a convolution reads and the one that it writes, where they are largest. `size` is
/// height and width in pixels, and an element of a map has `element_bytes`.
pub fn inference_memory(model: &SegmentorConfig, size: [usize; 2], element_bytes: u64) -> u64 {
    let elements = layers(model, size)
        .into_iter()
        .filter(|layer| layer.part != AUXILIARY)
        .map(|layer| match layer.joined_input {
            // Its parts need not be put together.
            true => layer.output,
            false => layer.input.saturating_add(layer.output),
        });
    elements.max().unwrap_or(0).saturating_mul(element_bytes)
}

/// What a training step is expected to have in memory, in bytes.
///
/// The maps that are kept for the backward pass are counted as `halfseg-layers` keeps them: for each
/// convolution its output, from which the normalisation is differentiated, and the normalised map
/// that the next convolution reads. The peak is that of a step from the second on, with momentum: the
/// largest sum at the loss, at each convolution of the backward pass, and at the optimizer's step.
/// What an allocator wastes, and the program itself, are not part of it. On GPUs copies of the weights
/// in half precision and buffers of convolutions come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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

impl MemoryPlan {
    /// Of a step from the second on.
    pub fn of(model: &SegmentorConfig, step: &TrainingStep) -> Self {
        let map = u128::from(step.element_bytes) * step.images();
        Walk { model, step, map }.run()
    }
}

struct Walk<'a> {
    model: &'a SegmentorConfig,
    step: &'a TrainingStep,
    /// Bytes that an element of a map has in a batch.
    map: u128,
}

/// What a layer adds, in bytes. Wide enough for every size and batch.
#[derive(Clone, Copy, Default)]
struct Kept {
    /// In the forward pass, until its own backward pass.
    saved: u128,
    /// From its own backward pass to the end of its block's: what is computed again.
    recomputed: u128,
    gradient: u128,
    /// At its own backward pass: gradients of its input and its output, and that of its weight before
    /// it is put in order.
    transient: u128,
}

impl Walk<'_> {
    fn run(&self) -> MemoryPlan {
        let layers = layers(self.model, self.step.size);
        let (images, element) = (self.step.images(), u128::from(self.step.element_bytes));
        let image_pixels = u128::from(self.step.pixels());
        let pixels = images * image_pixels;
        let parameters: u64 = layers.iter().map(Layer::parameters).sum();
        let trained = layers.iter().filter(|layer| !self.step.freezes(layer));
        let trained: u64 = trained.map(Layer::parameters).sum();
        let kept: Vec<Kept> = (0..layers.len()).map(|i| self.kept(&layers, i)).collect();
        let total = |field: fn(&Kept) -> u128| kept.iter().map(field).sum::<u128>();

        let [weights, trained] = [parameters, trained].map(|count| F32 * u128::from(count));
        let channels = self.model.in_channels as u128;
        let batch = pixels * (channels * F32 + LABEL);
        let image = match element {
            F32 => 0,
            half => channels * half * pixels,
        };
        // The stem's pooling keeps its output, and where in the input each of its values was.
        let [height, width] = self.step.size.map(|side| side.div_ceil(4) as u64);
        let quarter = u128::from(height.saturating_mul(width));
        let pooled = images * self.model.stem_channels as u128 * quarter;
        let stem = match self.step.frozen_stages {
            None => image + pooled * (element + INDEX),
            Some(_) => 0,
        };
        let saved = total(|kept| kept.saved) + stem;
        let always = weights + trained + batch;

        // Of one image at a time: the class maps at the labels' size, and what the loss makes of them.
        let loss = LOSS_MAPS * F32 * self.model.num_classes as u128 * image_pixels;
        let (mut peak, mut workspace) = (0, 0);
        let mut at = |there: u128, more: u128| {
            if there + more > peak {
                (peak, workspace) = (there + more, more);
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
        let largest = layers.iter().map(Layer::weight).max().unwrap_or(0);
        at(always + trained, F32 * u128::from(largest));

        let bytes = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        MemoryPlan {
            weights: bytes(weights),
            momentum: bytes(trained),
            gradients: bytes(trained),
            batch: bytes(batch),
            saved: bytes(saved),
            workspace: bytes(workspace),
            peak: bytes(peak),
        }
    }

    fn kept(&self, layers: &[Layer], index: usize) -> Kept {
        let layer = &layers[index];
        if self.step.freezes(layer) {
            // The first layer that is trained reads the last map.
            let next = layers.get(index + 1);
            let read = next.is_some_and(|next| !self.step.freezes(next));
            return Kept {
                saved: u128::from(read) * self.map * u128::from(layer.output),
                ..Kept::default()
            };
        }
        let [input, output] = [layer.input, layer.output].map(u128::from);
        let gradient = F32 * u128::from(layer.weight());
        let mut kept = Kept {
            saved: self.saved(layer),
            recomputed: 0,
            gradient,
            transient: self.map * (input + 2 * output) + 2 * gradient,
        };
        if let Some(block) = layer.block.filter(|_| self.step.recomputes) {
            kept.saved = 0;
            if block.last {
                // The next block reads it; PSPNet only pools and joins the last one.
                let blocks: usize = self.model.backbone.blocks().iter().sum();
                let unread = self.model.method == Method::PspNet && block.index + 1 == blocks;
                kept.saved = if unread { 0 } else { self.map * output };
                let same = |other: &&Layer| other.block.is_some_and(|b| b.index == block.index);
                let again = layers.iter().filter(same).map(|layer| self.saved(layer));
                kept.recomputed = again.sum();
            }
        }
        kept
    }

    /// Whether the layer's normalised output is made again: not where something is added to it, from which a mask
    /// follows.
    fn made_again(&self, layer: &Layer) -> bool {
        let added = layer.block.is_some_and(|block| block.last);
        self.step.normalises_again && !added && !layer.dropped_out
    }

    /// Bytes that the layer keeps for the backward pass.
    fn saved(&self, layer: &Layer) -> u128 {
        let [input, output] = [layer.input, layer.output].map(u128::from);
        if !layer.normalised() {
            // Of the logits, their gradient, which is f32.
            return F32 * self.step.images() * output;
        }
        let joined = if layer.joined_input { input } else { 0 };
        let outputs = 1 + u128::from(layer.read_again && !self.made_again(layer));
        self.map * (joined + outputs * output)
    }
}

/// Bytes of an f32.
const F32: u128 = 4;
/// Bytes of a pixel's label.
const LABEL: u128 = 4;
/// Bytes of a position that the pooling keeps.
const INDEX: u128 = 4;
/// Maps of all classes at the labels' size that the loss has at a time, of one image.
const LOSS_MAPS: u128 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_crop_and_batch_and_shrinks_with_precision() {
        let model = SegmentorConfig::fcn_r101_d8();
        let memory = |height, images, element_bytes| {
            let step = TrainingStep {
                size: [height, 2 * height],
                images,
                element_bytes,
                recomputes: false,
                normalises_again: false,
                frozen_stages: None,
            };
            training_memory(&model, &step)
        };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        // PyTorch needs 6.0 GiB for this step in f32 on the CPU: a lower bound lies below.
        let published = gib(memory(512, 1, 4));
        assert!((2.5..6.0).contains(&published), "{published}");
        assert!(memory(512, 2, 4) > memory(512, 1, 4));
        assert!(memory(512, 2, 2) < memory(512, 2, 4));
        assert!(gib(memory(8192, 4, 2)) > 500.0);
    }

    #[test]
    fn no_size_and_no_batch_is_too_large_to_be_predicted() {
        let step = TrainingStep {
            size: [usize::MAX; 2],
            images: usize::MAX,
            element_bytes: 4,
            recomputes: false,
            normalises_again: false,
            frozen_stages: None,
        };
        for method in Method::ALL {
            let model = SegmentorConfig::new(method, crate::Depth::R101);
            assert_eq!(training_memory(&model, &step), u64::MAX);
            assert_eq!(MemoryPlan::of(&model, &step).peak, u64::MAX);
            assert_eq!(
                crate::Cost::of(&model, step.size).total(true).macs,
                u64::MAX
            );
        }
    }
}
