//! Policies: what their settings do, in which models, and what files of them may hold.

mod common;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use common::{Net, Weights, computes_in, device, exact, values, vec};
use halfseg_amp::parameter_paths;
use halfseg_amp::{AmpError, CastReport, GradScaler, Op, Policy, Precision};
use halfseg_amp::{autocast, cast_report, nn, ops};
use serde_json::{Value, json};

#[test]
fn a_disabled_policy_makes_no_cast() {
    let model = Net::new(&device());
    let (_, report) = cast_report(|| autocast(&Policy::disabled(), || model.loss(1)));
    assert_eq!(report, CastReport::default());
    let (_, report) = cast_report(|| model.loss(1));
    assert_eq!(report, CastReport::default());
}

#[test]
fn overrides_hold_for_operations_and_modules() {
    let device = device();
    let model = Net::new(&device);
    let x = values([2, 3, 6, 6], 1, &device);
    let dtypes = |policy: &Policy| {
        autocast(policy, || {
            let y = nn::conv2d(&model.conv, x.clone());
            let z = nn::linear(
                &model.head,
                y.clone().mean_dim(2).mean_dim(3).reshape([2, 8]),
            );
            (y.dtype(), z.dtype())
        })
    };
    assert_eq!(dtypes(&Policy::f16()), (DType::F16, DType::F16));
    let policy = Policy::f16().with_op(Op::Conv2d, Precision::F32);
    assert_eq!(dtypes(&policy), (DType::F32, DType::F16));

    let mut policy = Policy::f16().with_module("head", Precision::F32);
    assert_eq!(policy.bind(&model), []);
    assert_eq!(dtypes(&policy), (DType::F16, DType::F32));
    // The module wins over the operation, and only whole names count.
    let mut policy = Policy::f16()
        .with_op(Op::Linear, Precision::F32)
        .with_module("head", Precision::F16)
        .with_module("hea", Precision::F32)
        .with_module("decoder.x", Precision::F32);
    let unmatched = policy.bind(&model);
    let paths: Vec<_> = unmatched.iter().map(|module| &*module.path).collect();
    assert_eq!(paths, ["decoder.x", "hea"]);
    assert_eq!(
        unmatched[1].to_string(),
        "the model has no module `hea`; the nearest is `head`"
    );
    assert_eq!(dtypes(&policy), (DType::F16, DType::F16));
}

