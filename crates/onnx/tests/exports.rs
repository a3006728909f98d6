//! Exports run in tract and, where Python has them, in ONNX Runtime and OpenVINO, beside their networks.

#[path = "../../segmentor/tests/drawn/mod.rs"]
mod drawn;

use std::process::Command;

use burn::tensor::{Device, Distribution, Tensor};
use drawn::drawn;
use halfseg_onnx::halfseg_segmentor::{Depth, Method, Segmentor, SegmentorConfig, Style};
use halfseg_onnx::{OnnxError, OnnxInput, OnnxOptions, OnnxOutput, WeightFormat, check, export};

/// A network of small width with normalisations that do something.
fn network(config: SegmentorConfig) -> Segmentor {
    let classes = if config.binary { 2 } else { 5 };
    let config = config
        .with_base_channels(8)
        .with_stem_channels(8)
        .with_head_channels(16)
        .with_c1_channels(6)
        .with_aux_channels(8)
        .with_num_classes(classes)
        .with_dilations(vec![1, 2, 4]);
    drawn(3, |device| {
        let mut model = config.init(device);
        stir(&mut model, device);
        model
    })
}

/// Other scales, shifts and statistics than those that training begins with, some of which are 0.
fn stir(model: &mut Segmentor, device: &Device) {
    use burn::module::{Module, ModuleMapper, Param};
    struct Stir<'a>(&'a Device);
    impl ModuleMapper for Stir<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match D {
                1 => param.map(|value| {
                    Tensor::random(value.shape(), Distribution::Uniform(0.5, 1.5), self.0)
                }),
                _ => param,
            }
        }
    }
    *model = model.clone().map(&mut Stir(device));
}

fn methods() -> [SegmentorConfig; 4] {
    [
        Method::Fcn,
        Method::PspNet,
        Method::DeepLabV3,
        Method::DeepLabV3Plus,
    ]
    .map(|method| SegmentorConfig::new(method, Depth::R18))
}

fn agrees(config: SegmentorConfig, options: &OnnxOptions) {
    let name = format!("{} {options:?}", config.method);
    let model = network(config);
    let file = export(&model, options).unwrap_or_else(|error| panic!("{name}: {error}"));
    let found = check(&file, &model, options).unwrap_or_else(|error| panic!("{name}: {error}"));
    // `check` refuses what is too far away; f32 sums in another order are nearer by far.
    if options.weights == WeightFormat::F32 {
        assert!(
            found.relative.is_none_or(|far| far < 1e-5),
            "{name}: {found:?}"
        );
    }
}

#[test]
fn every_method_of_a_fixed_size() {
    for config in methods() {
        agrees(
            config,
            &OnnxOptions::default().with_batch(2).with_size([64, 96]),
        );
    }
}

#[test]
fn every_method_of_any_size() {
    for config in methods() {
        agrees(config, &OnnxOptions::default());
    }
}

#[test]
fn variants() {
    let any = OnnxOptions::default();
    let fixed = OnnxOptions::default().with_size([47, 70]);
    let bottlenecks = |method| SegmentorConfig::new(method, Depth::R50);
    for options in [&any, &fixed] {
        agrees(bottlenecks(Method::DeepLabV3Plus), options);
        agrees(
            bottlenecks(Method::PspNet)
                .with_align_corners(true)
                .with_pool_scales(vec![1, 2, 5]),
            options,
        );
        agrees(
            bottlenecks(Method::Fcn)
                .with_avg_down(true)
                .with_style(Style::Caffe)
                .with_stage_strides([1, 2, 2, 2])
                .with_stage_dilations([1, 1, 1, 1])
                .with_head_convs(1)
                .with_head_concat_input(false),
            options,
        );
        agrees(
            bottlenecks(Method::DeepLabV3)
                .with_deep_stem(false)
                .with_in_channels(4)
                .with_multi_grid(vec![1, 2, 4])
                .with_refine(true),
            options,
        );
    }
}

#[test]
fn bytes_in_and_classes_out() {
    let input = OnnxInput::Bytes {
        mean: vec![123.675, 116.28, 103.53],
        std: vec![58.395, 57.12, 57.375],
    };
    let options = OnnxOptions::default()
        .with_input(input)
        .with_output(OnnxOutput::Classes);
    for config in methods() {
        agrees(config, &options);
    }
}

#[test]
fn one_output_for_two_classes() {
    for output in [OnnxOutput::Logits, OnnxOutput::Classes] {
        let options = OnnxOptions::default().with_output(output);
        let config = methods()[1].clone().with_binary(true).with_threshold(0.4);
        agrees(config, &options);
    }
}

