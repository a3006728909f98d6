//! The layers of burn-nn under a policy: bitwise what the casts by hand give, in the dtypes that PyTorch
//! gives them, and without a policy what burn-nn gives.

mod common;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::activation::ActivationConfig;
use burn::nn::attention::{
    MhaInput as BurnMhaInput, MultiHeadAttention, MultiHeadAttentionConfig,
    generate_autoregressive_mask,
};
use burn::nn::conv::DeformConv2dConfig;
use burn::nn::norm::NormalizationConfig;
use burn::nn::transformer::{
    PositionWiseFeedForwardConfig, TransformerDecoderConfig,
    TransformerDecoderInput as BurnDecoderInput, TransformerEncoderConfig,
    TransformerEncoderInput as BurnEncoderInput,
};
use burn::nn::{
    BatchNormConfig, BiGruConfig, BiLstmConfig, BiRnnConfig, EmbeddingConfig, GateController,
    GroupNormConfig, GruConfig, InstanceNormConfig, LayerNormConfig, Lstm, LstmConfig, LstmState,
    PReluConfig, RmsNormConfig, RnnConfig, RnnState, SoftplusConfig, SwiGluConfig,
};
use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, activation};
use common::{again, check_layer, check_unary, device, exact, policies, settled, values, vec};
use halfseg_amp::nn::{MhaInput, TransformerDecoderInput, TransformerEncoderInput};
use halfseg_amp::{Op, OpClass, Policy, Precision, autocast, nn};

/// A copy of a layer with its parameters in `dtype`.
fn in_dtype<M: Module>(layer: &M, dtype: FloatDType) -> M {
    struct Caster(FloatDType);
    impl ModuleMapper for Caster {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            Param::initialized(param.id, param.val().cast(self.0))
        }
    }
    layer.clone().map(&mut Caster(dtype))
}

#[test]
fn norms_and_activations_run_in_the_dtypes_of_their_class() {
    let device = device();
    let x = values([3, 8], 1, &device).mul_scalar(300.0);
    let layer = RmsNormConfig::new(8).init(&device);
    let full = OpClass::Full;
    check_layer("rms_norm", full, &layer, x.clone(), nn::rms_norm, |l, x| {
        l.forward(x)
    });

    let x = values([2, 8, 3], 2, &device);
    let norms: [(NormalizationConfig, OpClass); 4] = [
        (GroupNormConfig::new(2, 8).into(), full),
        (InstanceNormConfig::new(8).into(), full),
        (LayerNormConfig::new(3).into(), full),
        (RmsNormConfig::new(3).into(), full),
    ];
    for (config, class) in norms {
        let layer = config.init(&device);
        let name = format!("{config:?}");
        check_layer(
            &name,
            class,
            &layer,
            x.clone(),
            nn::normalization,
            |l, x| l.forward(x),
        );
    }
    // Batch norm keeps its own f32, whatever holds it.
    let layer = NormalizationConfig::from(BatchNormConfig::new(8)).init(&device);
    let half = x.clone().cast(FloatDType::F16);
    let found = autocast(&Policy::f16(), || nn::normalization(&layer, half.clone()));
    assert_eq!(found.dtype(), DType::F16);

    let x = values([3, 8], 3, &device).mul_scalar(4.0);
    let layer = SwiGluConfig::new(8, 5).with_bias(true).init(&device);
    let compute = OpClass::Compute;
    check_layer("swiglu", compute, &layer, x.clone(), nn::swiglu, |l, x| {
        l.forward(x)
    });
    for (config, class) in [
        (
            ActivationConfig::PRelu(PReluConfig::new().with_num_parameters(8)),
            compute,
        ),
        (ActivationConfig::SwiGlu(SwiGluConfig::new(8, 8)), compute),
    ] {
        let layer = config.init(&device);
        check_layer(
            "activation",
            class,
            &layer,
            x.clone(),
            nn::activation,
            |l, x| l.forward(x),
        );
    }
    for (config, class) in [
        (ActivationConfig::Softplus(SoftplusConfig::new()), full),
        (ActivationConfig::Gelu, OpClass::Input),
        (ActivationConfig::Tanh, OpClass::Input),
    ] {
        let layer = config.init(&device);
        let auto = |x: Tensor<2>| nn::activation(&layer, x);
        check_unary("activation", class, x.clone(), auto, |x| layer.forward(x));
    }
}

