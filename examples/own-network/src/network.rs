//! Burn's layers, run by the kernels of `halfseg-kernels` in the dtypes that `halfseg-amp` prescribes.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, PaddingConfig2d};
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Int, Tensor};
use halfseg_amp::{Op, cast, observe, operands, ops};
use halfseg_kernels::{
    Activation, Conv2dOptions, Running, batch_norm_train_moving, conv2d, conv2d_act,
    most_likely_classes, resize_bilinear,
};

/// A 3x3 convolution without bias, normalisation and ReLU.
#[derive(Module, Debug)]
struct Block {
    conv: Conv2d,
    norm: BatchNorm,
}

impl Block {
    fn new(channels: [usize; 2], stride: usize, dilation: usize, device: &Device) -> Self {
        let conv = Conv2dConfig::new(channels, [3, 3])
            .with_stride([stride; 2])
            .with_dilation([dilation; 2])
            .with_padding(PaddingConfig2d::Explicit(
                dilation, dilation, dilation, dilation,
            ))
            .with_bias(false);
        Self {
            conv: conv.init(device),
            norm: BatchNormConfig::new(channels[1]).init(device),
        }
    }

    /// `[n, c, h, w]` -> `[n, c_out, ceil(h / stride), ceil(w / stride)]`. In training, three kernels and the
    /// convolution's own; else the convolution alone, with the normalisation folded into its weight.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        if !x.device().is_autodiff() {
            return self.forward_folded(x);
        }
        let x = observe(Op::Conv2d, &self.conv.weight, x, |x| {
            let (x, weight) = operands(Op::Conv2d, x, &self.conv.weight);
            conv2d(x, weight, None, options(&self.conv))
        });
        let norm = &self.norm;
        // The kernel computes in f32 whatever the dtype of the map is, so the map is left as it is.
        let (output, [mean, variance]) = batch_norm_train_moving(
            x,
            norm.gamma.val(),
            norm.beta.val(),
            norm.epsilon,
            None,
            Activation::Relu,
            Running {
                mean: norm.running_mean.value_sync(),
                variance: norm.running_var.value_sync(),
                momentum: norm.momentum,
            },
        );
        norm.running_mean.update(mean);
        norm.running_var.update(variance);
        output
    }

    fn forward_folded(&self, x: Tensor<4>) -> Tensor<4> {
        let norm = &self.norm;
        let scale = norm.gamma.val() / (norm.running_var.value_sync() + norm.epsilon).sqrt();
        let shift = norm.beta.val() - norm.running_mean.value_sync() * scale.clone();
        observe(Op::Conv2d, &self.conv.weight, x, |x| {
            // The kernel rounds the weight after it scaled it.
            let (x, weight) = (cast(Op::Conv2d, x), self.conv.weight.val());
            let (affine, options) = ([scale.clone(), shift.clone()], options(&self.conv));
            conv2d_act(x, weight, affine, None, Activation::Relu, options)
        })
    }
}

/// What the kernels call the same.
fn options(conv: &Conv2d) -> Conv2dOptions {
    let padding = match conv.padding {
        PaddingConfig2d::Explicit(top, left, bottom, right) if (top, left) == (bottom, right) => {
            [top, left]
        }
        PaddingConfig2d::Valid => [0, 0],
        ref other => panic!("the kernels pad all sides alike, not {other:?}"),
    };
    Conv2dOptions {
        stride: conv.stride,
        padding,
        dilation: conv.dilation,
        groups: conv.groups,
    }
}

/// Burn draws a parameter when it is first used, on the device that it is on by then.
struct Draw;

impl ModuleVisitor for Draw {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

/// Half the size, a wider view, and a class for each pixel.
#[derive(Module, Debug)]
pub struct Network {
    blocks: Vec<Block>,
    classify: Conv2d,
}

impl Network {
    /// Draws the weights on the CPU, so that a seed gives the same ones on every device.
    pub fn new(classes: usize, device: &Device) -> Self {
        let host = match device.is_autodiff() {
            true => Device::flex().autodiff(),
            false => Device::flex(),
        };
        host.seed(1);
        let block = |channels, stride, dilation| Block::new(channels, stride, dilation, &host);
        let network = Self {
            blocks: vec![
                block([3, 16], 1, 1),
                block([16, 32], 2, 1),
                block([32, 32], 1, 2),
            ],
            classify: Conv2dConfig::new([32, classes], [1, 1]).init(&host),
        };
        network.visit(&mut Draw);
        // Not `to_device`, after which gradients would be those of the weights on the CPU.
        network.fork(device)
    }

    /// Pictures `[n, 3, h, w]` -> logits `[n, classes, ceil(h / 2), ceil(w / 2)]`.
    fn logits(&self, pictures: Tensor<4>) -> Tensor<4> {
        let x = self
            .blocks
            .iter()
            .fold(pictures, |x, block| block.forward(x));
        observe(Op::Conv2d, &self.classify.weight, x, |x| {
            let (x, weight) = operands(Op::Conv2d, x, &self.classify.weight);
            let bias = self
                .classify
                .bias
                .as_ref()
                .map(|bias| bias.val().cast(x.dtype()));
            conv2d(x, weight, bias, options(&self.classify))
        })
    }

    /// Pictures `[n, 3, h, w]` and the classes of their pixels `[n, h, w]` -> the mean cross-entropy, f32.
    pub fn loss(&self, pictures: Tensor<4>, labels: Tensor<3, Int>) -> Tensor<1> {
        let [n, _, h, w] = pictures.dims();
        let logits = self.logits(pictures);
        let [_, classes, ..] = logits.dims();
        // On GPUs Burn's own interpolation has no gradient; on the CPU this crate has no kernel for it.
        let logits = resize_bilinear(&logits, [h, w], false).unwrap_or_else(|| {
            let bilinear = InterpolateOptions::new(InterpolateMode::Bilinear)
                .with_align_corners(false)
                .with_output_size([h, w]);
            ops::interpolate(logits, bilinear)
        });
        let pixels = logits.permute([0, 2, 3, 1]).reshape([n * h * w, classes]);
        ops::cross_entropy(pixels, labels.reshape([n * h * w]))
    }

    /// Pictures `[n, 3, h, w]` -> the class of each pixel, `[n, h, w]`.
    pub fn classes(&self, pictures: Tensor<4>) -> Tensor<3, Int> {
        let [_, _, h, w] = pictures.dims();
        let logits = self.logits(pictures);
        most_likely_classes(&logits, [h, w], false)
            .expect("there are kernels for this on the CPU and on GPUs")
    }
}
