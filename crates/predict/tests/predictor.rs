//! A narrow network applied to pictures.

mod narrow;

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use halfseg_amp::{Op, Policy, Precision};
use halfseg_data::{Dataset, RgbImage, SyntheticStreets};
use halfseg_predict::{EvalMode, PredictError, Predictor, PredictorConfig, PredictorSettings};
use halfseg_segmentor::{Depth, Method, Segmentor, SegmentorConfig};
use narrow::{config, picture};

const fn may_be_shared<T: Send + Sync + 'static>() {}
const _: () = may_be_shared::<Predictor>();

fn network(method: Method) -> Segmentor {
    narrow::network(&config(method))
}

fn values(scores: Tensor<4>) -> Vec<f32> {
    scores.into_data().try_into_vec().unwrap()
}

fn windows() -> PredictorConfig {
    let mut config = PredictorConfig::default();
    config.mode = EvalMode::Slide;
    config.slide_crop = "40x48".parse().unwrap();
    config.slide_stride = "24x32".parse().unwrap();
    config
}

fn save(model: &Segmentor, path: &Path, settings: Option<String>) {
    let entry = settings.map(|text| (PredictorSettings::KEY.to_owned(), text));
    let metadata = BTreeMap::from_iter(entry);
    model.save_safetensors(path, metadata).unwrap();
}

#[test]
fn a_checkpoint_runs_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    let model = network(Method::DeepLabV3Plus);
    let policy = Policy::bf16()
        .with_op(Op::Interpolate, Precision::F32)
        .with_module("decode_head.conv_seg", Precision::F32)
        .with_module("backbone.layer4", Precision::F16);
    let settings = PredictorSettings::new(policy.clone(), windows());
    save(&model, &path, Some(settings.to_json()));
    assert_eq!(PredictorSettings::read(&path).unwrap(), Some(settings));

    let image = picture(3, 88, 57);
    let loaded = Predictor::load(&path, &Device::flex()).unwrap();
    let mut bound = policy;
    assert!(bound.bind(&model).is_empty());
    let made = Predictor::new(&model, bound, windows());
    assert_eq!(
        values(loaded.scores(&image).unwrap()),
        values(made.scores(&image).unwrap())
    );
    // Policy and windows have an effect.
    let plain = Predictor::new(&model, Policy::bf16(), windows());
    assert_ne!(
        values(loaded.scores(&image).unwrap()),
        values(plain.scores(&image).unwrap())
    );
}

#[test]
fn a_checkpoint_that_says_nothing_runs_in_f32_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    let model = network(Method::Fcn);
    save(&model, &path, None);
    let loaded = Predictor::load(&path, &Device::flex()).unwrap();
    assert!(!loaded.policy().is_enabled());
    assert_eq!(loaded.config(), &PredictorConfig::default());
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    let model = network(Method::Fcn);
    for (text, expected) in [
        ("{", "EOF"),
        (r#"{"policies": {}}"#, "policies"),
        (r#"{"config": {"mode": "all"}}"#, "whole"),
        (
            r#"{"config": {"mode": "slide", "slide_crop": "9x9"}}"#,
            "`slide_stride`: expected at most slide_crop, 9x9",
        ),
        (
            r#"{"policy": {"compute": "f16", "modules": {"decode_head.conv": "f32"}}}"#,
            "nearest is `decode_head.conv",
        ),
    ] {
        save(&model, &path, Some(text.into()));
        let error = Predictor::load(&path, &Device::flex()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, PredictError::Settings { .. })
                && text.contains("network.safetensors: `halfseg.predict`")
                && text.contains(expected),
            "expected `{expected}` in `{text}`"
        );
    }
}

