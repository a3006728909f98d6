//! Predicting the memory of a training step.

use halfseg_segmentor::{Method, SegmentorConfig};

use crate::{Bytes, Crop, Precision};

/// A lower bound of the memory that training takes, in bytes: weights, gradients and momentum in
/// f32, the maps that the backward pass reads, and the loss of one image.
///
/// Counted are the outputs of all convolutions, which every implementation keeps at least once (in
/// half precision: at two bytes each), so that what is refused could not have run. Peaks measured
/// on the CPU lie above it, because buffers of single operations and of the allocator come on top.
pub fn training_memory(
    model: &SegmentorConfig,
    crop: Crop,
    batch: usize,
    precision: Precision,
) -> Bytes {
    let counts = count(model, crop);
    let element = match precision {
        Precision::F32 => 4,
        Precision::F16 | Precision::Bf16 => 2,
    };
    // Weights, gradients and momentum; half precision also keeps cast weights.
    let weights = counts.weights * (12 + if element == 2 { 2 } else { 0 });
    let input = 3 * crop.height as u64 * crop.width as u64 * 4;
    // Logits at label size, their exponentials and their gradient, one image at a time.
    let loss = 3 * 4 * model.num_classes as u64 * crop.height as u64 * crop.width as u64;
    Bytes(weights + batch as u64 * (counts.maps * element + input) + loss)
}

struct Counts {
    /// Weights of convolutions.
    weights: u64,
    /// Elements of the convolutions' outputs, for one image.
    maps: u64,
}

/// Walks through the convolutions of the network, as `halfseg-backbone` and `halfseg-heads` lay
/// them out.
fn count(model: &SegmentorConfig, crop: Crop) -> Counts {
    let down = |size: usize, stride: usize| size.div_ceil(stride) as u64;
    let area = |stride: usize| down(crop.height, stride) * down(crop.width, stride);
    let mut counts = Counts { weights: 0, maps: 0 };
    let mut conv = |from: u64, to: u64, kernel: u64, groups: u64, area: u64| {
        counts.weights += from / groups * to * kernel * kernel;
        counts.maps += to * area;
    };
    let stem = model.stem_channels as u64;
    conv(3, stem / 2, 3, 1, area(2));
    conv(stem / 2, stem / 2, 3, 1, area(2));
    conv(stem / 2, stem, 3, 1, area(2));

    let expansion = model.backbone.expansion() as u64;
    let mut from = stem;
    for (stage, blocks) in model.backbone.blocks().into_iter().enumerate() {
        let width = (model.base_channels << stage) as u64;
        let to = width * expansion;
        let size = area(if stage == 0 { 4 } else { 8 });
        for block in 0..blocks {
            if model.backbone.has_bottlenecks() {
                conv(from, width, 1, 1, size);
                conv(width, width, 3, 1, size);
                conv(width, to, 1, 1, size);
            } else {
                conv(from, width, 3, 1, size);
                conv(width, width, 3, 1, size);
            }
            if block == 0 && (from != to || stage == 1) {
                conv(from, to, 1, 1, size);
            }
            from = to;
        }
    }
    let c5 = from;
    let (c4, c2) = (c5 / 2, c5 / 8);
    let (head, classes) = (model.head_channels as u64, model.num_classes as u64);
    let eighth = area(8);
    let (mut last, mut last_area) = (head, eighth);
    let dilations = model.dilations.len() as u64;
    match model.method {
        Method::Fcn => {
            conv(c5, head, 3, 1, eighth);
            conv(head, head, 3, 1, eighth);
            conv(c5 + head, head, 3, 1, eighth);
        }
        Method::PspNet => {
            for bin in [1, 2, 3, 6] {
                conv(c5, head, 1, 1, bin * bin);
            }
            conv(c5 + 4 * head, head, 3, 1, eighth);
        }
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            conv(c5, head, 1, 1, 1);
            for &dilation in &model.dilations {
                match (dilation, model.method) {
                    (1, _) => conv(c5, head, 1, 1, eighth),
                    (_, Method::DeepLabV3) => conv(c5, head, 3, 1, eighth),
                    _ => {
                        conv(c5, c5, 3, c5, eighth);
                        conv(c5, head, 1, 1, eighth);
                    }
                }
            }
            conv((dilations + 1) * head, head, 3, 1, eighth);
            if model.method == Method::DeepLabV3Plus {
                let c1 = model.c1_channels as u64;
                conv(c2, c1, 1, 1, area(4));
                conv(head + c1, head + c1, 3, head + c1, area(4));
                conv(head + c1, head, 1, 1, area(4));
                conv(head, head, 3, head, area(4));
                conv(head, head, 1, 1, area(4));
                (last, last_area) = (head, area(4));
            }
        }
    }
    conv(last, classes, 1, 1, last_area);
    if model.aux_head {
        let aux = model.aux_channels as u64;
        conv(c4, aux, 3, 1, eighth);
        conv(aux, classes, 1, 1, eighth);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;
    use burn::tensor::Device;
    use halfseg_segmentor::Depth;

    #[test]
    fn weights_are_counted_as_the_network_has_them() {
        for method in Method::ALL {
            for depth in [Depth::R18, Depth::R50] {
                let mut model = SegmentorConfig::new(method, depth);
                (model.stem_channels, model.base_channels) = (8, 4);
                (model.head_channels, model.aux_channels, model.c1_channels) = (8, 8, 4);
                let counted = count(&model, Crop { height: 64, width: 64 }).weights;
                let parameters = model.init(&Device::flex()).num_params() as u64;
                // Scales, offsets and running statistics of normalisations, and biases, are left
                // out of the estimate: small next to the weights at real widths.
                assert!(counted < parameters, "{method} {depth}: {counted} of {parameters}");
                let (from, to) = (parameters as f64 * 0.75, parameters as f64);
                assert!((from..to).contains(&(counted as f64)), "{method} {depth}: {counted}");
            }
        }
    }

    #[test]
    fn memory_grows_with_crop_and_batch_and_shrinks_with_precision() {
        let model = SegmentorConfig::fcn_r101_d8();
        let memory = |height, batch, precision| {
            training_memory(&model, Crop { height, width: 2 * height }, batch, precision).0
        };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        // PyTorch needs 6.0 GiB for this step in f32; weights and their kin are 0.8 of them.
        let published = gib(memory(512, 1, Precision::F32));
        assert!((2.5..6.0).contains(&published), "{published}");
        assert!(memory(512, 2, Precision::F32) > memory(512, 1, Precision::F32));
        assert!(memory(512, 2, Precision::F16) < memory(512, 2, Precision::F32));
        assert!(gib(memory(8192, 4, Precision::F16)) > 500.0);
    }
}
