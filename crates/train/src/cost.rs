//! What a network costs: parameters, multiply-accumulates, and the maps of its convolutions.

use halfseg_data::Crop;
use halfseg_devices::Bytes;
use halfseg_segmentor::{Method, SegmentorConfig};

use crate::RunPrecision;

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
        let mut parts: Vec<(&'static str, PartCost)> = Vec::new();
        for layer in layers(model, size) {
            if parts.last().is_none_or(|(name, _)| *name != layer.part) {
                parts.push((layer.part, PartCost::default()));
            }
            let (_, part) = parts.last_mut().expect("one was pushed");
            part.parameters += layer.parameters;
            part.macs += layer.macs;
            part.map_elements += layer.output;
        }
        Self { parts }
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

const DECODE: &str = "decode_head";
const AUXILIARY: &str = "auxiliary_head";

/// A lower bound of the memory that training takes: weights, gradients and momentum in f32, the
/// maps that the backward pass reads, and the loss of one image.
///
/// Of the maps, the outputs of all convolutions are counted, which every implementation keeps at
/// least once (in half precision: at two bytes each), so that what is refused could not have run. With
/// `checkpointing` only one map is counted for each residual block. Measured peaks lie above it; see
/// [`MemoryPlan`](crate::MemoryPlan) for what is expected.
pub fn training_memory(
    model: &SegmentorConfig,
    crop: Crop,
    batch: usize,
    precision: RunPrecision,
    checkpointing: bool,
) -> Bytes {
    let element = match precision {
        RunPrecision::F32 => 4,
        RunPrecision::F16 | RunPrecision::Bf16 => 2,
    };
    let (mut parameters, mut maps) = (0, 0);
    for layer in layers(model, crop) {
        parameters += layer.parameters;
        if !(checkpointing && layer.block.is_some_and(|block| !block.last)) {
            maps += layer.output;
        }
    }
    let pixels = crop.height as u64 * crop.width as u64;
    let weights = parameters * 12;
    let image = maps * element + 3 * 4 * pixels;
    // Logits at label size, their exponentials and their gradient, one image at a time.
    let loss = 3 * 4 * model.num_classes as u64 * pixels;
    Bytes(
        (batch as u64)
            .saturating_mul(image)
            .saturating_add(weights + loss),
    )
}

/// A convolution and what follows it, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    /// The part of the network, as [`Cost::parts`] names it.
    pub part: &'static str,
    /// Values of the convolution's weight.
    pub weight: u64,
    /// Values of its weight, its bias and its normalisation.
    pub parameters: u64,
    /// Elements of the map that it reads.
    pub input: u64,
    /// Elements of the map that it writes.
    pub output: u64,
    pub macs: u64,
    /// Whether it is normalised.
    pub normalised: bool,
    /// Whether the map that it reads was put together for it alone.
    pub joined_input: bool,
    /// Whether its normalised output is kept: not if all its readers only copy, resize or add it.
    pub read_again: bool,
    /// Where in a residual block it is.
    pub block: Option<InBlock>,
}

/// A place in a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InBlock {
    /// The block's number in the network.
    pub index: usize,
    /// Whether the block ends with it.
    pub last: bool,
}

/// Lists the convolutions of one part after the other.
#[derive(Default)]
struct Walk {
    layers: Vec<Layer>,
    part: &'static str,
    block: Option<InBlock>,
}

impl Walk {
    /// A convolution without bias from maps of `before` pixels to maps of `after`, normalised.
    fn strided(&mut self, from: u64, to: u64, kernel: u64, [before, after]: [u64; 2]) {
        let weight = from * to * kernel * kernel;
        self.push(
            weight,
            weight + 2 * to,
            [from * before, to * after],
            weight * after,
        );
    }

    /// The same with stride 1.
    fn conv(&mut self, from: u64, to: u64, kernel: u64, area: u64) {
        self.strided(from, to, kernel, [area; 2]);
    }

    /// A 3x3 convolution of each channel by itself and a 1x1 convolution, both normalised.
    fn separable(&mut self, from: u64, to: u64, area: u64) {
        self.depthwise(from, area);
        self.conv(from, to, 1, area);
    }

    /// The same of a concatenation.
    fn separable_of_joined(&mut self, from: u64, to: u64, area: u64) {
        self.depthwise(from, area);
        self.of_joined();
        self.conv(from, to, 1, area);
    }

    fn depthwise(&mut self, from: u64, area: u64) {
        let weight = from * 9;
        self.push(weight, weight + 2 * from, [from * area; 2], weight * area);
    }

    /// A 1x1 convolution with bias.
    fn classifier(&mut self, from: u64, to: u64, area: u64) {
        let weight = from * to;
        self.push(weight, weight + to, [from * area, to * area], weight * area);
        self.layers.last_mut().expect("one was pushed").normalised = false;
    }

    fn push(&mut self, weight: u64, parameters: u64, [input, output]: [u64; 2], macs: u64) {
        self.layers.push(Layer {
            part: self.part,
            weight,
            parameters,
            input,
            output,
            macs,
            normalised: true,
            joined_input: false,
            read_again: true,
            block: self.block,
        });
    }

