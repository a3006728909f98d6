//! The convolutions of a network, as `halfseg-backbone` and `halfseg-heads` lay them out, without building
//! it.

use std::collections::BTreeMap;

use halfseg_backbone::Style;

use crate::{Method, SegmentorConfig};

pub(super) const DECODE: &str = "decode_head";
pub(super) const AUXILIARY: &str = "auxiliary_head";
/// The parts of the backbone.
pub(super) const BACKBONE: [&str; 5] = ["stem", "layer1", "layer2", "layer3", "layer4"];

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
    /// Whether what is kept of its normalised output is a copy with channels dropped out.
    pub dropped_out: bool,
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
        if let Some(last) = self.layers.last_mut() {
            last.dropped_out = true;
        }
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
            dropped_out: false,
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
pub(super) fn layers(model: &SegmentorConfig, size: [usize; 2]) -> Vec<Layer> {
    let backbone = model.backbone_config();
    let area = |stride: usize| {
        let [height, width] = size.map(|side| side.div_ceil(stride) as u64);
        height.saturating_mul(width)
    };
    let areas = backbone.output_strides().map(area);
    let channels = backbone.stage_channels().map(|channels| channels as u64);
    let mut walk = Walk::default();
    stem(&mut walk, model, [area(1), area(2)]);
    stages(&mut walk, model, area(4), areas);

    let mut heads = vec![(DECODE, model.head_index)];
    if model.aux_head {
        heads.push((AUXILIARY, model.aux_index));
    }
    for (part, stage) in heads {
        walk.part = part;
        // What no network can have, `validate` refuses.
        let stage = stage.min(3);
        let from = Map {
            channels: channels[stage],
            area: areas[stage],
        };
        if part == AUXILIARY {
            let (aux, classes) = (model.aux_channels as u64, model.outputs() as u64);
            fcn(
                &mut walk,
                from,
                aux,
                model.aux_convs,
                model.aux_concat_input,
            );
            walk.classifier(aux, classes, from.area);
        } else {
            let low_level = Map {
                channels: channels[0],
                area: areas[0],
            };
            decode_head(&mut walk, model, low_level, from);
        }
    }
    walk.layers
}

/// A map that a head reads.
#[derive(Clone, Copy)]
struct Map {
    channels: u64,
    area: u64,
}

fn stem(walk: &mut Walk, model: &SegmentorConfig, [whole, half]: [u64; 2]) {
    let (image, stem) = (model.in_channels as u64, model.stem_channels as u64);
    walk.part = "stem";
    if !model.deep_stem {
        let names = ["backbone.conv1", "backbone.bn1"].map(str::to_owned);
        walk.strided(names, [image, stem, 7], [whole, half]);
        return;
    }
    // One sequence in which each convolution is followed by its normalisation and a ReLU.
    let names = |at: usize| [3 * at, 3 * at + 1].map(|part| format!("backbone.stem.{part}"));
    walk.strided(names(0), [image, stem / 2, 3], [whole, half]);
    walk.strided(names(1), [stem / 2, stem / 2, 3], [half; 2]);
    walk.strided(names(2), [stem / 2, stem, 3], [half; 2]);
}

fn stages(walk: &mut Walk, model: &SegmentorConfig, pooled: u64, areas: [u64; 4]) {
    let expansion = model.backbone.expansion() as u64;
    let (mut from, mut before, mut index) = (model.stem_channels as u64, pooled, 0);
    for (stage, blocks) in model.backbone.blocks().into_iter().enumerate() {
        walk.part = ["layer1", "layer2", "layer3", "layer4"][stage];
        let width = (model.base_channels << stage) as u64;
        let (to, after) = (width * expansion, areas[stage]);
        for block in 0..blocks {
            let module = format!("backbone.{}.{block}", walk.part);
            let names = |at: usize| [format!("{module}.conv{at}"), format!("{module}.bn{at}")];
            let inside = InBlock { index, last: false };
            walk.block = Some(inside);
            let strided = [before, after];
            if model.backbone.has_bottlenecks() {
                let inner = match model.style {
                    Style::Pytorch => [[before; 2], strided],
                    Style::Caffe => [strided, [after; 2]],
                };
                walk.strided(names(1), [from, width, 1], inner[0]);
                walk.strided(names(2), [width, width, 3], inner[1]);
            } else {
                walk.strided(names(1), [from, width, 3], strided);
            }
            let stride = match block {
                0 => model.stage_strides[stage],
                _ => 1,
            };
            // A shortcut projects where the shape changes.
            if from != to || stride != 1 {
                // The average before it is a part of the sequence.
                let first = usize::from(model.avg_down);
                let names = [0, 1].map(|part| format!("{module}.downsample.{}", first + part));
                let averages = model.avg_down && stride != 1;
                let read = if averages { after } else { before };
                walk.strided(names, [from, to, 1], [read, after]);
                if averages {
                    walk.of_joined();
                }
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
}

/// The 3x3 convolutions of an FCN head.
fn fcn(walk: &mut Walk, from: Map, head: u64, convs: usize, concat_input: bool) {
    let mut channels = from.channels;
    for conv in 0..convs {
        walk.conv(&format!("convs.{conv}"), [channels, head, 3], from.area);
        channels = head;
    }
    if concat_input {
        if convs > 0 {
            walk.passed_on();
        }
        walk.conv("conv_cat", [from.channels + head, head, 3], from.area);
        walk.of_joined();
    }
}

fn decode_head(walk: &mut Walk, model: &SegmentorConfig, low_level: Map, from: Map) {
    let (head, classes) = (model.head_channels as u64, model.outputs() as u64);
    let Map { channels, area } = from;
    let mut last_area = area;
    match model.method {
        Method::Fcn => fcn(walk, from, head, model.head_convs, model.head_concat_input),
        Method::PspNet => {
            for (level, &bins) in model.pool_scales.iter().enumerate() {
                let bins = (bins as u64).saturating_mul(bins as u64);
                walk.conv(&format!("psp_modules.{level}.1"), [channels, head, 1], bins);
                walk.passed_on();
            }
            let levels = model.pool_scales.len() as u64;
            walk.conv("bottleneck", [channels + levels * head, head, 3], area);
            walk.of_joined();
        }
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            walk.conv("image_pool.1", [channels, head, 1], 1);
            walk.passed_on();
            for (branch, &dilation) in model.dilations.iter().enumerate() {
                let module = format!("aspp_modules.{branch}");
                match (dilation, model.method) {
                    (1, _) => walk.conv(&module, [channels, head, 1], area),
                    (_, Method::DeepLabV3) => walk.conv(&module, [channels, head, 3], area),
                    _ => walk.separable(&module, channels, head, area),
                }
                walk.passed_on();
            }
            let joined = (model.dilations.len() as u64 + 1) * head;
            let kernel = if model.refine { 1 } else { 3 };
            walk.conv("bottleneck", [joined, head, kernel], area);
            walk.of_joined();
            if model.refine {
                walk.conv("refine", [head, head, 3], area);
            }
            if model.method == Method::DeepLabV3Plus {
                walk.passed_on();
                let c1 = model.c1_channels as u64;
                walk.conv("c1_bottleneck", [low_level.channels, c1, 1], low_level.area);
                walk.passed_on();
                walk.separable_of_joined("sep_bottleneck.0", head + c1, head, low_level.area);
                walk.separable("sep_bottleneck.1", head, head, low_level.area);
                last_area = low_level.area;
            }
        }
    }
    walk.classifier(head, classes, last_area);
}
