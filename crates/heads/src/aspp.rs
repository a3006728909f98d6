//! Atrous spatial pyramid pooling.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use halfseg_layers::{
    ConvBnAct, ConvBnActConfig, DepthwiseSeparable, DepthwiseSeparableConfig, adaptive_avg_pool2d,
};

/// Configuration of an [`Aspp`].
#[derive(Config, Debug)]
#[non_exhaustive]
pub struct AsppConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of each branch and of the output.
    pub channels: usize,
    /// Distances between taps, one branch each, in pixels; 1 stands for a 1x1 convolution.
    /// The published models have 1, 12, 24, 36 at stride 8.
    #[config(default = "vec![1, 12, 24, 36]")]
    pub dilations: Vec<usize>,
    /// Whether branches with a dilation are depthwise separable (DeepLabV3+).
    #[config(default = false)]
    pub separable: bool,
    /// Height and width of the kernel that joins the branches, in taps; odd. 1 in torchvision's models.
    #[config(default = 3)]
    pub bottleneck_kernel: usize,
    /// Whether corners are aligned when the pooled map is resized.
    #[config(default = false)]
    pub align_corners: bool,
}

/// A branch of an [`Aspp`].
#[allow(
    clippy::large_enum_variant,
    reason = "made once per network, never moved in a loop"
)]
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum AsppBranch {
    /// One convolution.
    Dense(ConvBnAct),
    /// Depthwise, then pointwise.
    Separable(DepthwiseSeparable),
}

/// Views the input at several scales at once: its average, and convolutions of several dilations,
/// convolved together by a dense 3x3, or the paper's 1x1 (arXiv:1706.05587, section 3.3).
#[derive(Module, Debug)]
pub struct Aspp {
    /// 1x1 convolution of the input's average.
    pub image_pool: ConvBnAct,
    /// One branch per dilation.
    pub aspp_modules: Vec<AsppBranch>,
    /// Over all branches, the pooled one first.
    pub bottleneck: ConvBnAct,
    align_corners: bool,
}

impl AsppConfig {
    /// Draws the weights from `device`'s random numbers.
    pub fn init(&self, device: &Device) -> Aspp {
        let shape = [self.in_channels, self.channels];
        let branch = |&dilation: &usize| match (dilation, self.separable) {
            (1, _) => AsppBranch::Dense(ConvBnActConfig::new(shape, 1).init(device)),
            (_, false) => AsppBranch::Dense(
                ConvBnActConfig::new(shape, 3)
                    .with_dilation(dilation)
                    .init(device),
            ),
            (_, true) => AsppBranch::Separable(
                DepthwiseSeparableConfig::new(shape)
                    .with_dilation(dilation)
                    .init(device),
            ),
        };
        let all = (1 + self.dilations.len()) * self.channels;
        Aspp {
            image_pool: ConvBnActConfig::new(shape, 1).init(device),
            aspp_modules: self.dilations.iter().map(branch).collect(),
            bottleneck: ConvBnActConfig::new([all, self.channels], self.bottleneck_kernel)
                .init(device),
            align_corners: self.align_corners,
        }
    }
}

impl AsppBranch {
    /// `[n, in_channels, h, w]` -> `[n, channels, h, w]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Dense(conv) => conv.forward(x),
            Self::Separable(conv) => conv.forward(x),
        }
    }
}

impl Aspp {
    /// `[n, in_channels, h, w]` -> `[n, channels, h, w]`.
    ///
    /// # Panics
    /// If a batch of 1 trains: the pooled branch has one value per channel.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let pooled = self
            .image_pool
            .forward(adaptive_avg_pool2d(x.clone(), [1, 1]));
        let branches = self.aspp_modules.iter();
        let maps = branches.map(|branch| branch.forward(x.clone())).collect();
        self.bottleneck
            .forward_joined(vec![pooled], maps, vec![], self.align_corners)
    }
}
