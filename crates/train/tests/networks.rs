//! Steps of MMSegmentation with parts of the backbone frozen, and of a network with one output for two classes, as
//! `record_networks.py` recorded them; `HALFSEG_NETWORKS` names a folder of other recordings.

mod network;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use halfseg_predict::{Predictor, PredictorConfig};
use halfseg_segmentor::{Segmentor, load, read_architecture};
use halfseg_train::{Learner, Policy, Recipe, RunPrecision};
use network::Values;
use safetensors::SafeTensors;

const STEPS: usize = 3;

/// The values that one recording holds.
struct Recorded(Vec<u8>);

impl Recorded {
    fn open(name: &str) -> (PathBuf, Self) {
        let root = match std::env::var_os("HALFSEG_NETWORKS") {
            Some(root) => PathBuf::from(root),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/networks"),
        };
        let folder = root.join(name);
        let values = std::fs::read(folder.join("values.safetensors")).unwrap();
        (folder.join("model.pth"), Self(values))
    }

    fn raw(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, bytes) = self.raw(name);
        let values = bytes.as_chunks::<4>().0.iter();
        (
            shape,
            values.map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        )
    }

    fn image(&self, device: &Device) -> Tensor<4> {
        let (shape, values) = self.floats("image");
        Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
    }

    fn labels(&self, device: &Device) -> Tensor<3, Int> {
        let (shape, values) = self.raw("label");
        let values: Vec<i32> = values.into_iter().map(i32::from).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// The recipe of the recorded steps.
fn recipe(model: &Segmentor, settings: &[&str]) -> Recipe {
    let config = model.config();
    let mut recipe = network::recipe(config.method, config.backbone, RunPrecision::F32, &[]);
    recipe.model = config.clone();
    // The learning rate of all three.
    recipe.set("schedule.decay=constant").unwrap();
    for value in settings {
        recipe.set(value).unwrap();
    }
    recipe
}

/// Parameters and running statistics by MMSegmentation's names.
fn values(model: &Segmentor) -> Values {
    struct Visitor {
        names: BTreeMap<ParamId, String>,
        found: Values,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data().try_into_vec().unwrap();
            self.found.insert(self.names[&param.id].clone(), data);
        }
    }
    let mut visitor = Visitor {
        names: model.names(),
        found: Values::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

/// Takes the recorded steps, compares losses and all tensors, and returns those of before and after.
fn check_steps(name: &str, settings: &[&str], devices: usize) -> [Values; 2] {
    let (file, recorded) = Recorded::open(name);
    let device = Device::flex().autodiff();
    let (model, report) = load(&file, None, &device).unwrap();
    assert!(report.is_complete(), "{report}");
    let recipe = recipe(&model, settings);
    let before = values(&model);
    let mut learner = Learner::new(model, Policy::disabled(), &recipe)
        .with_further_devices(vec![device.clone(); devices - 1]);
    let (image, labels) = (recorded.image(&device), recorded.labels(&device));
    let (_, losses) = recorded.floats("losses");
    for losses in losses.chunks_exact(3) {
        let step = learner.step(image.clone(), labels.clone());
        for (found, expected) in [step.loss, step.decode, step.aux].into_iter().zip(losses) {
            let error = (found - f64::from(*expected)).abs();
            assert!(
                error < 1e-4 * step.loss,
                "{name}: {found} against {expected}"
            );
        }
    }
    let after = values(learner.model());
    assert_eq!(losses.len(), 3 * STEPS);
    for (name_of, found) in &after {
        let (_, expected) = recorded.floats(&format!("after.{name_of}"));
        let largest = expected.iter().fold(1e-2f32, |most, v| most.max(v.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            let error = (found - expected).abs();
            assert!(
                error < 2e-4 * largest,
                "{name}: {name_of} is {found}, expected {expected}"
            );
        }
    }
    [before, after]
}

/// Whether training moves a parameter or running statistic.
fn check_moved([before, after]: &[Values; 2], moves: impl Fn(&str) -> bool) {
    for (path, before) in before {
        assert_eq!(before != &after[path], moves(path), "{path}");
    }
}

fn is_in(path: &str, parts: &[&str]) -> bool {
    parts
        .iter()
        .any(|part| path.starts_with(&format!("backbone.{part}.")))
}

#[test]
fn frozen_stages_stay_as_they_are() {
    for recompute in ["false", "true"] {
        let recompute = format!("train.gradient_checkpointing={recompute}");
        for devices in [1, 2] {
            let settings = ["train.frozen_stages=2", recompute.as_str()];
            let steps = check_steps("frozen", &settings, devices);
            check_moved(&steps, |path| !is_in(path, &["stem", "layer1", "layer2"]));
        }
    }
}

#[test]
fn statistics_of_the_backbone_stay_as_they_are() {
    let settings = ["train.frozen_stages=0", "train.norm_eval=true"];
    for devices in [1, 2] {
        let steps = check_steps("norm_eval", &settings, devices);
        let statistic = |path: &str| path.contains("running_") && path.starts_with("backbone.");
        check_moved(&steps, |path| !is_in(path, &["stem"]) && !statistic(path));
    }
}

/// A frozen stage is no part of the graph, so that its maps are not kept.
#[test]
fn frozen_stages_are_not_tracked() {
    let (file, recorded) = Recorded::open("frozen");
    let device = Device::flex().autodiff();
    let (model, _) = load(&file, None, &device).unwrap();
    for (frozen, expected) in [
        (None, [true; 4]),
        (Some(0), [true; 4]),
        (Some(1), [false, true, true, true]),
        (Some(3), [false, false, false, true]),
        (Some(4), [false; 4]),
    ] {
        let model = model.clone().with_frozen_backbone(frozen, false);
        let stages = model.backbone.forward(recorded.image(&device));
        let maps = [stages.c2, stages.c3, stages.c4, stages.c5];
        assert_eq!(maps.map(|map| map.is_tracked()), expected, "{frozen:?}");
    }
}

#[test]
fn one_output_is_trained_as_in_mmsegmentation() {
    for devices in [1, 2] {
        let steps = check_steps("binary", &[], devices);
        check_moved(&steps, |_| true);
    }
}

#[test]
fn one_output_decides_by_the_threshold_of_the_file() {
    let (file, recorded) = Recorded::open("binary");
    let device = Device::flex();
    let config = read_architecture(&file).unwrap();
    assert_eq!(
        (config.binary, config.num_classes, config.outputs()),
        (true, 2, 1)
    );
    assert_eq!(config.threshold, 0.4);
    let (model, _) = load(&file, None, &device).unwrap();
    let logits = model.forward(recorded.image(&device));
    let (shape, expected) = recorded.floats("logits");
    assert_eq!(logits.dims()[..], shape);
    let found: Vec<f32> = logits.into_data().try_into_vec().unwrap();
    for (found, expected) in found.iter().zip(&expected) {
        assert!(
            (found - expected).abs() < 1e-4,
            "{found} against {expected}"
        );
    }
    let predictor = Predictor::new(&model, Policy::disabled(), PredictorConfig::default());
    let maps = predictor.segment(recorded.image(&device));
    let (_, classes) = recorded.raw("classes");
    let found: Vec<u8> = maps.into_iter().flat_map(|map| map.data).collect();
    let apart = found.iter().zip(&classes).filter(|(a, b)| a != b).count();
    assert!(apart <= 1, "{apart} pixels are of another class");
    // A few that the threshold decides otherwise than a half would.
    let between = expected
        .iter()
        .filter(|logit| (-0.4..0.0).contains(*logit))
        .count();
    assert!(between > 100, "{between}");
    assert!(model.valid().config().binary);
}