#[test]
fn deformable_convolutions_run_in_the_compute_dtype() {
    let device = device();
    let layer = DeformConv2dConfig::new([4, 6], [3, 3]).init(&device);
    let offset = values([2, 18, 5, 4], 2, &device);
    let mask = values([2, 9, 5, 4], 3, &device).abs();
    for mask in [None, Some(mask)] {
        let as_x =
            |x: &Tensor<4>, other: &Tensor<4>| other.clone().cast(FloatDType::from(x.dtype()));
        check_layer(
            "deform_conv2d",
            OpClass::Compute,
            &layer,
            values([2, 4, 7, 6], 1, &device),
            |layer, x| nn::deform_conv2d(layer, x, offset.clone(), mask.clone()),
            |layer, x| {
                let (offset, mask) = (as_x(&x, &offset), mask.as_ref().map(|mask| as_x(&x, mask)));
                layer.forward(x, offset, mask)
            },
        );
    }
}

#[test]
fn embeddings_stay_in_f32_unless_the_policy_says_otherwise() {
    let device = device();
    let layer = EmbeddingConfig::new(7, 4).init(&device);
    let indices = Tensor::<2, Int>::from_ints([[0, 6, 3], [3, 3, 1]], &device);
    let plain = layer.forward(indices.clone());
    for (half, policy) in policies() {
        let found = autocast(&policy, || nn::embedding(&layer, indices.clone()));
        assert_eq!(exact(found), exact(plain.clone()));
        let policy = policy.with_op(Op::Embedding, half_name(half));
        let found = autocast(&policy, || nn::embedding(&layer, indices.clone()));
        assert_eq!(exact(found), exact(plain.clone().cast(half)));
    }
    let mut policy = Policy::f16().with_module("0", Precision::F16);
    let model = vec![layer];
    assert_eq!(policy.bind(&model), []);
    let found = autocast(&policy, || nn::embedding(&model[0], indices));
    assert_eq!(exact(found), exact(plain.cast(FloatDType::F16)));
}

fn half_name(dtype: FloatDType) -> Precision {
    match dtype {
        FloatDType::F16 => Precision::F16,
        _ => Precision::Bf16,
    }
}

/// What the attention of a layer gives with casts by hand.
fn attend(
    layer: &MultiHeadAttention,
    [query, key, value]: [Tensor<3>; 3],
    masks: [Option<Tensor<4, Bool>>; 2],
    half: FloatDType,
) -> (Tensor<4>, Tensor<3>) {
    let cast = in_dtype(layer, half);
    let heads = |x: Tensor<3>, layer: &burn::nn::Linear| {
        let [batch, length, _] = x.dims();
        let x = layer.forward(x.cast(half));
        x.reshape([batch, length, cast.n_heads, cast.d_k])
            .swap_dims(1, 2)
    };
    let [batch, length, width] = query.dims();
    let (query, key) = (heads(query, &cast.query), heads(key, &cast.key));
    let value = heads(value, &cast.value);
    let mut scores = query
        .div_scalar((cast.d_k as f32).sqrt())
        .matmul(key.transpose());
    for mask in masks.into_iter().flatten() {
        scores = scores.mask_fill(mask, cast.min_float);
    }
    let weights = activation::softmax(scores.cast(FloatDType::F32), 3);
    let context = weights.clone().cast(half).matmul(value);
    let context = context.swap_dims(1, 2).reshape([batch, length, width]);
    (weights, cast.output.forward(context))
}

