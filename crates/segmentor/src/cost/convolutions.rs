//! The convolutions of a network, as `halfseg-backbone` and `halfseg-heads` lay them out, without building
//! it.

use std::collections::BTreeMap;

use crate::{Method, SegmentorConfig};

pub(super) const DECODE: &str = "decode_head";
pub(super) const AUXILIARY: &str = "auxiliary_head";

/// A convolution and what follows it, for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// The part of the network, as [`Cost::parts`](super::Cost::parts) names it.
    pub part: &'static str,
    /// The convolution's name in MMSegmentation's checkpoints.
    name: String,
    /// The weight's shape.
    shape: [u64; 4],
    /// What follows.
    after: After,
    /// Elements of the map that it reads.
    pub input: u64,
    /// Elements of the map that it writes.
    pub output: u64,
    pub macs: u64,
    /// Whether the map that it reads was put together for it alone.
    pub joined_input: bool,
    /// Whether its normalised output is kept: not if all its readers only copy, resize or add it.
    pub read_again: bool,
    /// Where in a residual block it is.
    pub block: Option<InBlock>,
}

/// What follows a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
enum After {
    Bias,
    /// A normalisation of this name.
    Norm(String),
}

/// A place in a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InBlock {
    /// The block's number in the network.
    pub index: usize,
    /// Whether the block ends with it.
    pub last: bool,
}

impl Layer {
    /// Values of the convolution's weight.
    pub fn weight(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Values of its weight, its bias and its normalisation.
    pub fn parameters(&self) -> u64 {
        let per_channel = match self.after {
            After::Bias => 1,
            After::Norm(_) => 2,
        };
        self.weight() + per_channel * self.shape[0]
    }

    /// Whether it is normalised.
    pub fn normalised(&self) -> bool {
        matches!(self.after, After::Norm(_))
    }
}

/// The shape of each parameter and running statistic by its name in MMSegmentation's checkpoints.
pub(crate) fn tensor_shapes(model: &SegmentorConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    for layer in layers(model, [1, 1]) {
        let shape = layer.shape.map(|extent| extent as usize);
        let mut add = |module: &str, tensor: &str, shape: &[usize]| {
            shapes.insert(format!("{module}.{tensor}"), shape.to_vec());
        };
        add(&layer.name, "weight", &shape);
        let channels = &shape[..1];
        match &layer.after {
            After::Bias => add(&layer.name, "bias", channels),
            After::Norm(norm) => {
                for tensor in ["weight", "bias", "running_mean", "running_var"] {
                    add(norm, tensor, channels);
                }
            }
        }
    }
    shapes
}

/// Lists the convolutions of one part after the other.
#[derive(Default)]
struct Walk {
    layers: Vec<Layer>,
    part: &'static str,
    block: Option<InBlock>,
}

/// A convolution's and its normalisation's name.
type Names = [String; 2];

impl Walk {
    /// A square convolution without bias from maps of `before` pixels to maps of `after`, normalised.
    fn strided(&mut self, [name, norm]: Names, [from, to, kernel]: [u64; 3], areas: [u64; 2]) {
        let shape = [to, from, kernel, kernel];
        self.push(name, shape, After::Norm(norm), from, areas);
    }

    /// The same with stride 1, in a head's `module`.
    fn conv(&mut self, module: &str, sizes: [u64; 3], area: u64) {
        let names = [
            self.in_head(&format!("{module}.conv")),
            self.in_head(&format!("{module}.bn")),
        ];
        self.strided(names, sizes, [area; 2]);
    }

    /// A 3x3 convolution of each channel by itself and a 1x1 convolution, both normalised.
    fn separable(&mut self, module: &str, from: u64, to: u64, area: u64) {
        self.depthwise(module, from, area);
        self.conv(&format!("{module}.pointwise_conv"), [from, to, 1], area);
    }

    /// The same of a concatenation.
    fn separable_of_joined(&mut self, module: &str, from: u64, to: u64, area: u64) {
        self.depthwise(module, from, area);
        self.of_joined();
        self.conv(&format!("{module}.pointwise_conv"), [from, to, 1], area);
    }

    fn depthwise(&mut self, module: &str, channels: u64, area: u64) {
        let name = self.in_head(&format!("{module}.depthwise_conv.conv"));
        let norm = self.in_head(&format!("{module}.depthwise_conv.bn"));
        self.push(
            name,
            [channels, 1, 3, 3],
            After::Norm(norm),
            channels,
            [area; 2],
        );
    }

    /// A 1x1 convolution with bias.
    fn classifier(&mut self, from: u64, to: u64, area: u64) {
        let name = self.in_head("conv_seg");
        self.push(name, [to, from, 1, 1], After::Bias, from, [area; 2]);
    }

    fn in_head(&self, module: &str) -> String {
        format!("{}.{module}", self.part)
    }

