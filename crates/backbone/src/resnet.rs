//! ResNets with stages that may be dilated.

use burn::config::Config;
use burn::module::{Flag, Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use halfseg_layers::{ConvBnAct, ConvBnActConfig, branch, recomputed, stem_max_pool};

use crate::{Block, BlockConfig, Depth, Style};

/// Configuration of a [`ResNet`]. The defaults are MMSegmentation's `ResNetV1c` at output stride 8.
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct ResNetConfig {
    /// Number of layers.
    pub depth: Depth,
    /// Channels of the image.
    #[config(default = 3)]
    pub in_channels: usize,
    /// Channels that the stem ends with; even if it is deep.
    #[config(default = 64)]
    pub stem_channels: usize,
    /// Width of the first stage; each further stage doubles it.
    #[config(default = 64)]
    pub base_channels: usize,
    /// Whether the stem is three 3x3 convolutions (V1c and V1d; arXiv:1812.01187, figure 2b), not one 7x7.
    #[config(default = true)]
    pub deep_stem: bool,
    /// Whether skip connections are averaged where a stage has a stride (V1d; figure 2c there).
    #[config(default = false)]
    pub avg_down: bool,
    /// Which convolution of a bottleneck has the stride.
    #[config(default = "Style::Pytorch")]
    pub style: Style,
    /// Strides of the four stages. The stem divides an image's size by 4 before.
    #[config(default = "[1, 2, 1, 1]")]
    pub strides: [usize; 4],
    /// Distances between the taps of the four stages' 3x3 convolutions, in pixels.
    #[config(default = "[1, 1, 2, 4]")]
    pub dilations: [usize; 4],
    /// Whether the first block of a dilated stage has half the stage's dilation.
    #[config(default = true)]
    pub contract_dilation: bool,
    /// Dilations of the last stage's blocks in the place of the stage's (arXiv:1706.05587, section
    /// 3.2.2), at least one for each block; empty for none.
    #[config(default = "vec![]")]
    pub multi_grid: Vec<usize>,
}

/// A ResNet (arXiv:1512.03385): a stem, and four stages of residual blocks, of which the last may trade
/// their stride for dilation (arXiv:1706.05587).
#[derive(Module, Debug)]
pub struct ResNet {
    /// One 7x7 convolution with stride 2; `None` if the stem is deep.
    pub conv1: Option<ConvBnAct>,
    /// Three 3x3 convolutions, the first with stride 2; none if the stem is not deep.
    pub stem: Vec<ConvBnAct>,
    /// Gives c2.
    pub layer1: Vec<Block>,
    /// Gives c3.
    pub layer2: Vec<Block>,
    /// Gives c4.
    pub layer3: Vec<Block>,
    /// Gives c5.
    pub layer4: Vec<Block>,
    #[module(skip)]
    recompute: bool,
}

/// The maps that the four stages end with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stages {
    /// `[n, expansion * base, h / 4, w / 4]` if the first stage has stride 1, sizes rounded up.
    pub c2: Tensor<4>,
    /// `[n, 2 * expansion * base, h / 8, w / 8]` at output strides from 8 on.
    pub c3: Tensor<4>,
    /// `[n, 4 * expansion * base, h / 8, w / 8]` at output stride 8, else half as high and wide.
    pub c4: Tensor<4>,
    /// `[n, 8 * expansion * base, h / s, w / s]` at output stride `s`.
    pub c5: Tensor<4>,
}

impl Stages {
    /// The map that a stage ends with, 0 for c2 to 3 for c5.
    ///
    /// # Panics
    /// If there is no such stage.
    pub fn at(&self, stage: usize) -> Tensor<4> {
        let maps = [&self.c2, &self.c3, &self.c4, &self.c5];
        maps.into_iter()
            .nth(stage)
            .unwrap_or_else(|| panic!("a ResNet has stages 0 to 3, not {stage}"))
            .clone()
    }
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

    /// By what the four stages' maps are smaller than the image.
    pub fn output_strides(&self) -> [usize; 4] {
        let mut stride = 4usize;
        self.strides.map(|factor| {
            stride = stride.saturating_mul(factor);
            stride
        })
    }

    /// Dilation of a block's 3x3 convolution, in pixels; stages and blocks count from 0.
    ///
    /// # Panics
    /// If there is no such stage, or the grid has no number for the block.
    pub fn dilation(&self, stage: usize, block: usize) -> usize {
        let dilation = self.dilations[stage];
        match block {
            _ if stage == 3 && !self.multi_grid.is_empty() => self.multi_grid[block],
            0 if self.contract_dilation && dilation > 1 => dilation / 2,
            _ => dilation,
        }
    }

