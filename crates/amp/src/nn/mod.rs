//! Layers of burn-nn under the policy in force.
//!
//! A model made of burn-nn layers adopts autocast by calling these in its forward pass,
//! `nn::conv2d(&self.conv, x)` in place of `self.conv.forward(x)`. The layers, their parameters and
//! their checkpoints stay what they are; without a scope the functions are their `forward`.
//! Activations such as ReLU need no counterpart: they run in the dtype of their input.
//!
//! Every layer of burn-nn that holds weights has its function, but for `CrossAttention`, which is no
//! module and whose weights nothing can train. Attention and transformers take inputs of this module,
//! which are built as burn-nn's: [`MhaInput`], [`TransformerEncoderInput`] and
//! [`TransformerDecoderInput`].

mod attention;
mod layers;
mod norm;
mod operands;
mod recurrent;
mod whole;

pub use attention::{
    MhaInput, TransformerDecoderInput, TransformerEncoderInput, multi_head_attention,
    position_wise_feed_forward, transformer_decoder, transformer_decoder_layer,
    transformer_encoder, transformer_encoder_layer,
};
pub use layers::{
    activation, conv_transpose1d, conv_transpose2d, conv_transpose3d, conv1d, conv2d, conv3d,
    cross_entropy, deform_conv2d, embedding, linear, prelu, swiglu,
};
pub use norm::{batch_norm, group_norm, instance_norm, layer_norm, normalization, rms_norm};
pub use operands::cast_module;
pub use recurrent::{bi_gru, bi_lstm, bi_rnn, gru, lstm, rnn};
pub use whole::{Inputs, whole};
