//! The four networks as nodes. Normalisations are folded into the convolutions before them.

use burn::tensor::Tensor;
use halfseg_backbone::{Block, ResNet};
use halfseg_heads::{Aspp, AsppBranch};
use halfseg_layers::{Conv2d, Conv2dOptions, ConvBnAct, DepthwiseSeparable};
use halfseg_segmentor::{DecodeHead, Segmentor};

use crate::OnnxError;
use crate::graph::{Graph, Map};
use crate::proto::AttributeProto;

type Made = Result<Map, OnnxError>;

/// The logits of `model` for `image`, at the decode head's own size.
pub(crate) fn head_logits(graph: &mut Graph, model: &Segmentor, image: Map) -> Made {
    let config = model.config();
    let align_corners = config.align_corners;
    let stages = backbone(graph, &model.backbone, config.stage_strides, image)?;
    let x = stages[config.head_index].clone();
    match &model.decode_head {
        DecodeHead::Fcn(head) => {
            let mut y = x.clone();
            for (index, conv) in head.convs.iter().enumerate() {
                y = graph.conv_relu(&format!("decode_head.convs.{index}"), conv, y)?;
            }
            if let Some(conv) = &head.conv_cat {
                let both = graph.join("decode_head.conv_cat", vec![x, y]);
                y = graph.conv_relu("decode_head.conv_cat", conv, both)?;
            }
            graph.classifier(&head.conv_seg, y)
        }
        DecodeHead::PspNet(head) => {
            let mut all = vec![x.clone()];
            let levels = head.psp_modules.iter().zip(&config.pool_scales);
            for (index, (conv, &bins)) in levels.enumerate() {
                let path = format!("decode_head.psp_modules.{index}");
                let level = graph.adaptive_average(&path, &x, bins);
                let level = graph.conv_relu(&path, conv, level)?;
                all.push(graph.resize(&path, level, &x, align_corners));
            }
            let all = graph.join("decode_head.bottleneck", all);
            let y = graph.conv_relu("decode_head.bottleneck", &head.bottleneck, all)?;
            graph.classifier(&head.conv_seg, y)
        }
        DecodeHead::DeepLabV3(head) => {
            let mut y = pyramid(graph, &head.aspp, x, align_corners)?;
            if let Some(conv) = &head.refine {
                y = graph.conv_relu("decode_head.refine", conv, y)?;
            }
            graph.classifier(&head.conv_seg, y)
        }
        DecodeHead::DeepLabV3Plus(head) => {
            let context = pyramid(graph, &head.aspp, x, align_corners)?;
            let low = stages[0].clone();
            let low = graph.conv_relu("decode_head.c1_bottleneck", &head.c1_bottleneck, low)?;
            let context = graph.resize("decode_head", context, &low, align_corners);
            let mut y = graph.join("decode_head.sep_bottleneck", vec![context, low]);
            for (index, conv) in head.sep_bottleneck.iter().enumerate() {
                y = graph.separable(&format!("decode_head.sep_bottleneck.{index}"), conv, y)?;
            }
            graph.classifier(&head.conv_seg, y)
        }
        _ => unreachable!("the four methods have these heads"),
    }
}

/// The maps of the four stages.
fn backbone(
    graph: &mut Graph,
    net: &ResNet,
    strides: [usize; 4],
    image: Map,
) -> Result<[Map; 4], OnnxError> {
    let mut x = image;
    if let Some(conv) = &net.conv1 {
        x = graph.conv_relu("backbone.conv1", conv, x)?;
    }
    for (index, conv) in net.stem.iter().enumerate() {
        x = graph.conv_relu(&format!("backbone.stem.{index}"), conv, x)?;
    }
    x = graph.window("backbone", "MaxPool", x, [3, 2, 1], vec![]);
    let mut stages = Vec::new();
    let layers = [&net.layer1, &net.layer2, &net.layer3, &net.layer4];
    for (stage, layer) in layers.into_iter().enumerate() {
        for (index, block) in layer.iter().enumerate() {
            let path = format!("backbone.layer{}.{index}", stage + 1);
            let stride = if index == 0 { strides[stage] } else { 1 };
            x = residual(graph, &path, block, stride, x)?;
        }
        stages.push(x.clone());
    }
    Ok(stages.try_into().expect("four layers were gone through"))
}

/// A block whose output is smaller than its input by `stride`.
fn residual(graph: &mut Graph, path: &str, block: &Block, stride: usize, x: Map) -> Made {
    let (convs, last, downsample) = match block {
        Block::Basic(block) => (vec![&block.conv1], &block.conv2, &block.downsample),
        Block::Bottleneck(block) => (
            vec![&block.conv1, &block.conv2],
            &block.conv3,
            &block.downsample,
        ),
    };
    let around = match downsample {
        None => x.clone(),
        Some(project) => {
            let path = format!("{path}.downsample");
            let [own, _] = project.conv.options().stride;
            // What the projection leaves of the stride is averaged before it (ResNet V1d).
            let average = stride / own;
            let x = match average {
                1 => x.clone(),
                _ => {
                    let attributes = vec![
                        AttributeProto::int("ceil_mode", 1),
                        AttributeProto::int("count_include_pad", 0),
                    ];
                    let window = [average, average, 0];
                    graph.window(&path, "AveragePool", x.clone(), window, attributes)
                }
            };
            graph.conv(&path, project, x)?
        }
    };
    let mut y = x;
    let number = convs.len() + 1;
    for (index, conv) in convs.into_iter().enumerate() {
        y = graph.conv_relu(&format!("{path}.conv{}", index + 1), conv, y)?;
    }
    let y = graph.conv(&format!("{path}.conv{number}"), last, y)?;
    let sum = graph.node(path, "Add", &[&y.name, &around.name], vec![]);
    Ok(graph.relu(path, Map { name: sum, ..y }))
}