    fn push(&mut self, name: String, shape: [u64; 4], after: After, from: u64, areas: [u64; 2]) {
        let weight: u64 = shape.iter().product();
        self.layers.push(Layer {
            part: self.part,
            name,
            shape,
            after,
            input: from.saturating_mul(areas[0]),
            output: shape[0].saturating_mul(areas[1]),
            macs: weight.saturating_mul(areas[1]),
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

/// The convolutions of the network in the order of their forward pass, for an image of this height and
/// width.
pub(super) fn layers(model: &SegmentorConfig, [height, width]: [usize; 2]) -> Vec<Layer> {
    let area = |stride: usize| {
        let [height, width] = [height, width].map(|side| side.div_ceil(stride) as u64);
        height.saturating_mul(width)
    };
    let mut walk = Walk::default();

    let stem = model.stem_channels as u64;
    walk.part = "stem";
    // One sequence in which each convolution is followed by its normalisation and a ReLU.
    let names = |at: usize| [3 * at, 3 * at + 1].map(|part| format!("backbone.stem.{part}"));
    walk.strided(names(0), [3, stem / 2, 3], [area(1), area(2)]);
    walk.strided(names(1), [stem / 2, stem / 2, 3], [area(2); 2]);
    walk.strided(names(2), [stem / 2, stem, 3], [area(2); 2]);

    let expansion = model.backbone.expansion() as u64;
    let (mut from, mut before, mut index) = (stem, area(4), 0);
    for (stage, blocks) in model.backbone.blocks().into_iter().enumerate() {
        walk.part = ["layer1", "layer2", "layer3", "layer4"][stage];
        let width = (model.base_channels << stage) as u64;
        let (to, after) = (width * expansion, area(if stage == 0 { 4 } else { 8 }));
        for block in 0..blocks {
            let module = format!("backbone.{}.{block}", walk.part);
            let names = |at: usize| [format!("{module}.conv{at}"), format!("{module}.bn{at}")];
            let inside = InBlock { index, last: false };
            walk.block = Some(inside);
            let strided = [before, after];
            if model.backbone.has_bottlenecks() {
                walk.strided(names(1), [from, width, 1], [before; 2]);
                walk.strided(names(2), [width, width, 3], strided);
            } else {
                walk.strided(names(1), [from, width, 3], strided);
            }
            // A shortcut projects where the shape changes: stage 2 has the stride.
            if block == 0 && (from != to || stage == 1) {
                let names = [0, 1].map(|part| format!("{module}.downsample.{part}"));
                walk.strided(names, [from, to, 1], strided);
                walk.passed_on();
            }
            walk.block = Some(InBlock {
                last: true,
                ..inside
            });
            let (names, kernel) = match model.backbone.has_bottlenecks() {
                true => (names(3), 1),
                false => (names(2), 3),
            };
            walk.strided(names, [width, to, kernel], [after; 2]);
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
        walk.conv("convs.0", [c4, aux, 3], area(8));
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
            walk.conv("convs.0", [c5, head, 3], eighth);
            walk.conv("convs.1", [head, head, 3], eighth);
            walk.passed_on();
            walk.conv("conv_cat", [c5 + head, head, 3], eighth);
            walk.of_joined();
        }
        Method::PspNet => {
            for (level, bin) in [1, 2, 3, 6].into_iter().enumerate() {
                walk.conv(&format!("psp_modules.{level}.1"), [c5, head, 1], bin * bin);
                walk.passed_on();
            }
            walk.conv("bottleneck", [c5 + 4 * head, head, 3], eighth);
            walk.of_joined();
        }
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            walk.conv("image_pool.1", [c5, head, 1], 1);
            walk.passed_on();
            for (branch, &dilation) in model.dilations.iter().enumerate() {
                let module = format!("aspp_modules.{branch}");
                match (dilation, model.method) {
                    (1, _) => walk.conv(&module, [c5, head, 1], eighth),
                    (_, Method::DeepLabV3) => walk.conv(&module, [c5, head, 3], eighth),
                    _ => walk.separable(&module, c5, head, eighth),
                }
                walk.passed_on();
            }
            let joined = (model.dilations.len() as u64 + 1) * head;
            walk.conv("bottleneck", [joined, head, 3], eighth);
            walk.of_joined();
            if model.method == Method::DeepLabV3Plus {
                walk.passed_on();
                let c1 = model.c1_channels as u64;
                walk.conv("c1_bottleneck", [c2, c1, 1], quarter);
                walk.passed_on();
                walk.separable_of_joined("sep_bottleneck.0", head + c1, head, quarter);
                walk.separable("sep_bottleneck.1", head, head, quarter);
                last_area = quarter;
            }
        }
    }
    walk.classifier(head, classes, last_area);
}
