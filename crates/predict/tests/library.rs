//! What a program does with a loaded network.

mod narrow;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use burn::tensor::{Device, Tensor};
use halfseg_amp::Policy;
use halfseg_data::{Classes, IGNORE, LabelMap, PictureRef, RgbImage, encode_rgb};
use halfseg_predict::{
    EvalMode, PredictError, Predictor, PredictorConfig, PredictorSettings, class_pixels,
    fill_polygons, polygons,
};
use halfseg_segmentor::{Method, Segmentor};
use narrow::{config, picture};

fn network(method: Method, binary: bool) -> Segmentor {
    let mut config = config(method);
    if binary {
        (config.num_classes, config.binary) = (2, true);
    }
    narrow::network(&config)
}

fn predictor(method: Method, policy: Policy) -> Predictor {
    Predictor::new(&network(method, false), policy, PredictorConfig::default())
}

fn values(scores: Tensor<4>) -> Vec<f32> {
    scores.into_data().try_into_vec().unwrap()
}

fn save(model: &Segmentor, path: &Path, classes: Option<Classes>) {
    let settings = PredictorSettings::default();
    let settings = match classes {
        Some(classes) => settings.with_classes(classes),
        None => settings,
    };
    let metadata = BTreeMap::from([(PredictorSettings::KEY.to_owned(), settings.to_json())]);
    model.save_safetensors(path, metadata).unwrap();
}

#[test]
fn pictures_at_once_have_the_classes_of_each_alone() {
    let mut windows = PredictorConfig::default();
    windows.mode = EvalMode::Slide;
    windows.slide_crop = "40x48".parse().unwrap();
    windows.slide_stride = "24x32".parse().unwrap();
    let sizes: [&[(usize, usize)]; 4] = [
        &[(64, 40), (64, 40), (64, 40)],
        &[(64, 40), (40, 64)],
        &[(33, 21)],
        &[],
    ];
    for binary in [false, true] {
        let model = network(Method::DeepLabV3Plus, binary);
        for config in [&PredictorConfig::default(), &windows] {
            let predictor = Predictor::new(&model, Policy::disabled(), config.clone());
            for sizes in sizes {
                let all: Vec<_> = sizes
                    .iter()
                    .zip(1..)
                    .map(|(&(width, height), seed)| picture(seed, width, height))
                    .collect();
                let alone: Vec<_> = all
                    .iter()
                    .map(|one| predictor.predict(one).unwrap())
                    .collect();
                let refs: Vec<_> = all.iter().map(PictureRef::from).collect();
                assert_eq!(predictor.predict_all(&refs).unwrap(), alone);
            }
            let (good, bad) = (
                picture(1, 16, 16),
                RgbImage {
                    width: 4,
                    height: 4,
                    data: vec![],
                },
            );
            let refs = [&good, &bad].map(PictureRef::from);
            let error = predictor.predict_all(&refs).unwrap_err();
            assert!(matches!(error, PredictError::Picture { .. }), "{error}");
        }
    }
}

/// Each thread with pictures of its own, all at the same time, with one predictor behind an `Arc`.
#[test]
fn threads_load_warm_up_and_predict_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    save(&network(Method::PspNet, false), &path, None);
    let shared = Arc::new(Predictor::load(&path, &Device::flex()).unwrap());
    shared.warm_up(56, 40).unwrap();
    let alone: Vec<_> = (0..12)
        .map(|seed| shared.predict(&picture(seed, 56, 40)).unwrap())
        .collect();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (shared, path) = (shared.clone(), path.clone());
            thread::spawn(move || {
                // One more, whose drop leaves the others what they have.
                let own = Predictor::load(&path, &Device::flex()).unwrap();
                let own_map = own.predict(&picture(thread, 56, 40)).unwrap();
                drop(own);
                let seeds = (0..3).map(|i| 4 * i + thread);
                let maps =
                    seeds.map(|seed| (seed, shared.predict(&picture(seed, 56, 40)).unwrap()));
                (thread, own_map, maps.collect::<Vec<_>>())
            })
        })
        .collect();
    for thread in threads {
        let (seed, own, maps) = thread.join().unwrap();
        assert_eq!(own, alone[seed as usize]);
        for (seed, map) in maps {
            assert_eq!(map, alone[seed as usize]);
        }
    }
}

#[test]
fn polygons_of_a_prediction_give_its_map() {
    let predictor = predictor(Method::Fcn, Policy::bf16());
    let map = predictor
        .predict(&picture(5, 96, 64))
        .unwrap()
        .finite("it")
        .unwrap();
    let found = polygons(&map);
    let mut filled = LabelMap::filled(96, 64, [IGNORE]);
    for one in &found {
        fill_polygons(&mut filled, one.class, &one.polygons);
        assert_eq!(one.pixels(), class_pixels(&map)[usize::from(one.class)]);
    }
    assert!(!found.is_empty() && filled == map);
}

