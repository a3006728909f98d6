//! Residual blocks.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use halfseg_layers::{ConvBnAct, ConvBnActConfig, avg_pool_to, fork};

use crate::Style;

/// Configuration of a residual block.
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct BlockConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the block's inner maps.
    pub width: usize,
    /// Step of the block, in pixels of its input.
    #[config(default = 1)]
    pub stride: usize,
    /// Distance between taps of the block's (first) 3x3 convolution, in pixels.
    #[config(default = 1)]
    pub dilation: usize,
    /// Whether the skip connection is averaged where the block has a stride (V1d), not thinned out.
    #[config(default = false)]
    pub avg_down: bool,
    /// Which convolution of a bottleneck has the stride.
    #[config(default = "Style::Pytorch")]
    pub style: Style,
}

/// A residual block of either kind.
#[allow(
    clippy::large_enum_variant,
    reason = "made once per network, never moved in a loop"
)]
#[derive(Module, Debug)]
pub enum Block {
    /// Two 3x3 convolutions.
    Basic(BasicBlock),
    /// 1x1, 3x3 and 1x1 convolutions.
    Bottleneck(Bottleneck),
}

/// Two 3x3 convolutions around a skip connection, for depths 18 and 34.
#[derive(Module, Debug)]
pub struct BasicBlock {
    /// Carries the stride and the dilation.
    pub conv1: ConvBnAct,
    /// Never dilated, as in MMSegmentation (`backbones/resnet.py`).
    pub conv2: ConvBnAct,
    /// Brings the skip connection to the output's shape where it differs.
    pub downsample: Option<ConvBnAct>,
    /// Side of the squares that are averaged before it (V1d), in pixels; 1 averages nothing.
    #[module(skip)]
    average: usize,
}

/// 1x1, 3x3 and 1x1 convolutions around a skip connection, for depths from 50.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// 1x1 to the block's width; carries the stride in [`Style::Caffe`].
    pub conv1: ConvBnAct,
    /// 3x3; carries the dilation, and the stride in [`Style::Pytorch`].
    pub conv2: ConvBnAct,
    /// 1x1 to four times the width.
    pub conv3: ConvBnAct,
    /// Brings the skip connection to the output's shape where it differs.
    pub downsample: Option<ConvBnAct>,
    /// Side of the squares that are averaged before it (V1d), in pixels; 1 averages nothing.
    #[module(skip)]
    average: usize,
}

impl BlockConfig {
    /// A [`BasicBlock`] that starts as the identity: its last normalisation has scale 0.
    pub fn init_basic(&self, device: &Device) -> BasicBlock {
        let Self {
            in_channels,
            width,
            stride,
            dilation,
            ..
        } = *self;
        BasicBlock {
            conv1: ConvBnActConfig::new([in_channels, width], 3)
                .with_stride(stride)
                .with_dilation(dilation)
                .init(device),
            conv2: ConvBnActConfig::new([width, width], 3)
                .with_scale(0.0)
                .init(device),
            downsample: self.downsample(width, device),
            average: self.average(),
        }
    }

    /// A [`Bottleneck`] that starts as the identity: its last normalisation has scale 0.
    pub fn init_bottleneck(&self, device: &Device) -> Bottleneck {
        let Self {
            in_channels,
            width,
            stride,
            dilation,
            ..
        } = *self;
        let out = 4 * width;
        let [first, second] = match self.style {
            Style::Pytorch => [1, stride],
            Style::Caffe => [stride, 1],
        };
        Bottleneck {
            conv1: ConvBnActConfig::new([in_channels, width], 1)
                .with_stride(first)
                .init(device),
            conv2: ConvBnActConfig::new([width, width], 3)
                .with_stride(second)
                .with_dilation(dilation)
                .init(device),
            conv3: ConvBnActConfig::new([width, out], 1)
                .with_scale(0.0)
                .init(device),
            downsample: self.downsample(out, device),
            average: self.average(),
        }
    }

    /// The stride is the convolution's (arXiv:1512.03385) or, in V1d, that of an average before it
    /// (arXiv:1812.01187, figure 2c).
    fn downsample(&self, out: usize, device: &Device) -> Option<ConvBnAct> {
        (self.stride != 1 || self.in_channels != out).then(|| {
            ConvBnActConfig::new([self.in_channels, out], 1)
                .with_stride(self.stride / self.average())
                .with_relu(false)
                .init(device)
        })
    }

    fn average(&self) -> usize {
        if self.avg_down { self.stride } else { 1 }
    }
}

impl Block {
    /// `[n, in_channels, h, w]` -> `[n, expansion * width, ceil(h / stride), ceil(w / stride)]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Basic(block) => block.forward(x),
            Self::Bottleneck(block) => block.forward(x),
        }
    }
}

impl BasicBlock {
    /// `[n, in_channels, h, w]` -> `[n, width, ceil(h / stride), ceil(w / stride)]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x, around] = fork(x);
        let y = self.conv1.forward(x);
        self.conv2
            .forward_add(y, skip(&self.downsample, self.average, around))
    }
}

impl Bottleneck {
    /// `[n, in_channels, h, w]` -> `[n, 4 * width, ceil(h / stride), ceil(w / stride)]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x, around] = fork(x);
        let y = self.conv1.forward(x);
        let y = self.conv2.forward(y);
        self.conv3
            .forward_add(y, skip(&self.downsample, self.average, around))
    }
}

fn skip(downsample: &Option<ConvBnAct>, average: usize, x: Tensor<4>) -> Tensor<4> {
    match (downsample, average) {
        (Some(project), 1) => project.forward(x),
        (Some(project), side) => project.forward(avg_pool_to(x, side)),
        (None, _) => x,
    }
}
