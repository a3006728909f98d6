//! What a network costs: parameters, multiply-accumulates, and the maps of its convolutions.

use halfseg_segmentor::{Method, SegmentorConfig};

use crate::{Bytes, Crop, Precision};

/// The cost of one part of a network, for one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartCost {
    /// Weights, biases, and scales and offsets of normalisations; running statistics are not
    /// parameters.
    pub parameters: u64,
    /// Multiply-accumulates of the convolutions; an operation count is twice this.
    pub macs: u64,
    /// Elements of the convolutions' outputs. Training keeps each at least once.
    pub map_elements: u64,
}

/// The cost of a network by part, for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// `stem`, `layer1` to `layer4`, `decode_head` and `auxiliary_head` (in training only).
    pub parts: Vec<(&'static str, PartCost)>,
}

impl Cost {
    /// Walks through the convolutions of the network, as `halfseg-backbone` and `halfseg-heads`
    /// lay them out, for an image of `size`.
    pub fn of(model: &SegmentorConfig, size: Crop) -> Self {
        count(model, size)
    }

    /// The sum over the parts that run: all in `training`, else without the auxiliary head.
    pub fn total(&self, training: bool) -> PartCost {
        let runs = |part: &&(&str, PartCost)| training || part.0 != AUXILIARY;
        self.parts
            .iter()
            .filter(runs)
            .fold(PartCost::default(), |sum, (_, part)| PartCost {
                parameters: sum.parameters + part.parameters,
                macs: sum.macs + part.macs,
                map_elements: sum.map_elements + part.map_elements,
            })
    }
}

const AUXILIARY: &str = "auxiliary_head";

/// A lower bound of the memory that training takes: weights, gradients and momentum in f32, the
/// maps that the backward pass reads, and the loss of one image.
///
/// Of the maps, the outputs of all convolutions are counted, which every implementation keeps at
/// least once (in half precision: at two bytes each), so that what is refused could not have run.
/// Measured peaks lie above it: buffers of single operations and of the allocator come on top.
pub fn training_memory(
    model: &SegmentorConfig,
    crop: Crop,
    batch: usize,
    precision: Precision,
) -> Bytes {
    let cost = Cost::of(model, crop).total(true);
    let (element, casts) = match precision {
        Precision::F32 => (4, 0),
        Precision::F16 | Precision::Bf16 => (2, 2),
    };
    let pixels = crop.height as u64 * crop.width as u64;
    let weights = cost.parameters * (12 + casts);
    let image = cost.map_elements * element + 3 * 4 * pixels;
    // Logits at label size, their exponentials and their gradient, one image at a time.
    let loss = 3 * 4 * model.num_classes as u64 * pixels;
    Bytes(weights + batch as u64 * image + loss)
}

/// Adds up the convolutions of one part.
#[derive(Default)]
struct Part(PartCost);

impl Part {
    /// A convolution without bias whose output of `area` pixels is normalised.
    fn conv(&mut self, from: u64, to: u64, kernel: u64, area: u64) {
        self.add(from * to * kernel * kernel, to, area);
        self.0.parameters += 2 * to;
    }

    /// A 3x3 convolution of each channel by itself and a 1x1 convolution, both normalised.
    fn separable(&mut self, from: u64, to: u64, area: u64) {
        self.add(from * 9, from, area);
        self.0.parameters += 2 * from;
        self.conv(from, to, 1, area);
    }

    /// A 1x1 convolution with bias.
    fn classifier(&mut self, from: u64, to: u64, area: u64) {
        self.add(from * to, to, area);
        self.0.parameters += to;
    }

    fn add(&mut self, weights: u64, to: u64, area: u64) {
        self.0.parameters += weights;
        self.0.macs += weights * area;
        self.0.map_elements += to * area;
    }
}

fn count(model: &SegmentorConfig, size: Crop) -> Cost {
    let area = |stride: usize| (size.height.div_ceil(stride) * size.width.div_ceil(stride)) as u64;
    let mut parts = Vec::new();

    let stem = model.stem_channels as u64;
    let mut part = Part::default();
    part.conv(3, stem / 2, 3, area(2));
    part.conv(stem / 2, stem / 2, 3, area(2));
    part.conv(stem / 2, stem, 3, area(2));
    parts.push(("stem", part.0));

    let expansion = model.backbone.expansion() as u64;
    let names = ["layer1", "layer2", "layer3", "layer4"];
    let (mut from, mut before) = (stem, area(4));
    for (stage, blocks) in model.backbone.blocks().into_iter().enumerate() {
        let width = (model.base_channels << stage) as u64;
        let (to, after) = (width * expansion, area(if stage == 0 { 4 } else { 8 }));
        let mut part = Part::default();
        for block in 0..blocks {
            if model.backbone.has_bottlenecks() {
                part.conv(from, width, 1, before);
                part.conv(width, width, 3, after);
                part.conv(width, to, 1, after);
            } else {
                part.conv(from, width, 3, after);
                part.conv(width, width, 3, after);
            }
            // A shortcut projects where the shape changes: stage 2 has the stride.
            if block == 0 && (from != to || stage == 1) {
                part.conv(from, to, 1, after);
            }
            (from, before) = (to, after);
        }
        parts.push((names[stage], part.0));
    }

    let c2 = model.base_channels as u64 * expansion;
    let (c4, c5) = (4 * c2, 8 * c2);
    parts.push(("decode_head", decode_head(model, c2, c5, area(4), area(8))));
    if model.aux_head {
        let (aux, mut part) = (model.aux_channels as u64, Part::default());
        part.conv(c4, aux, 3, area(8));
        part.classifier(aux, model.num_classes as u64, area(8));
        parts.push((AUXILIARY, part.0));
    }
    Cost { parts }
}