#[test]
fn threads_that_share_a_predictor_find_what_one_finds() {
    let predictor = Predictor::new(&network(Method::PspNet), Policy::f16(), windows());
    let images: Vec<RgbImage> = (0..4)
        .map(|seed| picture(seed, 64 + 8 * seed as usize, 56))
        .collect();
    let alone: Vec<_> = images
        .iter()
        .map(|image| predictor.predict(image).unwrap())
        .collect();
    let together: Vec<_> = thread::scope(|threads| {
        let started: Vec<_> = images
            .iter()
            .map(|image| {
                let predictor = &predictor;
                threads.spawn(move || predictor.predict(image).unwrap())
            })
            .collect();
        started.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn probabilities_sum_to_one_and_rank_as_scores_do() {
    let image = picture(1, 64, 48);
    let mut mirrored = PredictorConfig::default();
    mirrored.ms_flip = true;
    for config in [PredictorConfig::default(), mirrored] {
        let predictor = Predictor::new(&network(Method::Fcn), Policy::disabled(), config);
        let probabilities = predictor.probabilities(&image).unwrap();
        assert_eq!(probabilities.dims(), [1, 19, 48, 64]);
        let sums = values(probabilities.clone().sum_dim(1));
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5));
        // Scores that differ by little may have one probability.
        let most_likely = values(probabilities.clone().max_dim(1));
        let all = values(probabilities);
        let map = predictor.predict(&image).unwrap().finite("it").unwrap();
        for (pixel, class) in map.data.iter().enumerate() {
            let place = usize::from(*class) * map.data.len() + pixel;
            assert_eq!(all[place], most_likely[pixel], "pixel {pixel}");
        }
    }
}

#[test]
fn a_picture_without_pixels_is_refused() {
    let predictor = Predictor::new(&network(Method::Fcn), Policy::f16(), windows());
    for (width, height, values) in [(0, 4, 0), (4, 0, 0), (4, 4, 47), (usize::MAX, 2, 12)] {
        let image = RgbImage {
            width,
            height,
            data: vec![0; values],
        };
        let error = predictor.predict(&image).unwrap_err().to_string();
        assert!(error.contains(&format!("{width}x{height}")), "{error}");
    }
}

/// `model` with logits a billion times as large, which f16 cannot hold.
fn overflowing(model: Segmentor) -> Segmentor {
    #[derive(Default)]
    struct Larger(Vec<String>);
    impl ModuleMapper for Larger {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.0.iter().any(|name| name == "conv_seg") {
                true => param.map(|value| value * 1e9),
                false => param,
            }
        }
    }
    model.map(&mut Larger::default())
}

#[test]
fn scores_that_are_not_finite_are_counted_and_refused_by_name() {
    let model = overflowing(network(Method::Fcn));
    let streets = SyntheticStreets::new(64, 48, 2, 5);
    let single = Predictor::new(&model, Policy::disabled(), windows());
    single.evaluate(&streets, |_| Ok(true)).unwrap();

    for config in [PredictorConfig::default(), windows()] {
        let predictor = Predictor::new(&model, Policy::f16(), config);
        let error = predictor.evaluate(&streets, |_| Ok(true)).unwrap_err();
        let (text, name) = (error.to_string(), streets.source(0));
        let begin = format!("{name}: expected finite scores");
        assert!(text.starts_with(&begin), "{text}");

        let found = predictor.predict(&picture(5, 64, 48)).unwrap();
        let without_class = found.map.data.iter().filter(|&&class| class == 255);
        assert_eq!(without_class.count(), found.not_finite);
        assert!(found.not_finite > 0);
    }
}

#[test]
fn pixels_have_the_class_of_the_largest_score_whole_and_in_windows() {
    let model = network(Method::DeepLabV3Plus);
    for policy in [Policy::disabled(), Policy::f16(), Policy::bf16()] {
        for config in [PredictorConfig::default(), windows()] {
            let predictor = Predictor::new(&model, policy.clone(), config);
            for (width, height) in [(64, 48), (131, 97), (20, 30), (48, 150)] {
                let image = picture(9, width, height);
                let scores = predictor.scores(&image).unwrap();
                let expected = halfseg_eval::argmax(scores).swap_remove(0);
                assert_eq!(predictor.predict(&image).unwrap(), expected);
            }
        }
    }
}

#[test]
fn confidences_are_probabilities_of_the_classes_and_change_none() {
    let image = picture(5, 88, 57);
    let mut views = PredictorConfig::default();
    views.ms_flip = true;
    let binary = {
        let mut config = SegmentorConfig::new(Method::Fcn, Depth::R18);
        (config.stem_channels, config.base_channels) = (8, 4);
        (config.head_channels, config.aux_channels) = (8, 8);
        (config.num_classes, config.binary) = (2, true);
        narrow::network(&config)
    };
    for (model, config) in [
        (network(Method::Fcn), PredictorConfig::default()),
        (network(Method::PspNet), windows()),
        (network(Method::Fcn), views),
        (binary, PredictorConfig::default()),
    ] {
        let predictor = Predictor::new(&model, Policy::disabled(), config);
        let (found, confidences) = predictor.predict_confident(&image).unwrap();
        assert_eq!(found, predictor.predict(&image).unwrap());
        assert_eq!(confidences.stride(), 1);
        let probabilities = values(predictor.probabilities(&image).unwrap());
        let pixels = 88 * 57;
        assert_eq!(confidences.values().len(), pixels);
        for (pixel, (&found, &class)) in
            confidences.values().iter().zip(&found.map.data).enumerate()
        {
            let expected = probabilities[usize::from(class) * pixels + pixel];
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}