#[test]
fn a_checkpoint_tells_what_its_classes_are_called() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    let model = network(Method::Fcn, true);
    let own = Classes::new([
        ("sea".to_owned(), None),
        ("land".to_owned(), Some([1, 2, 3])),
    ]);
    save(&model, &path, Some(own.clone()));
    let loaded = Predictor::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.classes(), own);
    // Others than the network has are none.
    let named = loaded.with_classes(Classes::cityscapes());
    assert_eq!(named.classes().names(), ["class_0", "class_1"]);
    save(&network(Method::Fcn, false), &path, None);
    let loaded = Predictor::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.classes(), Classes::cityscapes());
}

#[test]
fn a_size_that_memory_cannot_hold_is_not_warmed_up() {
    let predictor = predictor(Method::Fcn, Policy::f16());
    let error = predictor.warm_up(1 << 20, 1 << 20).unwrap_err();
    assert!(matches!(error, PredictError::Memory { .. }), "{error}");
    let error = predictor.warm_up(0, 8).unwrap_err();
    assert!(matches!(error, PredictError::Picture { .. }), "{error}");
}

#[test]
fn a_film_moves_its_mean_by_what_smoothing_leaves() {
    let predictor = predictor(Method::Fcn, Policy::disabled());
    let frames: Vec<_> = (0..4).map(|seed| picture(seed, 48, 32)).collect();
    let mut plain = predictor.film(0.0).unwrap();
    let mut smooth = predictor.film(0.75).unwrap();
    let mut mean: Option<Vec<f32>> = None;
    for frame in &frames {
        assert_eq!(
            plain.predict(frame).unwrap(),
            predictor.predict(frame).unwrap()
        );
        let new = values(predictor.probabilities(frame).unwrap());
        let moved = match mean.take() {
            None => new,
            Some(old) => old
                .iter()
                .zip(&new)
                .map(|(old, new)| old * 0.75 + new * 0.25)
                .collect(),
        };
        let found = smooth.predict(frame).unwrap().finite("frame").unwrap();
        let pixels = found.data.len();
        for (pixel, &class) in found.data.iter().enumerate() {
            let of = |class: usize| moved[class * pixels + pixel];
            let most = (0..19).map(of).fold(0.0, f32::max);
            // Means that differ in their last bits may change places.
            assert!(most - of(usize::from(class)) < 1e-6, "pixel {pixel}");
        }
        mean = Some(moved);
    }
    // Another size begins anew.
    let other = picture(9, 40, 56);
    let found = smooth.predict(&other).unwrap();
    assert_eq!(
        found,
        predictor.film(0.75).unwrap().predict(&other).unwrap()
    );
    for smoothing in [1.0, -0.1, f64::NAN] {
        let error = predictor.film(smoothing).unwrap_err().to_string();
        assert!(
            error.starts_with("`smoothing`: expected a number from 0"),
            "{error}"
        );
    }
}

/// Two classes from one output, by the network's threshold.
#[test]
fn a_film_of_two_classes_goes_by_the_threshold() {
    let mut model = network(Method::Fcn, true);
    for threshold in [0.3, 0.5, 0.9] {
        let config = model.config().clone().with_threshold(threshold);
        model = narrow::network(&config);
        let predictor = Predictor::new(&model, Policy::disabled(), PredictorConfig::default());
        let frame = picture(2, 40, 40);
        let map = predictor.film(0.5).unwrap().predict(&frame).unwrap();
        let second = values(predictor.probabilities(&frame).unwrap().narrow(1, 1, 1));
        for (class, probability) in map.map.data.iter().zip(second) {
            let clear = (f64::from(probability) - threshold).abs() > 1e-6;
            assert!(!clear || (*class == 1) == (f64::from(probability) > threshold));
        }
    }
}

#[test]
fn raw_values_and_files_in_memory_are_pictures() {
    let predictor = predictor(Method::Fcn, Policy::disabled());
    let image = picture(3, 40, 24);
    let raw = RgbImage::from_raw(40, 24, image.data.clone()).unwrap();
    let mut file = Vec::new();
    encode_rgb(&mut file, &image).unwrap();
    let reader = halfseg_data::ImageReader::default();
    let decoded = reader
        .picture_of("upload", file.into(), predictor.pictures())
        .unwrap();
    let expected = predictor.predict(&image).unwrap();
    assert_eq!(predictor.predict(&raw).unwrap(), expected);
    assert_eq!(predictor.predict(&decoded).unwrap(), expected);
}
