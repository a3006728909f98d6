//! Attention and what transformers are made of.

use burn::nn::attention as layers;
use burn::nn::attention::{MhaOutput, MultiHeadAttention};
use burn::nn::transformer::{
    PositionWiseFeedForward as FeedForward, TransformerDecoder, TransformerDecoderLayer,
    TransformerEncoder, TransformerEncoderLayer,
};
use burn::nn::{Dropout, LayerNorm};
use burn::tensor::{Bool, Tensor, activation};

use super::layers::{activation as activate, linear};
use super::norm::layer_norm;
use super::operands::as_it_is;
use crate::{Op, add, cast, matmul_operands, observe};

/// What [`multi_head_attention`] takes: burn-nn's input of the same name, whose fields are private.
#[derive(Clone, Debug)]
pub struct MhaInput {
    /// `[batch, length_1, d_model]`
    pub query: Tensor<3>,
    /// `[batch, length_2, d_model]`
    pub key: Tensor<3>,
    /// `[batch, length_2, d_model]`
    pub value: Tensor<3>,
    /// True where a position of the keys is padding, `[batch, length_2]`.
    pub mask_pad: Option<Tensor<2, Bool>>,
    /// True where a query must not attend to a key, `[batch, length_1, length_2]`.
    pub mask_attn: Option<Tensor<3, Bool>>,
}

impl MhaInput {
    /// A sequence that attends to itself, `[batch, length, d_model]`.
    pub fn self_attn(tensor: Tensor<3>) -> Self {
        Self::new(tensor.clone(), tensor.clone(), tensor)
    }

    /// Queries that attend to keys and values, without masks.
    pub fn new(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Self {
        Self {
            query,
            key,
            value,
            mask_pad: None,
            mask_attn: None,
        }
    }

    /// Sets the mask of padding.
    pub fn mask_pad(mut self, mask: Tensor<2, Bool>) -> Self {
        self.mask_pad = Some(mask);
        self
    }

    /// Sets the mask of attention.
    pub fn mask_attn(mut self, mask: Tensor<3, Bool>) -> Self {
        self.mask_attn = Some(mask);
        self
    }
}

impl From<MhaInput> for layers::MhaInput {
    fn from(input: MhaInput) -> Self {
        let mut taken = layers::MhaInput::new(input.query, input.key, input.value);
        if let Some(mask) = input.mask_pad {
            taken = taken.mask_pad(mask);
        }
        if let Some(mask) = input.mask_attn {
            taken = taken.mask_attn(mask);
        }
        taken
    }
}

/// [`MultiHeadAttention::forward`] with projections and products in the compute dtype and the softmax
/// in f32.
///
/// Queries are divided by the root of the width before their product with the keys, not after it, so
/// that the product does not leave f16 first.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn multi_head_attention(layer: &MultiHeadAttention, input: MhaInput) -> MhaOutput {
    let of_one_dtype = [&input.key, &input.value]
        .iter()
        .all(|x| x.dtype() == input.query.dtype());
    if of_one_dtype && as_it_is(&input.query, &layer.query.weight) {
        return layer.forward(input.into());
    }
    let MhaInput {
        query,
        key,
        value,
        mask_pad,
        mask_attn,
    } = input;
    let [batch, queries, d_model] = query.dims();
    let [_, keys, _] = key.dims();
    let heads = |x: Tensor<3>, length: usize| {
        x.reshape([batch, length, layer.n_heads, layer.d_k])
            .swap_dims(1, 2)
    };
    let query = heads(linear(&layer.query, query), queries);
    let key = heads(linear(&layer.key, key), keys);
    let value = heads(linear(&layer.value, value), keys);

    let root = (layer.d_k as f32).sqrt();
    let mut scores = observe(
        Op::Matmul,
        "attention scores",
        (query, key),
        |(query, key)| {
            let (query, key) = matmul_operands(query, key);
            query.div_scalar(root).matmul(key.transpose())
        },
    );
    if let Some(mask) = mask_pad {
        scores = scores.mask_fill(mask.reshape([batch, 1, 1, keys]), layer.min_float);
    }
    if let Some(mask) = mask_attn {
        scores = scores.mask_fill(mask.reshape([batch, 1, queries, keys]), layer.min_float);
    }
    let weights = observe(Op::Softmax, "attention weights", scores, |scores| {
        let scores = cast(Op::Softmax, scores);
        match layer.quiet_softmax {
            true => activation::quiet_softmax(scores, 3),
            false => activation::softmax(scores, 3),
        }
    });
    let weights = layer.dropout.forward(weights);

