//! A small Transformer from layers of burn-nn, which classifies sequences of tokens, as a program has it
//! that knows no mixed precision.

use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Int, Tensor};

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
        let y = MhaInput::self_attn(self.norm1.forward(x.clone()));
        let y = self.attention.forward(y).context;
        let x = x + y;
        let y = self.norm2.forward(x.clone());
        let y = gelu(self.inner.forward(y));
        let y = self.outer.forward(y);
        x + y
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
        let x = self.norm.forward(x).mean_dim(1).squeeze_dim(1);
        self.classify.forward(x)
    }
}
