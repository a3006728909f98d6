//! Whole models of burn-nn's layers: how few lines change, and that what they compute then is, to the
//! bit, what casts by hand compute.

#[path = "models/resnet18_amp.rs"]
mod resnet18_amp;
#[path = "models/transformer_amp.rs"]
mod transformer_amp;

// Compiled, so that what is compared with is a program.
#[allow(dead_code, reason = "only its text is compared")]
#[path = "models/resnet18.rs"]
mod resnet18;
#[allow(dead_code, reason = "only its text is compared")]
#[path = "models/transformer.rs"]
mod transformer;

mod common;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear};
use burn::optim::SgdConfig;
use burn::tensor::{FloatDType, Int, Tensor, activation};
use common::{again, device, exact, policies, settled, values, vec};
use halfseg_amp::{DynamicScale, GradScaler, autocast, ops};
use resnet18_amp::ResNet18;
use transformer_amp::{Layer, Transformer};

/// Lines outside imports and comments that are in `after` and not, at their place, in `before`.
fn changed_lines(before: &str, after: &str) -> usize {
    fn lines(text: &str) -> Vec<&str> {
        let skip = |line: &&str| !line.starts_with("use ") && !line.starts_with("//");
        text.lines().filter(skip).collect()
    }
    let (before, after) = (lines(before), lines(after));
    // The length of the longest common subsequence, row by row.
    let mut row = vec![0; before.len() + 1];
    for line in &after {
        let mut diagonal = 0;
        for (place, other) in before.iter().enumerate() {
            let above = row[place + 1];
            row[place + 1] = match line == other {
                true => diagonal + 1,
                false => above.max(row[place]),
            };
            diagonal = above;
        }
    }
    after.len() - row[before.len()]
}

#[test]
fn a_model_is_adapted_in_at_most_ten_lines() {
    let resnet = changed_lines(
        include_str!("models/resnet18.rs"),
        include_str!("models/resnet18_amp.rs"),
    );
    let transformer = changed_lines(
        include_str!("models/transformer.rs"),
        include_str!("models/transformer_amp.rs"),
    );
    assert_eq!((resnet, transformer), (9, 9));

    assert_eq!(changed_lines("a\nb\nc\n", "a\nx\nc\ny\n"), 2);
}

fn in_dtype<M: Module>(layer: &M, dtype: FloatDType) -> M {
    struct Caster(FloatDType);
    impl ModuleMapper for Caster {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            Param::initialized(param.id, param.val().cast(self.0))
        }
    }
    layer.clone().map(&mut Caster(dtype))
}

/// Convolution in half precision, batch norm in f32, its output in half precision.
fn conv_norm(conv: &Conv2d, norm: &BatchNorm, x: Tensor<4>, half: FloatDType) -> Tensor<4> {
    let x = in_dtype(conv, half).forward(x.cast(half));
    norm.forward(x.cast(FloatDType::F32)).cast(half)
}

fn resnet_by_hand(model: &ResNet18, x: Tensor<4>, half: FloatDType) -> Tensor<2> {
    let x = activation::relu(conv_norm(&model.conv1, &model.bn1, x, half));
    let mut x = model.pool.forward(x);
    for block in &model.blocks {
        let y = activation::relu(conv_norm(&block.conv1, &block.bn1, x.clone(), half));
        let y = conv_norm(&block.conv2, &block.bn2, y, half);
        if let Some((conv, norm)) = &block.downsample {
            x = conv_norm(conv, norm, x, half);
        }
        x = activation::relu(y + x);
    }
    let x = model.average.forward(x).flatten(1, 3);
    in_dtype(&model.fc, half).forward(x)
}

/// A copy that shares no running statistics.
fn copy<M: Module>(model: &M) -> M {
    model.valid().train()
}

#[test]
fn resnet_18_is_what_casts_by_hand_make_of_it() {
    let device = device();
    let start = ResNet18::new(5, 8, &device);
    let x = values([2, 3, 48, 40], 1, &device).mul_scalar(3.0);
    for (half, policy) in policies() {
        // The output, and gradients of some weights.
        let run = |forward: &dyn Fn(&ResNet18) -> Tensor<2>| {
            again(|| {
                let model = copy(&start);
                let y = forward(&model);
                let output = exact(y.clone());
                let grads = y.cast(FloatDType::F32).square().mean().backward();
                let blocks = &model.blocks;
                let layers = [&model.conv1, &blocks[2].conv1, &blocks[7].conv2];
                let grads = layers.map(|layer| layer.weight.val().grad(&grads));
                (output, grads.map(|grad| exact(grad.expect("a gradient"))))
            })
        };
        let found = run(&|model| autocast(&policy, || model.forward(x.clone())));
        let expected = run(&|model| resnet_by_hand(model, x.clone(), half));
        assert_eq!(found, expected);
    }
    // Without a scope it is burn-nn's.
    let x = values([2, 3, 48, 40], 2, &device);
    let plain = settled(|| resnet_by_hand(&copy(&start), x.clone(), FloatDType::F32));
    assert_eq!(settled(|| copy(&start).forward(x.clone())), plain);
}