fn decode_head(model: &SegmentorConfig, c2: u64, c5: u64, quarter: u64, eighth: u64) -> PartCost {
    let (head, classes) = (model.head_channels as u64, model.num_classes as u64);
    let mut part = Part::default();
    let mut last_area = eighth;
    match model.method {
        Method::Fcn => {
            part.conv(c5, head, 3, eighth);
            part.conv(head, head, 3, eighth);
            part.conv(c5 + head, head, 3, eighth);
        }
        Method::PspNet => {
            for bin in [1, 2, 3, 6] {
                part.conv(c5, head, 1, bin * bin);
            }
            part.conv(c5 + 4 * head, head, 3, eighth);
        }
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            part.conv(c5, head, 1, 1);
            for &dilation in &model.dilations {
                match (dilation, model.method) {
                    (1, _) => part.conv(c5, head, 1, eighth),
                    (_, Method::DeepLabV3) => part.conv(c5, head, 3, eighth),
                    _ => part.separable(c5, head, eighth),
                }
            }
            part.conv((model.dilations.len() as u64 + 1) * head, head, 3, eighth);
            if model.method == Method::DeepLabV3Plus {
                let c1 = model.c1_channels as u64;
                part.conv(c2, c1, 1, quarter);
                part.separable(head + c1, head, quarter);
                part.separable(head, head, quarter);
                last_area = quarter;
            }
        }
    }
    part.classifier(head, classes, last_area);
    part.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;
    use halfseg_segmentor::Depth;

    const TRAIN: Crop = Crop {
        height: 512,
        width: 1024,
    };
    const ODD: Crop = Crop {
        height: 97,
        width: 161,
    };

    /// Against a count made layer by layer of the published models at depth 101: parameters with
    /// the auxiliary head, multiply-accumulates with and without it, at two sizes.
    #[test]
    fn published_models_cost_what_was_counted_elsewhere() {
        let check = |method, parameters, [infer, train, odd_infer, odd_train]: [u64; 4]| {
            let model = SegmentorConfig::new(method, Depth::R101);
            let (cost, odd) = (Cost::of(&model, TRAIN), Cost::of(&model, ODD));
            assert_eq!(cost.total(true).parameters, parameters, "{method}");
            assert_eq!(cost.total(false).macs, infer, "{method}");
            assert_eq!(cost.total(true).macs, train, "{method}");
            assert_eq!(odd.total(false).macs, odd_infer, "{method}");
            assert_eq!(odd.total(true).macs, odd_train, "{method}");
        };
        check(
            Method::Fcn,
            68_489_862,
            [
                550_351_405_056,
                569_718_603_776,
                18_312_725_856,
                18_958_141_536,
            ],
        );
        check(
            Method::PspNet,
            67_967_622,
            [
                511_749_128_192,
                531_116_326_912,
                17_076_979_040,
                17_722_394_720,
            ],
        );
        check(
            Method::DeepLabV3,
            87_105_158,
            [
                694_233_858_048,
                713_601_056_768,
                23_108_650_336,
                23_754_066_016,
            ],
        );
        check(
            Method::DeepLabV3Plus,
            62_582_006,
            [
                507_471_462_400,
                526_838_661_120,
                16_845_861_648,
                17_491_277_328,
            ],
        );
        let maps = Cost::of(&SegmentorConfig::deeplabv3plus_r101_d8(), ODD).total(true);
        assert_eq!(maps.map_elements, 20_693_942);
    }

    #[test]
    fn parameters_are_those_of_the_network_that_is_built() {
        for method in Method::ALL {
            for depth in Depth::ALL {
                let mut model = SegmentorConfig::new(method, depth);
                (model.stem_channels, model.base_channels) = (8, 4);
                (model.head_channels, model.aux_channels, model.c1_channels) = (8, 8, 4);
                let built = model.init(&Device::flex());
                let cost = Cost::of(&model, TRAIN);
                assert_eq!(
                    cost.total(true).parameters,
                    parameters(&built),
                    "{method} {depth}"
                );
                let backbone: u64 = cost.parts[..5].iter().map(|part| part.1.parameters).sum();
                assert_eq!(backbone, parameters(&built.backbone), "{method} {depth}");
            }
        }
    }

    #[test]
    fn memory_grows_with_crop_and_batch_and_shrinks_with_precision() {
        let model = SegmentorConfig::fcn_r101_d8();
        let memory = |height, batch, precision| {
            training_memory(
                &model,
                Crop {
                    height,
                    width: 2 * height,
                },
                batch,
                precision,
            )
            .0
        };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        // PyTorch needs 6.0 GiB for this step in f32 on the CPU: a lower bound lies below.
        let published = gib(memory(512, 1, Precision::F32));
        assert!((2.5..6.0).contains(&published), "{published}");
        assert!(memory(512, 2, Precision::F32) > memory(512, 1, Precision::F32));
        assert!(memory(512, 2, Precision::F16) < memory(512, 2, Precision::F32));
        assert!(gib(memory(8192, 4, Precision::F16)) > 500.0);
    }
}