    /// The last convolution reads a concatenation.
    fn of_joined(&mut self) {
        self.layers.last_mut().expect("one was pushed").joined_input = true;
    }

    /// The last convolution's output is only copied, resized or added to something.
    fn passed_on(&mut self) {
        self.layers.last_mut().expect("one was pushed").read_again = false;
    }
}

/// The convolutions of the network in the order of their forward pass, as `halfseg-backbone` and
/// `halfseg-heads` lay them out, for an image of `size`.
pub(crate) fn layers(model: &SegmentorConfig, size: Crop) -> Vec<Layer> {
    let area = |stride: usize| (size.height.div_ceil(stride) * size.width.div_ceil(stride)) as u64;
    let mut walk = Walk::default();

    let stem = model.stem_channels as u64;
    walk.part = "stem";
    walk.strided(3, stem / 2, 3, [area(1), area(2)]);
    walk.conv(stem / 2, stem / 2, 3, area(2));
    walk.conv(stem / 2, stem, 3, area(2));

    let expansion = model.backbone.expansion() as u64;
    let (mut from, mut before, mut index) = (stem, area(4), 0);
    for (stage, blocks) in model.backbone.blocks().into_iter().enumerate() {
        walk.part = ["layer1", "layer2", "layer3", "layer4"][stage];
        let width = (model.base_channels << stage) as u64;
        let (to, after) = (width * expansion, area(if stage == 0 { 4 } else { 8 }));
        for block in 0..blocks {
            let inside = InBlock { index, last: false };
            walk.block = Some(inside);
            let strided = [before, after];
            if model.backbone.has_bottlenecks() {
                walk.conv(from, width, 1, before);
                walk.strided(width, width, 3, strided);
            } else {
                walk.strided(from, width, 3, strided);
            }
            // A shortcut projects where the shape changes: stage 2 has the stride.
            if block == 0 && (from != to || stage == 1) {
                walk.strided(from, to, 1, strided);
                walk.passed_on();
            }
            walk.block = Some(InBlock {
                last: true,
                ..inside
            });
            let kernel = if model.backbone.has_bottlenecks() {
                1
            } else {
                3
            };
            walk.conv(width, to, kernel, after);
            (from, before, index) = (to, after, index + 1);
        }
    }
    walk.block = None;

    let c2 = model.base_channels as u64 * expansion;
    let (c4, c5) = (4 * c2, 8 * c2);
    walk.part = DECODE;
    decode_head(&mut walk, model, c2, c5, area(4), area(8));
    if model.aux_head {
        walk.part = AUXILIARY;
        let aux = model.aux_channels as u64;
        walk.conv(c4, aux, 3, area(8));
        walk.classifier(aux, model.num_classes as u64, area(8));
    }
    walk.layers
}

