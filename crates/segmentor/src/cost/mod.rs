//! What a network costs: parameters, multiply-accumulates, and the maps of its convolutions.

mod convolutions;
mod memory;

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use halfseg_amp::parameter_paths;

use crate::SegmentorConfig;
use convolutions::{AUXILIARY, layers};

pub(crate) use convolutions::tensor_shapes;
pub use memory::{MemoryPlan, TrainingStep, inference_memory, training_memory};

/// The cost of one part of a network, for one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
pub struct Cost {
    /// `stem`, `layer1` to `layer4`, `decode_head` and `auxiliary_head` (in training only).
    pub parts: Vec<(&'static str, PartCost)>,
}

impl Cost {
    /// Walks through the convolutions of the network, as `halfseg-backbone` and `halfseg-heads`
    /// lay them out, for an image of `size`: height and width, in pixels.
    pub fn of(model: &SegmentorConfig, size: [usize; 2]) -> Self {
        let mut parts: Vec<(&'static str, PartCost)> = Vec::new();
        for layer in layers(model, size) {
            if parts.last().is_none_or(|(name, _)| *name != layer.part) {
                parts.push((layer.part, PartCost::default()));
            }
            let (_, part) = parts.last_mut().expect("one was pushed");
            part.parameters += layer.parameters();
            part.macs = part.macs.saturating_add(layer.macs);
            part.map_elements = part.map_elements.saturating_add(layer.output);
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
                macs: sum.macs.saturating_add(part.macs),
                map_elements: sum.map_elements.saturating_add(part.map_elements),
            })
    }
}

/// The number of trainable values of a module: everything but the running statistics of
/// normalisations, which Burn's own count includes.
pub fn count_parameters<M: Module>(module: &M) -> u64 {
    struct Count {
        /// Parameters that have not been counted.
        left: HashSet<ParamId>,
        values: u64,
    }
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.left.remove(&param.id) {
                self.values += param.lazy_shape().num_elements() as u64;
            }
        }
    }
    let is_statistic = |path: &str| path.ends_with("running_mean") || path.ends_with("running_var");
    let parameters = parameter_paths(module).into_iter();
    let mut count = Count {
        left: parameters
            .filter(|parameter| !is_statistic(&parameter.path))
            .map(|parameter| parameter.id)
            .collect(),
        values: 0,
    };
    module.visit(&mut count);
    count.values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Depth, Method, Style};
    use burn::tensor::Device;
    use std::collections::BTreeMap;

    const TRAIN: [usize; 2] = [512, 1024];

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
            for (index, size) in SIZES.into_iter().enumerate() {
                let case = format!("{method} {depth} {size:?}");
                let cost = Cost::of(&model, size);
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

    /// Against hooks on MMSegmentation 1.2.2's own models, built from its configurations: parameters, then
    /// at each size multiply-accumulates of the backbone, the decode head and the auxiliary head, and the
    /// elements of all convolutions' outputs.
    #[test]
    fn the_rest_of_the_family_costs_what_was_counted_in_mmsegmentation() {
        let new = |method, depth| SegmentorConfig::new(method, depth);
        let d16 = |model: SegmentorConfig| {
            model
                .with_stage_strides([1, 2, 2, 1])
                .with_stage_dilations([1, 1, 1, 2])
        };
        let d32 = |model: SegmentorConfig| {
            model
                .with_stage_strides([1, 2, 2, 2])
                .with_stage_dilations([1; 4])
        };
        let mg124 = |method| {
            d16(new(method, Depth::R101))
                .with_multi_grid(vec![1, 2, 4])
                .with_dilations(vec![1, 6, 12, 18])
        };
        let psp50 = || new(Method::PspNet, Depth::R50);
        let fcn_d6 = d16(new(Method::Fcn, Depth::R50))
            .with_head_dilation(6)
            .with_aux_dilation(6);
        let cases: [(SegmentorConfig, u64, [[u64; 4]; 2]); 9] = [
            (
                fcn_d6,
                49_497_734,
                [
                    [67_356_327_936, 48_338_305_024, 4_841_799_680, 144_781_312],
                    [2_408_349_536, 1_817_406_976, 182_040_320, 4_872_814],
                ],
            ),
            (
                new(Method::Fcn, Depth::R101).with_deep_stem(false),
                68_470_630,
                [
                    [
                        354_494_185_472,
                        193_353_220_096,
                        19_367_198_720,
                        492_093_440,
                    ],
                    [11_793_368_256, 6_443_533_824, 645_415_680, 16_270_662],
                ],
            ),
            (
                new(Method::Fcn, Depth::R18).with_deep_stem(false),
                12_803_110,
                [
                    [96_259_276_800, 12_099_518_464, 1_217_921_024, 57_458_688],
                    [3_194_225_856, 403_218_816, 40_587_456, 1_872_134],
                ],
            ),
            (
                d32(psp50()),
                48_975_494,
                [
                    [45_210_402_816, 9_721_085_952, 4_841_799_680, 125_379_072],
                    [1_644_199_776, 505_647_104, 182_040_320, 4_221_567],
                ],
            ),
            (
                d32(psp50()).with_deep_stem(false),
                48_956_262,
                [
                    [42_706_403_328, 9_721_085_952, 4_841_799_680, 116_990_464],
                    [1_568_376_000, 505_647_104, 182_040_320, 3_967_551],
                ],
            ),
            (
                mg124(Method::DeepLabV3),
                87_105_158,
                [
                    [106_145_251_328, 84_309_704_704, 4_841_799_680, 200_356_352],
                    [3_866_722_144, 3_170_856_448, 182_040_320, 6_962_798],
                ],
            ),
            (
                mg124(Method::DeepLabV3Plus),
                62_582_006,
                [
                    [106_145_251_328, 51_886_161_920, 4_841_799_680, 283_777_536],
                    [3_866_722_144, 1_831_637_936, 182_040_320, 9_651_498],
                ],
            ),
            (
                psp50().with_avg_down(true),
                48_975_494,
                [
                    [
                        201_842_491_392,
                        154_750_943_232,
                        19_367_198_720,
                        278_209_536,
                    ],
                    [6_698_598_240, 5_207_787_008, 645_415_680, 9_142_150],
                ],
            ),
            (
                psp50().with_style(Style::Caffe),
                48_975_494,
                [
                    [
                        201_037_185_024,
                        154_750_943_232,
                        19_367_198_720,
                        275_063_808,
                    ],
                    [6_673_956_704, 5_207_787_008, 645_415_680, 9_045_894],
                ],
            ),
        ];
        for (model, parameters, counted) in cases {
            for (size, counted) in [TRAIN, [97, 161]].into_iter().zip(counted) {
                let cost = Cost::of(&model, size);
                let macs: Vec<u64> = cost.parts.iter().map(|(_, part)| part.macs).collect();
                let found = [
                    macs[..5].iter().sum(),
                    macs[5],
                    macs[6],
                    cost.total(true).map_elements,
                ];
                assert_eq!(found, counted, "{model:?} at {size:?}");
                assert_eq!(cost.total(true).parameters, parameters, "{model:?}");
            }
        }
    }

    #[test]
    fn parameters_are_those_of_the_network_that_is_built() {
        struct Shapes<'a>(
            BTreeMap<ParamId, String>,
            &'a mut BTreeMap<String, Vec<usize>>,
        );
        impl ModuleVisitor for Shapes<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.1
                    .insert(self.0[&param.id].clone(), param.dims().to_vec());
            }
        }
        let mut models = Vec::new();
        for method in Method::ALL {
            for depth in Depth::ALL {
                let mut model = SegmentorConfig::new(method, depth);
                (model.stem_channels, model.base_channels) = (8, 4);
                (model.head_channels, model.aux_channels, model.c1_channels) = (8, 8, 4);
                models.push(model);
            }
        }
        let [fcn, psp, v3, plus] = Method::ALL.map(|method| {
            let small = models.iter().find(|model| model.method == method);
            small.expect("one of each method").clone()
        });
        models.extend([
            fcn.clone().with_deep_stem(false).with_in_channels(5),
            fcn.clone()
                .with_avg_down(true)
                .with_stage_strides([2, 1, 2, 2]),
            fcn.clone().with_head_convs(0).with_head_channels(32),
            fcn.with_head_convs(4)
                .with_head_concat_input(false)
                .with_head_index(1),
            psp.with_pool_scales(vec![2, 5])
                .with_aux_index(0)
                .with_aux_convs(2),
            v3.with_refine(true).with_aux_concat_input(true),
            plus.with_stage_strides([2, 2, 1, 1]).with_head_index(2),
        ]);
        for model in models {
            let case = format!("{model:?}");
            let built = model.init(&Device::flex());
            let cost = Cost::of(&model, TRAIN);
            assert_eq!(
                cost.total(true).parameters,
                count_parameters(&built),
                "{case}"
            );
            let mut shapes = BTreeMap::new();
            built.visit(&mut Shapes(built.names(), &mut shapes));
            assert_eq!(tensor_shapes(&model), shapes, "{case}");
            let backbone: u64 = cost.parts[..5].iter().map(|part| part.1.parameters).sum();
            assert_eq!(backbone, count_parameters(&built.backbone), "{case}");
        }
    }
}
