//! ResNetV1c with dilated stages.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use halfseg_layers::{ConvBnAct, ConvBnActConfig, branch, recomputed, stem_max_pool};

use crate::{Block, BlockConfig, Depth};

/// Strides of the four stages in the D8 variant: maps end at an eighth of the image's size.
const STRIDES: [usize; 4] = [1, 2, 1, 1];
/// Dilations of the four stages in the D8 variant.
const DILATIONS: [usize; 4] = [1, 1, 2, 4];

/// Configuration of a [`ResNet`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct ResNetConfig {
    /// Number of layers.
    pub depth: Depth,
    /// Channels that the stem ends with; even.
    #[config(default = 64)]
    pub stem_channels: usize,
    /// Width of the first stage; each further stage doubles it.
    #[config(default = 64)]
    pub base_channels: usize,
}

/// ResNetV1c-D8: a stem of three 3x3 convolutions (arXiv:1812.01187, figure 2b), four stages, of
/// which the last two trade their stride for dilation (arXiv:1706.05587).
///
/// The first block of a dilated stage has half the stage's dilation ("contracted"), as in
/// MMSegmentation's `ResNetV1c`.
#[derive(Module, Debug)]
pub struct ResNet {
    /// Three 3x3 convolutions, the first with stride 2.
    pub stem: Vec<ConvBnAct>,
    /// Gives c2, stride 4.
    pub layer1: Vec<Block>,
    /// Gives c3, stride 8.
    pub layer2: Vec<Block>,
    /// Gives c4, stride 8, dilation 2.
    pub layer3: Vec<Block>,
    /// Gives c5, stride 8, dilation 4.
    pub layer4: Vec<Block>,
    #[module(skip)]
    recompute: bool,
}

/// The maps that the four stages end with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stages {
    /// `[n, expansion * base, h / 4, w / 4]`, sizes rounded up.
    pub c2: Tensor<4>,
    /// `[n, 2 * expansion * base, h / 8, w / 8]`.
    pub c3: Tensor<4>,
    /// `[n, 4 * expansion * base, h / 8, w / 8]`.
    pub c4: Tensor<4>,
    /// `[n, 8 * expansion * base, h / 8, w / 8]`.
    pub c5: Tensor<4>,
}

impl ResNetConfig {
    /// ResNetV1c-18-D8.
    pub fn resnet18_d8() -> Self {
        Self::new(Depth::R18)
    }
    /// ResNetV1c-34-D8.
    pub fn resnet34_d8() -> Self {
        Self::new(Depth::R34)
    }
    /// ResNetV1c-50-D8.
    pub fn resnet50_d8() -> Self {
        Self::new(Depth::R50)
    }
    /// ResNetV1c-101-D8.
    pub fn resnet101_d8() -> Self {
        Self::new(Depth::R101)
    }
    /// ResNetV1c-152-D8.
    pub fn resnet152_d8() -> Self {
        Self::new(Depth::R152)
    }

    /// Channels of c2 to c5.
    pub fn stage_channels(&self) -> [usize; 4] {
        [1, 2, 4, 8].map(|factor| factor * self.base_channels * self.depth.expansion())
    }

    /// Draws the weights from `device`'s random numbers.
    ///
    /// # Panics
    /// If the stem's channels are odd.
    pub fn init(&self, device: &Device) -> ResNet {
        assert!(
            self.stem_channels.is_multiple_of(2),
            "a stem's channels must be even, not {}",
            self.stem_channels
        );
        let half = self.stem_channels / 2;
        let stem = vec![
            ConvBnActConfig::new([3, half], 3)
                .with_stride(2)
                .init(device),
            ConvBnActConfig::new([half, half], 3).init(device),
            ConvBnActConfig::new([half, self.stem_channels], 3).init(device),
        ];
        let mut in_channels = self.stem_channels;
        let [layer1, layer2, layer3, layer4] = [0, 1, 2, 3].map(|stage| {
            let layer = self.stage(stage, in_channels, device);
            in_channels = self.stage_channels()[stage];
            layer
        });
        ResNet {
            stem,
            layer1,
            layer2,
            layer3,
            layer4,
            recompute: false,
        }
    }

    fn stage(&self, stage: usize, in_channels: usize, device: &Device) -> Vec<Block> {
        let width = self.base_channels << stage;
        let out_channels = self.stage_channels()[stage];
        let dilation = DILATIONS[stage];
        let blocks = (0..self.depth.blocks()[stage]).map(|index| {
            let config = match index {
                0 => BlockConfig::new(in_channels, width)
                    .with_stride(STRIDES[stage])
                    .with_dilation(dilation.div_ceil(2)),
                _ => BlockConfig::new(out_channels, width).with_dilation(dilation),
            };
            match self.depth.has_bottlenecks() {
                true => Block::Bottleneck(config.init_bottleneck(device)),
                false => Block::Basic(config.init_basic(device)),
            }
        });
        blocks.collect()
    }
}

impl ResNet {
    /// Whether training recomputes each residual block in the backward pass instead of keeping its
    /// inner maps, see [`recomputed`]: less memory for one more forward pass. Off at first.
    pub fn with_gradient_checkpointing(mut self, on: bool) -> Self {
        self.recompute = on;
        self
    }

    /// `[n, 3, h, w]`, normalised, to the maps of the four stages, in the dtype of the current
    /// autocast policy.
    pub fn forward(&self, x: Tensor<4>) -> Stages {
        let x = self.stem.iter().fold(x, |x, conv| conv.forward(x));
        let run = |layer: &[Block], x| {
            layer.iter().fold(x, |x, block| match self.recompute {
                true => recomputed(block, x, Block::forward),
                false => block.forward(x),
            })
        };
        let c2 = run(&self.layer1, stem_max_pool(x));
        // Heads use c2 and c4, too.
        let c3 = run(&self.layer2, branch(c2.clone()));
        let c4 = run(&self.layer3, c3.clone());
        let c5 = run(&self.layer4, branch(c4.clone()));
        Stages { c2, c3, c4, c5 }
    }
}