    /// Draws the weights from `device`'s random numbers.
    ///
    /// # Panics
    /// If the channels of a deep stem are odd, or the grid has fewer numbers than the last stage blocks.
    pub fn init(&self, device: &Device) -> ResNet {
        let conv1 = (!self.deep_stem).then(|| {
            ConvBnActConfig::new([self.in_channels, self.stem_channels], 7)
                .with_stride(2)
                .init(device)
        });
        let stem = match self.deep_stem {
            true => self.init_stem(device),
            false => vec![],
        };
        let mut in_channels = self.stem_channels;
        let [layer1, layer2, layer3, layer4] = [0, 1, 2, 3].map(|stage| {
            let layer = self.stage(stage, in_channels, device);
            in_channels = self.stage_channels()[stage];
            layer
        });
        ResNet {
            conv1,
            stem,
            layer1,
            layer2,
            layer3,
            layer4,
            recompute: false,
        }
    }

    fn init_stem(&self, device: &Device) -> Vec<ConvBnAct> {
        let (all, half) = (self.stem_channels, self.stem_channels / 2);
        assert!(
            all.is_multiple_of(2),
            "a deep stem's channels must be even, not {all}"
        );
        vec![
            ConvBnActConfig::new([self.in_channels, half], 3)
                .with_stride(2)
                .init(device),
            ConvBnActConfig::new([half, half], 3).init(device),
            ConvBnActConfig::new([half, all], 3).init(device),
        ]
    }

    fn stage(&self, stage: usize, in_channels: usize, device: &Device) -> Vec<Block> {
        let width = self.base_channels << stage;
        let out_channels = self.stage_channels()[stage];
        let blocks = (0..self.depth.blocks()[stage]).map(|index| {
            let config = match index {
                0 => BlockConfig::new(in_channels, width).with_stride(self.strides[stage]),
                _ => BlockConfig::new(out_channels, width),
            };
            let config = config
                .with_dilation(self.dilation(stage, index))
                .with_avg_down(self.avg_down)
                .with_style(self.style);
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

    /// Whether training recomputes each residual block.
    pub fn recomputes(&self) -> bool {
        self.recompute
    }

    /// With the stem and the first `stages` stages as they are: their parameters get no gradients, and their
    /// normalisations use running statistics, which stay, too; `None` freezes nothing, `Some(0)` the stem alone. As
    /// `frozen_stages` of MMSegmentation's `ResNet`, where -1 freezes nothing.
    pub fn with_frozen_stages(mut self, stages: Option<usize>) -> Self {
        let Some(stages) = stages else {
            return self;
        };
        self.conv1 = self.conv1.freeze();
        self.stem = self.stem.freeze();
        let layers = [
            &mut self.layer1,
            &mut self.layer2,
            &mut self.layer3,
            &mut self.layer4,
        ];
        for layer in layers.into_iter().take(stages) {
            *layer = std::mem::take(layer).freeze();
        }
        self
    }

    /// With running statistics in the place of those of the batch in all normalisations, which stay as they are;
    /// scales and shifts are trained. As `norm_eval` of MMSegmentation's `ResNet`.
    pub fn with_frozen_statistics(self) -> Self {
        struct Freeze;
        impl ModuleMapper for Freeze {
            fn map_flag(&mut self, training: Param<Flag>) -> Param<Flag> {
                training.with_value(false)
            }
        }
        self.map(&mut Freeze)
    }

    /// `[n, in_channels, h, w]`, normalised, to the maps of the four stages, in the dtype of the current
    /// autocast policy.
    pub fn forward(&self, x: Tensor<4>) -> Stages {
        let stem = self.conv1.iter().chain(&self.stem);
        let x = stem.fold(x, |x, conv| conv.forward(x));
        let run = |layer: &[Block], x| {
            layer.iter().fold(x, |x, block| match self.recompute {
                true => recomputed(block, x, Block::forward),
                false => block.forward(x),
            })
        };
        let c2 = run(&self.layer1, stem_max_pool(x));
        // Heads may use each of them, too.
        let c3 = run(&self.layer2, branch(c2.clone()));
        let c4 = run(&self.layer3, branch(c3.clone()));
        let c5 = run(&self.layer4, branch(c4.clone()));
        Stages { c2, c3, c4, c5 }
    }
}