/// Atrous spatial pyramid pooling.
fn pyramid(graph: &mut Graph, aspp: &Aspp, x: Map, align_corners: bool) -> Made {
    let path = "decode_head.aspp.image_pool";
    let pooled = graph.adaptive_average(path, &x, 1);
    let pooled = graph.conv_relu(path, &aspp.image_pool, pooled)?;
    let mut all = vec![graph.resize(path, pooled, &x, align_corners)];
    for (index, branch) in aspp.aspp_modules.iter().enumerate() {
        let path = format!("decode_head.aspp.aspp_modules.{index}");
        all.push(match branch {
            AsppBranch::Dense(conv) => graph.conv_relu(&path, conv, x.clone())?,
            AsppBranch::Separable(conv) => graph.separable(&path, conv, x.clone())?,
            _ => unreachable!("branches are dense or separable"),
        });
    }
    let path = "decode_head.aspp.bottleneck";
    let all = graph.join(path, all);
    graph.conv_relu(path, &aspp.bottleneck, all)
}

impl Graph {
    /// A convolution with its normalisation folded into it.
    fn conv(&mut self, path: &str, block: &ConvBnAct, x: Map) -> Made {
        let (scale, shift) = block.bn.affine();
        let (scale, shift) = (values(scale), values(shift));
        let mut weight = values(block.conv.weight.val());
        let per_output = weight.len() / scale.len();
        for (weight, scale) in weight.chunks_exact_mut(per_output).zip(&scale) {
            weight.iter_mut().for_each(|value| *value *= scale);
        }
        self.conv_of(path, &block.conv, weight, shift, x)
    }

    fn conv_relu(&mut self, path: &str, block: &ConvBnAct, x: Map) -> Made {
        let y = self.conv(path, block, x)?;
        Ok(self.relu(path, y))
    }

    fn separable(&mut self, path: &str, block: &DepthwiseSeparable, x: Map) -> Made {
        let depthwise = format!("{path}.depthwise_conv");
        let y = self.conv_relu(&depthwise, &block.depthwise_conv, x)?;
        self.conv_relu(&format!("{path}.pointwise_conv"), &block.pointwise_conv, y)
    }

    fn classifier(&mut self, conv: &Conv2d, x: Map) -> Made {
        let bias = conv.bias.as_ref().expect("classifiers have a bias");
        let (weight, bias) = (values(conv.weight.val()), values(bias.val()));
        self.conv_of("decode_head.conv_seg", conv, weight, bias, x)
    }

    fn conv_of(
        &mut self,
        path: &str,
        conv: &Conv2d,
        weight: Vec<f32>,
        bias: Vec<f32>,
        x: Map,
    ) -> Made {
        let dims = conv.weight.dims();
        let [channels, _, height, width] = dims;
        let Conv2dOptions {
            stride,
            padding,
            dilation,
            groups,
            ..
        } = conv.options();
        let weight = self.weight(&format!("{path}.weight"), &dims, weight)?;
        // Few, and added to sums: no format loses anything by them in f32.
        let bias = self.floats(&format!("{path}.bias"), &[channels], &bias);
        let [top, left] = padding;
        let attributes = vec![
            AttributeProto::ints("dilations", &dilation),
            AttributeProto::int("group", groups as i64),
            AttributeProto::ints("kernel_shape", &[height, width]),
            AttributeProto::ints("pads", &[top, left, top, left]),
            AttributeProto::ints("strides", &stride),
        ];
        let name = self.node(path, "Conv", &[&x.name, &weight, &bias], attributes);
        let size = x
            .size
            .map(|[h, w]| [h.div_ceil(stride[0]), w.div_ceil(stride[1])]);
        Ok(Map {
            name,
            channels,
            size,
        })
    }

    fn relu(&mut self, path: &str, x: Map) -> Map {
        let name = self.node(path, "Relu", &[&x.name], vec![]);
        Map { name, ..x }
    }

    /// A pooling by a square window: its side, step and padding.
    fn window(
        &mut self,
        path: &str,
        operator: &str,
        x: Map,
        [side, stride, padding]: [usize; 3],
        mut attributes: Vec<AttributeProto>,
    ) -> Map {
        attributes.extend([
            AttributeProto::ints("kernel_shape", &[side; 2]),
            AttributeProto::ints("pads", &[padding; 4]),
            AttributeProto::ints("strides", &[stride; 2]),
        ]);
        let name = self.node(path, operator, &[&x.name], attributes);
        let size = x.size.map(|size| size.map(|side| side.div_ceil(stride)));
        Map { name, size, ..x }
    }

    /// The channels of all maps, in their order.
    fn join(&mut self, path: &str, maps: Vec<Map>) -> Map {
        let names: Vec<&str> = maps.iter().map(|map| &*map.name).collect();
        Map {
            name: self.concat(path, &names, 1),
            channels: maps.iter().map(|map| map.channels).sum(),
            size: maps[0].size,
        }
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