#[test]
fn attention_multiplies_in_half_precision_and_takes_its_softmax_in_f32() {
    let device = device();
    // A width whose root is no power of two.
    let layer = MultiHeadAttentionConfig::new(12, 2)
        .with_dropout(0.0)
        .init(&device);
    let query = values([2, 5, 12], 1, &device).mul_scalar(3.0);
    let memory = values([2, 4, 12], 2, &device).mul_scalar(3.0);
    let pad = Tensor::<2, Bool>::from_data(
        [[false, false, true, true], [false, false, false, true]],
        &device,
    );
    let input = |dtype: FloatDType| {
        let [query, memory] = [&query, &memory].map(|x| x.clone().cast(dtype));
        MhaInput::new(query, memory.clone(), memory).mask_pad(pad.clone())
    };
    for (half, policy) in policies() {
        for dtype in [FloatDType::F32, half] {
            let inputs = [&query, &memory, &memory].map(|x| x.clone().cast(dtype));
            let mask = pad.clone().reshape([2, 1, 1, 4]);
            let (weights, context) = attend(&layer, inputs, [Some(mask), None], half);
            let found = autocast(&policy, || nn::multi_head_attention(&layer, input(dtype)));
            assert_eq!(found.weights.dtype(), DType::F32);
            assert_eq!(exact(found.weights), exact(weights));
            assert_eq!(found.context.dtype(), DType::from(half));
            assert_eq!(exact(found.context), exact(context));
        }
    }

    // A mask of attention, and the cases in which burn-nn's own layer is right.
    let mask = generate_autoregressive_mask(2, 5, &device);
    let own = MhaInput::self_attn(query.clone()).mask_attn(mask.clone());
    let inputs = [&query, &query, &query].map(Tensor::clone);
    let as_scores = mask.clone().reshape([2, 1, 5, 5]);
    let (_, context) = attend(&layer, inputs, [None, Some(as_scores)], FloatDType::F16);
    let found = autocast(&Policy::f16(), || {
        nn::multi_head_attention(&layer, own.clone())
    });
    assert_eq!(exact(found.context), exact(context));
    let expected = layer.forward(BurnMhaInput::self_attn(query.clone()).mask_attn(mask));
    for policy in [
        Policy::disabled(),
        Policy::f16().with_op(Op::Linear, Precision::F32),
    ] {
        let plain = autocast(&policy, || nn::multi_head_attention(&layer, own.clone()));
        assert_eq!(plain.context.dims(), expected.context.dims());
        if !policy.is_enabled() {
            assert_eq!(exact(plain.context), exact(expected.context.clone()));
            assert_eq!(exact(plain.weights), exact(expected.weights.clone()));
        }
    }
    assert_eq!(
        exact(nn::multi_head_attention(&layer, own).context),
        exact(expected.context)
    );
}

#[test]
fn products_of_long_queries_and_keys_stay_finite_in_f16() {
    let device = device();
    let mut layer = MultiHeadAttentionConfig::new(256, 1)
        .with_dropout(0.0)
        .init(&device);
    for projection in [&mut layer.query, &mut layer.key] {
        projection.weight = Param::from_tensor(Tensor::<2>::eye(256, &device));
        projection.bias = None;
    }
    // Their product is 256 * 20^2 = 102400; divided by the root first it is 6400.
    let x = Tensor::<3>::full([1, 2, 256], 20.0, &device);
    let output = autocast(&Policy::f16(), || {
        nn::multi_head_attention(&layer, MhaInput::self_attn(x))
    });
    assert_eq!(vec(output.weights), [0.5; 4]);
}