    let operands = (weights.clone(), value);
    let context = observe(
        Op::Matmul,
        "attention context",
        operands,
        |(weights, value)| {
            let (weights, value) = matmul_operands(weights, value);
            weights.matmul(value)
        },
    );
    let context = context.swap_dims(1, 2).reshape([batch, queries, d_model]);
    let context = linear(&layer.output, context);
    MhaOutput { weights, context }
}

/// [`PositionWiseFeedForward::forward`](FeedForward::forward) with its products in the compute dtype.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn position_wise_feed_forward<const D: usize>(layer: &FeedForward, x: Tensor<D>) -> Tensor<D> {
    let x = activate(&layer.activation, linear(&layer.linear_inner, x));
    linear(&layer.linear_outer, layer.dropout.forward(x))
}

/// What [`transformer_encoder`] takes: burn-nn's input of the same name, whose fields are private.
#[derive(Clone, Debug)]
pub struct TransformerEncoderInput {
    /// `[batch, length, d_model]`
    pub tensor: Tensor<3>,
    /// True where a position is padding, `[batch, length]`.
    pub mask_pad: Option<Tensor<2, Bool>>,
    /// True where a position must not attend to another, `[batch, length, length]`.
    pub mask_attn: Option<Tensor<3, Bool>>,
}

impl TransformerEncoderInput {
    /// Sequences without masks.
    pub fn new(tensor: Tensor<3>) -> Self {
        Self {
            tensor,
            mask_pad: None,
            mask_attn: None,
        }
    }

    /// Sets the mask of padding.
    pub fn mask_pad(mut self, mask: Tensor<2, Bool>) -> Self {
        self.mask_pad = Some(mask);
        self
    }

    /// Sets the mask of attention.
    pub fn mask_attn(mut self, mask: Tensor<3, Bool>) -> Self {
        self.mask_attn = Some(mask);
        self
    }
}

/// [`TransformerEncoder::forward`] with products in the compute dtype, softmax and norms in f32.
///
/// # Shapes
/// - `input.tensor`: `[batch, length, d_model]`, as the output
///
/// # Panics
///
/// As the layer's `forward`.
pub fn transformer_encoder(
    layer: &TransformerEncoder,
    input: TransformerEncoderInput,
) -> Tensor<3> {
    layer.layers.iter().fold(input.tensor, |x, layer| {
        transformer_encoder_layer(layer, x, input.mask_pad.clone(), input.mask_attn.clone())
    })
}

/// [`TransformerEncoderLayer::forward`] with products in the compute dtype, softmax and norms in f32.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn transformer_encoder_layer(
    layer: &TransformerEncoderLayer,
    x: Tensor<3>,
    mask_pad: Option<Tensor<2, Bool>>,
    mask_attn: Option<Tensor<3, Bool>>,
) -> Tensor<3> {
    let attend = |x: Tensor<3>| {
        let input = MhaInput {
            mask_pad,
            mask_attn,
            ..MhaInput::self_attn(x)
        };
        multi_head_attention(&layer.mha, input).context
    };
    let feed_forward = |x| position_wise_feed_forward(&layer.pwff, x);
    let (dropout, first) = (&layer.dropout, layer.norm_first);
    let x = residual(x, attend, dropout, (&layer.norm_2, &layer.norm_1), first);
    residual(
        x,
        feed_forward,
        dropout,
        (&layer.norm_1, &layer.norm_2),
        first,
    )
}

/// `x` and what `part` makes of it, after a dropout. The first of the norms is for the input of the part,
/// if norms come first, the second for the sum otherwise: burn-nn takes different ones.
fn residual(
    x: Tensor<3>,
    part: impl FnOnce(Tensor<3>) -> Tensor<3>,
    dropout: &Dropout,
    (before, after): (&LayerNorm, &LayerNorm),
    norm_first: bool,
) -> Tensor<3> {
    if norm_first {
        let y = part(layer_norm(before, x.clone()));
        return add(x, dropout.forward(y));
    }
    let y = part(x.clone());
    layer_norm(after, add(x, dropout.forward(y)))
}

