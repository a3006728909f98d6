//! ResNet-18 from layers of burn-nn, adapted to mixed precision.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use halfseg_amp::{add, nn};

#[derive(Module, Debug)]
pub struct Block {
    pub conv1: Conv2d,
    pub bn1: BatchNorm,
    pub conv2: Conv2d,
    pub bn2: BatchNorm,
    pub downsample: Option<(Conv2d, BatchNorm)>,
}

#[derive(Module, Debug)]
pub struct ResNet18 {
    pub conv1: Conv2d,
    pub bn1: BatchNorm,
    pub pool: MaxPool2d,
    pub blocks: Vec<Block>,
    pub average: AdaptiveAvgPool2d,
    pub fc: Linear,
}

fn conv(channels: [usize; 2], kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let pad = kernel / 2;
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
        .with_bias(false)
        .init(device)
}

fn norm(channels: usize, device: &Device) -> BatchNorm {
    BatchNormConfig::new(channels).init(device)
}

impl Block {
    fn new(inputs: usize, outputs: usize, stride: usize, device: &Device) -> Self {
        let projects = stride != 1 || inputs != outputs;
        Self {
            conv1: conv([inputs, outputs], 3, stride, device),
            bn1: norm(outputs, device),
            conv2: conv([outputs, outputs], 3, 1, device),
            bn2: norm(outputs, device),
            downsample: projects.then(|| {
                let project = conv([inputs, outputs], 1, stride, device);
                (project, norm(outputs, device))
            }),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = nn::conv2d(&self.conv1, x.clone());
        let y = relu(nn::batch_norm(&self.bn1, y));
        let y = nn::conv2d(&self.conv2, y);
        let y = nn::batch_norm(&self.bn2, y);
        let x = match &self.downsample {
            Some((conv, bn)) => nn::batch_norm(bn, nn::conv2d(conv, x)),
            None => x,
        };
        relu(add(y, x))
    }
}

impl ResNet18 {
    pub fn new(classes: usize, width: usize, device: &Device) -> Self {
        let stages = [(1, 1, 1), (1, 2, 2), (2, 4, 2), (4, 8, 2)];
        let blocks = stages.into_iter().flat_map(|(inputs, outputs, stride)| {
            let (inputs, outputs) = (inputs * width, outputs * width);
            let first = Block::new(inputs, outputs, stride, device);
            [first, Block::new(outputs, outputs, 1, device)]
        });
        Self {
            conv1: conv([3, width], 7, 2, device),
            bn1: norm(width, device),
            pool: MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(),
            blocks: blocks.collect(),
            average: AdaptiveAvgPool2dConfig::new([1, 1]).init(),
            fc: LinearConfig::new(8 * width, classes).init(device),
        }
    }

    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = nn::conv2d(&self.conv1, x);
        let x = relu(nn::batch_norm(&self.bn1, x));
        let x = self.pool.forward(x);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let x = self.average.forward(x);
        nn::linear(&self.fc, x.flatten(1, 3))
    }
}