#[test]
fn transformers_without_a_policy_are_those_of_burn_nn() {
    let device = device();
    let (x, memory) = (values([2, 5, 8], 1, &device), values([2, 3, 8], 2, &device));
    let pad = Tensor::<2, Bool>::from_data(
        [
            [false, false, false, false, true],
            [false, false, false, true, true],
        ],
        &device,
    );
    let mask = generate_autoregressive_mask(2, 5, &device);
    // All operations in f32 is a policy, too: it goes through the functions of this crate.
    let full = [Op::Linear, Op::Matmul]
        .into_iter()
        .fold(Policy::f16(), |policy, op| {
            policy.with_op(op, Precision::F32)
        });
    let close = |found: Tensor<3>, expected: Tensor<3>| {
        let errors = vec(found.sub(expected).abs());
        assert!(errors.iter().all(|error| *error < 2e-6), "{errors:?}");
    };
    for norm_first in [false, true] {
        let encoder = TransformerEncoderConfig::new(8, 16, 2, 2)
            .with_dropout(0.0)
            .with_norm_first(norm_first)
            .init(&device);
        let decoder = TransformerDecoderConfig::new(8, 16, 2, 2)
            .with_dropout(0.0)
            .with_norm_first(norm_first)
            .init(&device);
        let input = TransformerEncoderInput::new(x.clone())
            .mask_pad(pad.clone())
            .mask_attn(mask.clone());
        let burns = || {
            encoder.forward(
                BurnEncoderInput::new(x.clone())
                    .mask_pad(pad.clone())
                    .mask_attn(mask.clone()),
            )
        };
        let expected = settled(burns);
        let found = settled(|| nn::transformer_encoder(&encoder, input.clone()));
        assert_eq!(found, expected);
        close(
            autocast(&full, || nn::transformer_encoder(&encoder, input)),
            burns(),
        );

        let memory_pad = pad.clone().narrow(1, 2, 3);
        let input = TransformerDecoderInput::new(x.clone(), memory.clone())
            .target_mask_pad(pad.clone())
            .target_mask_attn(mask.clone())
            .memory_mask_pad(memory_pad.clone());
        let burns = || {
            decoder.forward(
                BurnDecoderInput::new(x.clone(), memory.clone())
                    .target_mask_pad(pad.clone())
                    .target_mask_attn(mask.clone())
                    .memory_mask_pad(memory_pad.clone()),
            )
        };
        let expected = settled(burns);
        let found = settled(|| nn::transformer_decoder(&decoder, input.clone()));
        assert_eq!(found, expected);
        close(
            autocast(&full, || nn::transformer_decoder(&decoder, input)),
            burns(),
        );
    }
    let layer = PositionWiseFeedForwardConfig::new(8, 16)
        .with_dropout(0.0)
        .init(&device);
    check_layer(
        "position_wise_feed_forward",
        OpClass::Compute,
        &layer,
        x,
        nn::position_wise_feed_forward,
        |l, x| l.forward(x),
    );
}

#[test]
fn an_encoder_layer_is_what_casts_by_hand_make_of_it() {
    let device = device();
    let encoder = TransformerEncoderConfig::new(8, 16, 2, 1)
        .with_dropout(0.0)
        .init(&device);
    let layer = &encoder.layers[0];
    let x = values([2, 5, 8], 1, &device);
    for (half, policy) in policies() {
        // Norms after the parts, which add up in f32.
        let by_hand = || {
            let f32 = FloatDType::F32;
            let (_, y) = attend(
                &layer.mha,
                [&x, &x, &x].map(Tensor::clone),
                [None, None],
                half,
            );
            let y = layer.norm_1.forward(x.clone() + y.cast(f32));
            let pwff = in_dtype(&layer.pwff, half);
            layer
                .norm_2
                .forward(y.clone() + pwff.forward(y.cast(half)).cast(f32))
        };
        let expected = settled(by_hand);
        let found = autocast(&policy, || {
            nn::transformer_encoder(&encoder, TransformerEncoderInput::new(x.clone()))
        });
        assert_eq!(exact(found), expected);
    }
}

fn gate(gate: &GateController, x: Tensor<2>, h: Tensor<2>) -> Tensor<2> {
    gate.input_transform.forward(x) + gate.hidden_transform.forward(h)
}