fn transformer_by_hand(model: &Transformer, tokens: Tensor<2, Int>, half: FloatDType) -> Tensor<2> {
    let f32 = FloatDType::F32;
    let linear = |layer: &Linear, x: Tensor<3>| in_dtype(layer, half).forward(x.cast(half));
    let attend = |layer: &Layer, x: Tensor<3>| {
        let attention = &layer.attention;
        let [batch, length, width] = x.dims();
        let heads = |layer: &Linear| {
            let y = linear(layer, x.clone());
            y.reshape([batch, length, attention.n_heads, attention.d_k])
                .swap_dims(1, 2)
        };
        let query = heads(&attention.query).div_scalar((attention.d_k as f32).sqrt());
        let scores = query.matmul(heads(&attention.key).transpose()).cast(f32);
        let weights = activation::softmax(scores, 3).cast(half);
        let context = weights.matmul(heads(&attention.value)).swap_dims(1, 2);
        linear(&attention.output, context.reshape([batch, length, width]))
    };
    let mut x = model.tokens.forward(tokens);
    for layer in &model.layers {
        let y = attend(layer, layer.norm1.forward(x.clone()));
        x = x + y.cast(f32);
        let y = activation::gelu(linear(&layer.inner, layer.norm2.forward(x.clone())));
        x = x + linear(&layer.outer, y).cast(f32);
    }
    let x: Tensor<2> = model.norm.forward(x).mean_dim(1).squeeze_dim(1);
    in_dtype(&model.classify, half).forward(x.cast(half))
}

fn tokens() -> (Tensor<2, Int>, Tensor<1, Int>) {
    let device = device();
    let tokens = [
        [1, 4, 2, 0, 7],
        [3, 3, 6, 5, 1],
        [0, 2, 7, 7, 4],
        [6, 1, 5, 3, 2],
    ];
    (
        Tensor::from_ints(tokens, &device),
        Tensor::from_ints([0, 1, 1, 0], &device),
    )
}

#[test]
fn a_transformer_is_what_casts_by_hand_make_of_it() {
    let model = Transformer::new(8, 16, 3, &device());
    for (half, policy) in policies() {
        let found = settled(|| autocast(&policy, || model.forward(tokens().0)));
        let expected = settled(|| transformer_by_hand(&model, tokens().0, half));
        assert_eq!(found, expected);
    }
}

/// Whether a loss well below the first was reached: from some of the random weights that a network may
/// begin with, plain steps of this size go up again after that.
fn fell(losses: &[f32]) -> bool {
    losses.iter().any(|loss| *loss < 0.7 * losses[0])
}

#[test]
fn both_learn_in_f16_and_bf16() {
    let device = device();
    let images = values([4, 3, 32, 32], 3, &device);
    for (half, policy) in policies() {
        let start = match half {
            FloatDType::F16 => GradScaler::dynamic(DynamicScale::torch()),
            _ => GradScaler::disabled(),
        };
        let (mut optimizer, mut scaler) = (SgdConfig::new().init(), start.clone());
        let mut model = ResNet18::new(2, 4, &device);
        let mut losses = Vec::new();
        for _ in 0..12 {
            let (updated, _) = scaler.train_step(&policy, model, &mut optimizer, 0.05, |model| {
                let loss = ops::cross_entropy(model.forward(images.clone()), tokens().1);
                losses.extend(vec(loss.clone()));
                loss
            });
            model = updated;
        }
        assert!(fell(&losses), "{losses:?}");

        let (mut optimizer, mut scaler) = (SgdConfig::new().init(), start);
        let mut model = Transformer::new(8, 16, 2, &device);
        let mut losses = Vec::new();
        // The weights are drawn anew each time; with some of them the loss takes long to fall.
        for _ in 0..200 {
            let (updated, _) = scaler.train_step(&policy, model, &mut optimizer, 0.1, |model| {
                let loss = ops::cross_entropy(model.forward(tokens().0), tokens().1);
                losses.extend(vec(loss.clone()));
                loss
            });
            model = updated;
        }
        assert!(fell(&losses), "{losses:?}");
    }
}
