//! A small Transformer from layers of burn-nn, which classifies sequences of tokens, adapted to mixed
//! precision.

use burn::module::Module;
use burn::nn::attention::{MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Int, Tensor};
use halfseg_amp::nn::{self, MhaInput};
use halfseg_amp::{add, ops};

#[derive(Module, Debug)]
pub struct Layer {
    pub norm1: LayerNorm,
    pub attention: MultiHeadAttention,
    pub norm2: LayerNorm,
    pub inner: Linear,
    pub outer: Linear,
}

#[derive(Module, Debug)]
pub struct Transformer {
    pub tokens: Embedding,
    pub layers: Vec<Layer>,
    pub norm: LayerNorm,
    pub classify: Linear,
}

impl Layer {
    fn new(width: usize, device: &Device) -> Self {
        Self {
            norm1: LayerNormConfig::new(width).init(device),
            attention: MultiHeadAttentionConfig::new(width, 2)
                .with_dropout(0.0)
                .init(device),
            norm2: LayerNormConfig::new(width).init(device),
            inner: LinearConfig::new(width, 4 * width).init(device),
            outer: LinearConfig::new(4 * width, width).init(device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = MhaInput::self_attn(nn::layer_norm(&self.norm1, x.clone()));
        let y = nn::multi_head_attention(&self.attention, y).context;
        let x = add(x, y);
        let y = nn::layer_norm(&self.norm2, x.clone());
        let y = gelu(nn::linear(&self.inner, y));
        let y = nn::linear(&self.outer, y);
        add(x, y)
    }
}

impl Transformer {
    pub fn new(tokens: usize, width: usize, classes: usize, device: &Device) -> Self {
        Self {
            tokens: EmbeddingConfig::new(tokens, width).init(device),
            layers: (0..2).map(|_| Layer::new(width, device)).collect(),
            norm: LayerNormConfig::new(width).init(device),
            classify: LinearConfig::new(width, classes).init(device),
        }
    }

    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        let x = self.tokens.forward(tokens);
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(x));
        let x = ops::mean_dim(nn::layer_norm(&self.norm, x), 1).squeeze_dim(1);
        nn::linear(&self.classify, x)
    }
}