#[test]
fn weights_in_half_precision() {
    let sizes = [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16].map(|weights| {
        let options = OnnxOptions::default().with_weights(weights);
        agrees(methods()[3].clone(), &options);
        export(&network(methods()[3].clone()), &options)
            .unwrap()
            .len()
    });
    assert!(sizes[1] < sizes[0] * 6 / 10, "{sizes:?}");
    assert_eq!(sizes[2], sizes[0]);
}

#[test]
fn a_check_finds_other_weights() {
    let options = OnnxOptions::default();
    let file = export(&network(methods()[0].clone()), &options).unwrap();
    let mut other = network(methods()[0].clone());
    stir(&mut other, &Device::flex());
    let error = check(&file, &other, &options).unwrap_err();
    assert!(
        error.to_string().contains("expected logits within"),
        "{error}"
    );
    let error = check(&file[..file.len() / 2], &other, &options).unwrap_err();
    assert!(matches!(error, OnnxError::Runtime { .. }), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = network(methods()[0].clone());
    let refused = |options: OnnxOptions, expected: &str| {
        let error = export(&model, &options).unwrap_err().to_string();
        assert_eq!(error, expected);
    };
    let any = OnnxOptions::default;
    refused(any().with_batch(0), "batch: expected at least 1, found 0");
    refused(
        any().with_size([0, 8]),
        "size: expected sides of at least 1, found 0x8",
    );
    let bytes = |mean: &[f32], std: &[f32]| {
        any().with_input(OnnxInput::Bytes {
            mean: mean.to_vec(),
            std: std.to_vec(),
        })
    };
    refused(
        bytes(&[1.0], &[1.0; 3]),
        "mean: expected a finite number for each of 3 channels, found [1.0]",
    );
    refused(
        bytes(&[1.0; 3], &[1.0, 0.0, 1.0]),
        "std: expected numbers that are not 0, found [1.0, 0.0, 1.0]",
    );

    let spoilt = |factor: f32| {
        let mut model = network(methods()[0].clone());
        let conv = &mut model.decode_head;
        let halfseg_onnx::halfseg_segmentor::DecodeHead::Fcn(head) = conv else {
            unreachable!("this is an FCN")
        };
        head.conv_seg.weight = head.conv_seg.weight.clone().map(|weight| weight * factor);
        model
    };
    let error = export(&spoilt(f32::NAN), &any()).unwrap_err().to_string();
    assert!(
        error.starts_with("decode_head.conv_seg.weight: 80 of its values are not finite"),
        "{error}"
    );
    let half = any().with_weights(WeightFormat::F16);
    let error = export(&spoilt(1e9), &half).unwrap_err().to_string();
    assert!(
        error.contains("are beyond 65504: store weights in f32"),
        "{error}"
    );
}

/// Whether this Python has `module`.
fn has(module: &str) -> bool {
    let python = Command::new("python3")
        .args(["-c", &format!("import {module}")])
        .output();
    python.is_ok_and(|output| output.status.success())
}

#[test]
fn other_runtimes_give_the_same() {
    let runtimes: Vec<_> = ["onnxruntime", "openvino"]
        .into_iter()
        .filter(|name| has(name))
        .collect();
    if runtimes.is_empty() || !has("numpy") {
        eprintln!("skipped: this Python has neither onnxruntime nor openvino (with numpy)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtimes.py");
    for config in methods() {
        for size in [None, Some([64, 96])] {
            let mut options = OnnxOptions::default();
            options.size = size;
            let model = network(config.clone());
            let path = folder.path().join("network.onnx");
            std::fs::write(&path, export(&model, &options).unwrap()).unwrap();
            // Any size is any: other ones than those that tract runs.
            let [h, w] = size.unwrap_or([50, 77]);
            let device = Device::flex();
            let image = Tensor::<4>::random([2, 3, h, w], Distribution::Normal(0.0, 1.0), &device);
            let write = |name: &str, values: Tensor<4>| {
                let bytes = values
                    .into_data()
                    .iter::<f32>()
                    .flat_map(f32::to_le_bytes)
                    .collect::<Vec<_>>();
                std::fs::write(folder.path().join(name), bytes).unwrap();
            };
            write("image", image.clone());
            write("logits", model.forward(image));
            for runtime in &runtimes {
                let output = Command::new("python3")
                    .arg(script)
                    .args([runtime, folder.path().to_str().unwrap()])
                    .args([2, 3, h, w].map(|side| side.to_string()))
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "{} {size:?} in {runtime}: {text}",
                    config.method
                );
                eprintln!("{} {size:?}: {}", config.method, text.trim());
            }
        }
    }
}