fn decode_head(
    walk: &mut Walk,
    model: &SegmentorConfig,
    c2: u64,
    c5: u64,
    quarter: u64,
    eighth: u64,
) {
    let (head, classes) = (model.head_channels as u64, model.num_classes as u64);
    let mut last_area = eighth;
    match model.method {
        Method::Fcn => {
            walk.conv(c5, head, 3, eighth);
            walk.conv(head, head, 3, eighth);
            walk.passed_on();
            walk.conv(c5 + head, head, 3, eighth);
            walk.of_joined();
        }
        Method::PspNet => {
            for bin in [1, 2, 3, 6] {
                walk.conv(c5, head, 1, bin * bin);
                walk.passed_on();
            }
            walk.conv(c5 + 4 * head, head, 3, eighth);
            walk.of_joined();
        }
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            walk.conv(c5, head, 1, 1);
            walk.passed_on();
            for &dilation in &model.dilations {
                match (dilation, model.method) {
                    (1, _) => walk.conv(c5, head, 1, eighth),
                    (_, Method::DeepLabV3) => walk.conv(c5, head, 3, eighth),
                    _ => walk.separable(c5, head, eighth),
                }
                walk.passed_on();
            }
            walk.conv((model.dilations.len() as u64 + 1) * head, head, 3, eighth);
            walk.of_joined();
            if model.method == Method::DeepLabV3Plus {
                walk.passed_on();
                let c1 = model.c1_channels as u64;
                walk.conv(c2, c1, 1, quarter);
                walk.passed_on();
                walk.separable_of_joined(head + c1, head, quarter);
                walk.separable(head, head, quarter);
                last_area = quarter;
            }
        }
    }
    walk.classifier(head, classes, last_area);
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

    /// Against MMSegmentation's own models: a hook on each convolution of its forward pass counted
    /// output elements times weights per output. Multiply-accumulates of the four stages, the stem
    /// and the auxiliary head depend on the depth and the size alone.
    #[test]
    fn published_models_cost_what_was_counted_in_mmsegmentation() {
        const SIZES: [[usize; 2]; 3] = [[512, 1024], [1024, 2048], [97, 161]];
        type Shared = [[u64; 6]; 3];
        let shared18: Shared = [
            [
                3_737_124_864,
                4_831_838_208,
                4_294_967_296,
                17_179_869_184,
                68_719_476_736,
                1_217_921_024,
            ],
            [
                14_948_499_456,
                19_327_352_832,
                17_179_869_184,
                68_719_476_736,
                274_877_906_944,
                4_871_684_096,
            ],
            [
                113_164_128,
                151_142_400,
                143_130_624,
                572_522_496,
                2_290_089_984,
                40_587_456,
            ],
        ];
        let shared101: Shared = [
            [
                3_737_124_864,
                6_979_321_856,
                10_737_418_240,
                213_137_752_064,
                122_406_567_936,
                19_367_198_720,
            ],
            [
                14_948_499_456,
                27_917_287_424,
                42_949_672_960,
                852_551_008_256,
                489_626_271_744,
                77_468_794_880,
            ],
            [
                113_164_128,
                218_316_800,
                355_631_104,
                7_102_857_216,
                4_079_222_784,
                645_415_680,
            ],
        ];
        let check = |method, depth, parameters, shared: &Shared, heads: [[u64; 2]; 3]| {
            let model = SegmentorConfig::new(method, depth);
            for (index, [height, width]) in SIZES.into_iter().enumerate() {
                let case = format!("{method} {depth} {height}x{width}");
                let cost = Cost::of(&model, Crop { height, width });
                let [head, map_elements] = heads[index];
                let [stem, layer1, layer2, layer3, layer4, aux] = shared[index];
                let found: Vec<u64> = cost.parts.iter().map(|(_, part)| part.macs).collect();
                assert_eq!(
                    found,
                    [stem, layer1, layer2, layer3, layer4, head, aux],
                    "{case}"
                );
                let (infer, train) = (cost.total(false), cost.total(true));
                assert_eq!(train.macs, found.iter().sum::<u64>(), "{case}");
                assert_eq!(infer.macs, train.macs - aux, "{case}");
                assert_eq!(train.map_elements, map_elements, "{case}");
                assert_eq!(train.parameters, parameters, "{case}");
            }
        };
        // Parameters; then at each size the decode head's multiply-accumulates and the elements of
        // all convolutions' outputs.
        check(
            Method::Fcn,
            Depth::R18,
            12_822_342,
            &shared18,
            [
                [12_099_518_464, 65_847_296],
                [48_398_073_856, 263_389_184],
                [403_218_816, 2_126_150],
            ],
        );
        check(
            Method::Fcn,
            Depth::R101,
            68_489_862,
            &shared101,
            [
                [193_353_220_096, 500_482_048],
                [773_412_880_384, 2_001_928_192],
                [6_443_533_824, 16_524_678],
            ],
        );
        check(
            Method::PspNet,
            Depth::R18,
            12_790_086,
            &shared18,
            [
                [9_686_876_160, 63_756_544],
                [38_737_674_240, 255_006_976],
                [325_984_640, 2_062_662],
            ],
        );
        check(
            Method::PspNet,
            Depth::R101,
            67_967_622,
            &shared101,
            [
                [154_750_943_232, 492_119_040],
                [618_846_486_528, 1_968_399_360],
                [5_207_787_008, 16_270_726],
            ],
        );
        check(
            Method::DeepLabV3,
            Depth::R18,
            13_986_374,
            &shared18,
            [
                [21_092_171_776, 67_944_576],
                [84_368_490_496, 271_777_920],
                [702_964_096, 2_196_166],
            ],
        );
        check(
            Method::DeepLabV3,
            Depth::R101,
            87_105_158,
            &shared101,
            [
                [337_235_673_088, 508_871_168],
                [1_348_939_546_624, 2_035_483_136],
                [11_239_458_304, 16_804_742],
            ],
        );
        check(
            Method::DeepLabV3Plus,
            Depth::R18,
            12_468_962,
            &shared18,
            [
                [9_608_560_640, 98_558_080],
                [38_434_045_952, 394_231_936],
                [317_596_140, 3_179_182],
            ],
        );
        check(
            Method::DeepLabV3Plus,
            Depth::R101,
            62_582_006,
            &shared101,
            [
                [150_473_277_440, 629_924_352],
                [601_889_964_032, 2_519_695_872],
                [4_976_669_616, 20_693_942],
            ],
        );
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
                false,
            )
            .0
        };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        // PyTorch needs 6.0 GiB for this step in f32 on the CPU: a lower bound lies below.
        let published = gib(memory(512, 1, RunPrecision::F32));
        assert!((2.5..6.0).contains(&published), "{published}");
        assert!(memory(512, 2, RunPrecision::F32) > memory(512, 1, RunPrecision::F32));
        assert!(memory(512, 2, RunPrecision::F16) < memory(512, 2, RunPrecision::F32));
        assert!(gib(memory(8192, 4, RunPrecision::F16)) > 500.0);
    }
}