#[test]
fn paths_leave_out_variants_of_enums() {
    #[derive(Module, Debug)]
    enum Head {
        Plain(Linear),
    }
    #[derive(Module, Debug)]
    struct WithHead {
        heads: Vec<Head>,
    }
    let model = WithHead {
        heads: vec![Head::Plain(LinearConfig::new(2, 2).init(&device()))],
    };
    let mut policy = Policy::f16().with_module("heads.0", Precision::F32);
    assert_eq!(policy.bind(&model), []);
    let mut policy = Policy::f16().with_module("heads.0.Plain", Precision::F32);
    assert_eq!(policy.bind(&model)[0].nearest, "heads.0");
    let paths = parameter_paths(&model);
    let found: Vec<_> = paths.iter().map(|p| (p.id, &*p.path)).collect();
    let Head::Plain(head) = &model.heads[0];
    let bias = head.bias.as_ref().unwrap();
    let expected = [
        (head.weight.id, "heads.0.weight"),
        (bias.id, "heads.0.bias"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_shared_parameter_has_each_of_its_paths_and_is_named_by_the_first() {
    let weights = Weights::new([1.0], &device());
    let model = vec![weights.clone(), weights];
    let paths = parameter_paths(&model);
    let found: Vec<_> = paths.iter().map(|p| &*p.path).collect();
    assert_eq!(found, ["0.weight", "1.weight"]);
    assert_eq!(paths[0].id, paths[1].id);

    let mut scaler = GradScaler::mmcv_static();
    scaler.begin(&model);
    let loss = model[0].weight.val().mul_scalar(1e38).sum();
    let grads = scaler.scale(loss).backward(&model);
    assert_eq!(scaler.unscale(grads).culprits(), ["0.weight"]);
}

#[test]
#[should_panic(expected = "call `policy.bind(&model)` before `autocast`")]
fn an_unbound_policy_is_noticed() {
    let policy = Policy::f16().with_module("head", Precision::F32);
    let model = Net::new(&device());
    autocast(&policy, || model.loss(1));
}

#[test]
fn policies_survive_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    let policy = Policy::f16()
        .with_output(Precision::F32)
        .with_op(Op::Interpolate, Precision::F16)
        .with_module("decode_head.conv_seg", Precision::F32);
    policy.save(&path).unwrap();
    assert_eq!(Policy::load(&path).unwrap(), policy);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    std::fs::write(&path, r#"{"compute": "f16"}"#).unwrap();
    assert_eq!(Policy::load(&path).unwrap(), Policy::f16());
    let refused = |text: &str, expect: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let error = Policy::load(&path).unwrap_err().to_string();
        for part in [&["policy.json"], expect].concat() {
            assert!(
                error.contains(part),
                "{text}: expected `{part}` in `{error}`"
            );
        }
    };
    refused("", &["EOF"]);
    refused("{}}", &["line 1"]);
    refused("[]", &["expected a map"]);
    refused(
        r#"{"compute": "f16", "compute": "bf16"}"#,
        &["duplicate field `compute`"],
    );
    refused(
        r#"{"compute": "f16", "ops": {"conv2d": "f32", "conv2d": "f16"}}"#,
        &["duplicate field `conv2d`", "line 1"],
    );
    refused(
        r#"{"compute": "f16", "modules": {"a": "f32", "b": "f32", "a": "f32"}}"#,
        &["duplicate field `a`"],
    );
    refused(
        "{}",
        &["`compute`: expected f16, bf16, f32 or input, found nothing"],
    );
    refused(r#"{"compute": "f8"}"#, &["`compute`", "bf16", "f8"]);
    refused(
        r#"{"conpute": "f16"}"#,
        &["`conpute`", "nearest valid key is `compute`"],
    );
    refused(
        r#"{"compute": "f16", "ops": {"sofmax": "f16"}}"#,
        &["`ops.sofmax`", "nearest valid key is `ops.softmax`"],
    );
    refused(
        r#"{"compute": "f16", "ops": {"softmax": 16}}"#,
        &["`ops.softmax`", "`16`"],
    );
    refused(
        r#"{"compute": "f16", "modules": {"head": "half"}}"#,
        &["`modules.head`", "half"],
    );
    refused(
        r#"{"compute": "f16", "modules": ["head"]}"#,
        &["`modules`", "an object"],
    );
    let error = Policy::load(folder.path().join("absent.json")).unwrap_err();
    assert!(matches!(error, AmpError::Io { .. }));
    assert!(error.to_string().contains("absent.json"), "{error}");
    assert!(policy.save(folder.path().join("no/folder.json")).is_err());
}

#[test]
fn parameter_and_output_dtypes_apply() {
    let device = device();
    let model = Net::new(&device);
    let policy = Policy::f16()
        .with_param(Precision::F16)
        .with_output(Precision::F32);
    let half = policy.cast_params(model.valid());
    assert_eq!(half.conv.weight.dtype(), DType::F16);
    assert_eq!(half.bn.running_mean.value().dtype(), DType::F32);
    assert_eq!(model.conv.weight.dtype(), DType::F32);
    let x = Tensor::<2>::ones([1, 1], &device).cast(FloatDType::F16);
    assert_eq!(policy.cast_output(x.clone()).dtype(), DType::F32);
    assert_eq!(Policy::disabled().cast_output(x).dtype(), DType::F16);
}

#[test]
fn settings_take_effect_or_are_refused() {
    let device = device();
    let model = Net::new(&device);
    let x = values([2, 3, 6, 6], 1, &device);
    let dtype = |policy: &Policy| autocast(policy, || nn::conv2d(&model.conv, x.clone()).dtype());
    // A policy that disables all but what it names.
    let policy = Policy::disabled().with_op(Op::Conv2d, Precision::F16);
    assert!(policy.is_enabled());
    assert_eq!(dtype(&policy), DType::F16);
    let mut policy = Policy::disabled().with_module("conv", Precision::F16);
    assert_eq!(policy.bind(&model), []);
    assert_eq!(dtype(&policy), DType::F16);
    let y = autocast(&policy, || ops::softmax(x.clone().cast(FloatDType::F16), 1));
    assert_eq!(y.dtype(), DType::F16);
    let policy = Policy::disabled().with_op(Op::Conv2d, Precision::Input);
    assert!(!policy.is_enabled());
    assert_eq!(dtype(&policy), DType::F32);

    // Operations on mixed operands obey a policy that names them.
    let (wide, half) = (values([2, 3], 1, &device), values([2, 3], 2, &device));
    let half = half.cast(FloatDType::F16);
    let policy = Policy::f16().with_op(Op::Promote, Precision::F16);
    autocast(&policy, || {
        let low = wide.clone().cast(FloatDType::F16);
        let sum = halfseg_amp::add(wide.clone(), half.clone());
        assert_eq!(exact(sum), exact(low.clone().add(half.clone())));
        let cat = halfseg_amp::cat(vec![half.clone(), wide.clone()], 0);
        assert_eq!(exact(cat), exact(Tensor::cat(vec![half.clone(), low], 0)));
        if computes_in(FloatDType::F64) {
            let wide = wide.clone().cast(FloatDType::F64);
            assert_eq!(halfseg_amp::mul(wide, half.clone()).dtype(), DType::F64);
        }
    });
    // Whether a policy is bound is no difference between policies.
    let mut bound = Policy::f16().with_module("conv", Precision::F32);
    let unbound = bound.clone();
    let _ = bound.bind(&model);
    assert_eq!(bound, unbound);
}

#[test]
fn a_policy_holds_for_all_models_that_it_is_bound_to() {
    let device = device();
    let (first, second) = (Net::new(&device), Net::new(&device));
    let x = values([2, 3, 6, 6], 1, &device);
    let mut policy = Policy::f16().with_module("conv", Precision::F32);
    assert_eq!(policy.bind(&first), []);
    assert_eq!(policy.bind(&second), []);
    let dtype = |model: &Net| autocast(&policy, || nn::conv2d(&model.conv, x.clone()).dtype());
    assert_eq!([dtype(&first), dtype(&second)], [DType::F32; 2]);
    // A step, a copy for validation and a move between devices leave the parameters' identity.
    let moved = first.clone().valid().fork(&Device::flex());
    let x = values([2, 3, 6, 6], 1, &Device::flex());
    let y = autocast(&policy, || nn::conv2d(&moved.conv, x));
    assert_eq!(y.dtype(), DType::F32);
}

#[test]
#[should_panic(expected = "is of no model that it was bound to")]
fn a_policy_that_was_bound_to_another_model_is_noticed() {
    let device = device();
    let mut policy = Policy::f16().with_module("head", Precision::F32);
    assert_eq!(policy.bind(&Net::new(&device)), []);
    let model = Net::new(&device);
    autocast(&policy, || model.loss(1));
}

#[test]
fn flex_computes_in_both_half_precisions() {
    for device in [Device::flex().autodiff(), Device::flex()] {
        for policy in [Policy::f16(), Policy::bf16(), Policy::disabled()] {
            policy.check(&device).unwrap();
        }
    }
    let error = AmpError::Unsupported {
        device: "Device<NdArray(Cpu)>".into(),
        precision: Precision::F16,
        supported: vec![Precision::F32],
    };
    assert_eq!(
        error.to_string(),
        "Device<NdArray(Cpu)> does not compute in f16, only in f32: take a policy for one of these, or \
         `Policy::disabled()`"
    );
}

/// Numbers that are the same in each run.
struct Random(u32);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
        (self.0 >> 8) as usize % end
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Runs a small model under `policy`, backward pass included, on the CPU: what a file may hold is no matter
/// of the device, and one that tunes would compile kernels for each combination of precisions.
fn run(policy: &mut Policy) {
    let device = Device::flex().autodiff();
    let model = Net::new(&device);
    let _ = policy.bind(&model);
    if policy.check(&device).is_err() {
        return;
    }
    // Of whichever dtype the policy gives losses.
    let loss = autocast(policy, || model.loss(1)).cast(FloatDType::F32);
    assert!(vec(loss.clone())[0].is_finite(), "{policy:?}");
    assert!(model.conv.weight.val().grad(&loss.backward()).is_some());
}

/// Whatever bytes take the place of a policy file, reading it gives a policy that can be run, or an error
/// that names the file.
#[test]
fn mutated_policy_files_do_not_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    let text = serde_json::to_string(
        &Policy::f16()
            .with_op(Op::Interpolate, Precision::F16)
            .with_op(Op::PRelu, Precision::F32)
            .with_module("head", Precision::F32),
    )
    .unwrap();
    assert!(text.contains("\"prelu\""), "{text}");
    let mut random = Random(5);
    let (mut read, mut ran) = (0, 0);
    for _ in 0..6_000 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..random.below(4) {
            if bytes.is_empty() {
                break;
            }
            let place = random.below(bytes.len());
            match random.below(5) {
                0 => bytes[place] = random.below(256) as u8,
                1 => drop(bytes.remove(place)),
                2 => bytes.truncate(place.max(1)),
                // Some of it twice, keys among it.
                3 => {
                    let end = bytes.len().min(place + random.below(30));
                    let again = bytes[place..end].to_vec();
                    let to = random.below(bytes.len());
                    bytes.splice(to..to, again);
                }
                _ => bytes.insert(place, *random.of(b"{}[]\",:16fb\\\0")),
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match Policy::load(&path) {
            Ok(mut policy) => {
                read += 1;
                // Most are equal: a part of them says as much.
                if read % 50 == 0 {
                    run(&mut policy);
                    policy.save(&path).unwrap();
                    assert_eq!(Policy::load(&path).unwrap(), policy);
                    ran += 1;
                }
            }
            Err(error) => assert!(error.to_string().contains("policy.json"), "{error}"),
        }
    }
    assert!(read > 500 && ran > 10, "{read} {ran}");
    // The name that operations had before PyTorch's.
    std::fs::write(&path, r#"{"compute": "f16", "ops": {"p_relu": "f32"}}"#).unwrap();
    let policy = Policy::load(&path).unwrap();
    assert_eq!(policy.precision(Op::PRelu), Precision::F32);
}

/// Values of the wrong kind, nested ones and unknown names in each place of a file, and each combination of
/// valid ones, which run.
#[test]
fn policy_files_of_any_content_give_a_policy_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    let mut random = Random(11);
    let valid = ["f16", "bf16", "f32", "input"].map(|name| json!(name));
    let wrong = [
        json!(null),
        json!(true),
        json!(-1e308),
        json!("F16"),
        json!(""),
        json!([["f16"]]),
        json!({ "f16": {} }),
    ];
    let ops: Vec<String> = Op::ALL.iter().map(Op::to_string).collect();
    let modules = [
        "conv",
        "bn",
        "head",
        "head.weight",
        "",
        ".",
        "..",
        "spare",
        "x".repeat(9999).leak(),
    ];
    let (mut read, mut ran) = (0, 0);
    for round in 0..3000 {
        // Half of the files have nothing wrong.
        let value = |random: &mut Random| match round % 2 == 0 || random.below(12) > 0 {
            true => random.of(&valid).clone(),
            false => random.of(&wrong).clone(),
        };
        let named = |random: &mut Random, names: &[&str]| -> Value {
            let count = random.below(4);
            let entries = (0..count).map(|_| {
                let name = (*random.of(names)).to_owned();
                (name, value(random))
            });
            Value::Object(entries.collect())
        };
        let ops: Vec<&str> = ops.iter().map(String::as_str).collect();
        let ops = named(&mut random, &ops);
        let modules = named(&mut random, &modules);
        let mut file = json!({ "compute": value(&mut random), "ops": ops, "modules": modules });
        for key in ["param", "output", "later"] {
            let wanted = random.below(match key {
                "later" => 40,
                _ => 3,
            });
            if wanted == 0 {
                file[key] = value(&mut random);
            }
        }
        std::fs::write(&path, file.to_string()).unwrap();
        match Policy::load(&path) {
            Ok(mut policy) => {
                read += 1;
                if read % 8 == 0 {
                    run(&mut policy);
                    ran += 1;
                }
            }
            Err(error) => {
                assert!(error.to_string().contains("policy.json"), "{error}");
                assert!(round % 2 == 1 || file.get("later").is_some(), "{error}");
            }
        }
    }
    assert!(read > 1000 && ran > 100, "{read} {ran}");
}