/// What [`transformer_decoder`] takes: burn-nn's input of the same name, whose fields are private.
#[derive(Clone, Debug)]
pub struct TransformerDecoderInput {
    /// What is decoded, `[batch, length_1, d_model]`.
    pub target: Tensor<3>,
    /// True where a position of the target is padding, `[batch, length_1]`.
    pub target_mask_pad: Option<Tensor<2, Bool>>,
    /// True where a position of the target must not attend to another, `[batch, length_1, length_1]`.
    pub target_mask_attn: Option<Tensor<3, Bool>>,
    /// What the encoder gave, `[batch, length_2, d_model]`.
    pub memory: Tensor<3>,
    /// True where a position of the memory is padding, `[batch, length_2]`.
    pub memory_mask_pad: Option<Tensor<2, Bool>>,
    /// True where a target must not attend to the memory, `[batch, length_1, length_2]`.
    pub memory_mask_attn: Option<Tensor<3, Bool>>,
}

impl TransformerDecoderInput {
    /// Target and memory without masks.
    pub fn new(target: Tensor<3>, memory: Tensor<3>) -> Self {
        Self {
            target,
            target_mask_pad: None,
            target_mask_attn: None,
            memory,
            memory_mask_pad: None,
            memory_mask_attn: None,
        }
    }

    /// Sets the mask of padding of the memory.
    pub fn memory_mask_pad(mut self, mask: Tensor<2, Bool>) -> Self {
        self.memory_mask_pad = Some(mask);
        self
    }

    /// Sets the mask of attention to the memory.
    pub fn memory_mask_attn(mut self, mask: Tensor<3, Bool>) -> Self {
        self.memory_mask_attn = Some(mask);
        self
    }

    /// Sets the mask of padding of the target.
    pub fn target_mask_pad(mut self, mask: Tensor<2, Bool>) -> Self {
        self.target_mask_pad = Some(mask);
        self
    }

    /// Sets the mask of attention within the target.
    pub fn target_mask_attn(mut self, mask: Tensor<3, Bool>) -> Self {
        self.target_mask_attn = Some(mask);
        self
    }
}

/// [`TransformerDecoder::forward`] with products in the compute dtype, softmax and norms in f32.
///
/// # Shapes
/// - `input.target`: `[batch, length_1, d_model]`, as the output
/// - `input.memory`: `[batch, length_2, d_model]`
///
/// # Panics
///
/// As the layer's `forward`.
pub fn transformer_decoder(
    layer: &TransformerDecoder,
    mut input: TransformerDecoderInput,
) -> Tensor<3> {
    for layer in &layer.layers {
        input.target = transformer_decoder_layer(layer, input.clone());
    }
    input.target
}

/// The target that [`TransformerDecoderLayer::forward`] gives, with products in the compute dtype,
/// softmax and norms in f32.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn transformer_decoder_layer(
    layer: &TransformerDecoderLayer,
    input: TransformerDecoderInput,
) -> Tensor<3> {
    let memory = input.memory;
    let itself = |x: Tensor<3>| {
        let input = MhaInput {
            mask_pad: input.target_mask_pad,
            mask_attn: input.target_mask_attn,
            ..MhaInput::self_attn(x)
        };
        multi_head_attention(&layer.self_attn, input).context
    };
    let across = |x: Tensor<3>| {
        let input = MhaInput {
            mask_pad: input.memory_mask_pad,
            mask_attn: input.memory_mask_attn,
            ..MhaInput::new(x, memory.clone(), memory)
        };
        multi_head_attention(&layer.cross_attn, input).context
    };
    let feed_forward = |x| position_wise_feed_forward(&layer.pwff, x);
    let (dropout, first) = (&layer.dropout, layer.norm_first);
    let [one, two, three] = [&layer.norm_1, &layer.norm_2, &layer.norm_3];
    let x = residual(input.target, itself, dropout, (three, one), first);
    let x = residual(x, across, dropout, (one, two), first);
    residual(x, feed_forward, dropout, (two, three), first)
}