/// An LSTM in one dtype, by hand, over `[batch, length, width]`.
fn lstm_by_hand(layer: &Lstm, x: Tensor<3>, cell: Tensor<2>, hidden: Tensor<2>) -> [Tensor<3>; 2] {
    let (mut cell, mut hidden) = (cell, hidden);
    let mut steps = Vec::new();
    for x in x.iter_dim(1).map(|x| x.squeeze_dim::<2>(1)) {
        let of = |of: &GateController| gate(of, x.clone(), hidden.clone());
        let input = activation::sigmoid(of(&layer.input_gate));
        let forget = activation::sigmoid(of(layer.forget_gate.as_ref().unwrap()));
        let output = activation::sigmoid(of(&layer.output_gate));
        let candidate = of(&layer.cell_gate).tanh();
        cell = forget * cell + input * candidate;
        hidden = output * cell.clone().tanh();
        steps.push(hidden.clone());
    }
    [Tensor::stack(steps, 1), cell.unsqueeze_dim(1)]
}

#[test]
fn recurrent_layers_run_in_the_compute_dtype() {
    let device = device();
    let x = values([2, 5, 3], 1, &device).mul_scalar(2.0);
    let (cell, hidden) = (values([2, 4], 2, &device), values([2, 4], 3, &device));
    let layer = LstmConfig::new(3, 4, true).init(&device);
    for (half, policy) in policies() {
        let low = |x: &Tensor<2>| x.clone().cast(half);
        let by_hand = in_dtype(&layer, half);
        let expected = again(|| {
            let x = x.clone().cast(half);
            lstm_by_hand(&by_hand, x, low(&cell), low(&hidden)).map(exact)
        });
        let found = again(|| {
            let state = LstmState::new(cell.clone(), hidden.clone());
            let (y, state) = autocast(&policy, || nn::lstm(&layer, x.clone(), Some(state)));
            assert_eq!(y.dtype(), DType::from(half));
            let newest = y.clone().narrow(1, 4, 1).squeeze_dim::<2>(1);
            assert_eq!(exact(state.hidden), exact(newest));
            [y, state.cell.unsqueeze_dim(1)].map(exact)
        });
        assert_eq!(found, expected);
    }
}

/// All operations of a policy in f32 go through the loops of this crate, which must then be burn-nn's
/// to the bit; and gradients reach all parameters in f32.
#[test]
fn loops_over_time_are_those_of_burn_nn() {
    let device = device();
    let x = values([3, 5, 2], 1, &device);
    let policy = Policy::f16().with_op(Op::Rnn, Precision::F32);
    let same = |name: &str, ours: &dyn Fn() -> Vec<Tensor<3>>, burns: &dyn Fn() -> Vec<_>| {
        let bits = |outputs: Vec<Tensor<3>>| outputs.into_iter().map(exact).collect::<Vec<_>>();
        let found = again(|| bits(autocast(&policy, ours)));
        assert_eq!(found, again(|| bits(burns())), "{name}");
    };
    let row = |x: Tensor<2>| x.unsqueeze_dim::<3>(0);
    for (reverse, batch_first, given) in [
        (false, true, false),
        (true, false, true),
        (true, true, true),
    ] {
        let x = match batch_first {
            true => x.clone(),
            false => x.clone().swap_dims(0, 1),
        };
        let start = |seed| given.then(|| values([3, 4], seed, &device));
        let both = |seed| given.then(|| values([2, 3, 4], seed, &device));

        let layer = RnnConfig::new(2, 4, true)
            .with_reverse(reverse)
            .with_batch_first(batch_first)
            .with_clip(Some(0.3))
            .init(&device);
        let state = || start(7).map(RnnState::new);
        let all = |(y, state): (Tensor<3>, RnnState<2>)| vec![y, row(state.hidden)];
        same("rnn", &|| all(nn::rnn(&layer, x.clone(), state())), &|| {
            all(layer.forward(x.clone(), state()))
        });

        let layer = BiRnnConfig::new(2, 4, false)
            .with_batch_first(batch_first)
            .init(&device);
        let state = || both(8).map(RnnState::new);
        let all = |(y, state): (Tensor<3>, RnnState<3>)| vec![y, state.hidden];
        same(
            "bi_rnn",
            &|| all(nn::bi_rnn(&layer, x.clone(), state())),
            &|| all(layer.forward(x.clone(), state())),
        );

        let layer = LstmConfig::new(2, 4, true)
            .with_reverse(reverse)
            .with_batch_first(batch_first)
            .with_input_forget(reverse)
            .with_clip(Some(0.2))
            .init(&device);
        let state = || given.then(|| LstmState::new(start(1).unwrap(), start(2).unwrap()));
        let all =
            |(y, state): (Tensor<3>, LstmState<2>)| vec![y, row(state.cell), row(state.hidden)];
        same(
            "lstm",
            &|| all(nn::lstm(&layer, x.clone(), state())),
            &|| all(layer.forward(x.clone(), state())),
        );

        let layer = BiLstmConfig::new(2, 4, true)
            .with_batch_first(batch_first)
            .init(&device);
        let state = || given.then(|| LstmState::new(both(3).unwrap(), both(4).unwrap()));
        let all = |(y, state): (Tensor<3>, LstmState<3>)| vec![y, state.cell, state.hidden];
        same(
            "bi_lstm",
            &|| all(nn::bi_lstm(&layer, x.clone(), state())),
            &|| all(layer.forward(x.clone(), state())),
        );

        let layer = BiGruConfig::new(2, 4, true)
            .with_batch_first(batch_first)
            .with_reset_after(reverse)
            .init(&device);
        let all = |(y, state): (Tensor<3>, Tensor<3>)| vec![y, state];
        same(
            "bi_gru",
            &|| all(nn::bi_gru(&layer, x.clone(), both(5))),
            &|| all(layer.forward(x.clone(), both(5))),
        );
    }
    for reset_after in [false, true] {
        let layer = GruConfig::new(2, 4, true)
            .with_reset_after(reset_after)
            .init(&device);
        let state = || Some(values([3, 4], 6, &device));
        same(
            "gru",
            &|| vec![nn::gru(&layer, x.clone(), state())],
            &|| vec![layer.forward(x.clone(), state())],
        );
    }
}

#[test]
fn a_disabled_scope_within_another_meets_half_precision_inputs() {
    let device = device();
    let x = values([2, 5, 8], 1, &device).cast(FloatDType::F16);
    let wide = x.clone().cast(FloatDType::F32);
    let gru = GruConfig::new(8, 4, true).init(&device);
    let layer = MultiHeadAttentionConfig::new(8, 2)
        .with_dropout(0.0)
        .init(&device);
    let (y, attended) = autocast(&Policy::f16(), || {
        autocast(&Policy::disabled(), || {
            let input = MhaInput::self_attn(x.clone());
            let attended = nn::multi_head_attention(&layer, input).context;
            (nn::gru(&gru, x.clone(), None), attended)
        })
    });
    assert_eq!(exact(y), exact(gru.forward(wide.clone(), None)));
    let expected = layer.forward(BurnMhaInput::self_attn(wide)).context;
    for (found, expected) in vec(attended).into_iter().zip(vec(expected)) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn gradients_of_recurrent_layers_and_attention_are_f32() {
    let device = device();
    let x = values([2, 5, 8], 1, &device);
    let gru = GruConfig::new(8, 8, true).init(&device);
    let encoder = TransformerEncoderConfig::new(8, 16, 2, 1)
        .with_dropout(0.0)
        .init(&device);
    for (_, policy) in policies() {
        let loss = autocast(&policy, || {
            let x = nn::gru(&gru, x.clone(), None);
            let y = nn::transformer_encoder(&encoder, TransformerEncoderInput::new(x));
            halfseg_amp::ops::mean(halfseg_amp::ops::square(y))
        });
        let grads = loss.backward();
        let weight = gru.new_gate.hidden_transform.weight.val();
        let gradient = weight.grad(&grads).expect("the weight has a gradient");
        assert_eq!(gradient.dtype(), DType::F32);
        assert!(vec(gradient).iter().any(|value| *value != 0.0));
        let weight = encoder.layers[0].mha.key.weight.val();
        assert_eq!(weight.grad(&grads).expect("a gradient").dtype(), DType::F32);
    }
}
