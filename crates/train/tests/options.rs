//! Whole runs with what small data sets ask for.

mod network;
mod stopped;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{Learner, Log, Outcome, Recipe, RunPrecision, Trainer, resolve_checkpoint};
use network::{Batch, values};
use safetensors::SafeTensors;
use serde_json::Value;
use stopped::{StopAt, run};

/// A run of six iterations that evaluates every other.
fn recipe(settings: &[&str]) -> Recipe {
    let small = [
        "data.scale=64x32",
        "data.crop=32x32",
        "data.synthetic_train=5",
        "data.synthetic_val=2",
        "train.pictures=1",
        "train.eval_every=2",
        "schedule.iterations=6",
    ];
    let settings = [&small[..], settings].concat();
    network::recipe(Method::Fcn, Depth::R18, RunPrecision::F32, &settings)
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter();
    tensors
        .map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec()))
        .collect()
}

fn log(out: &Path, event: &str) -> Vec<Value> {
    Log::read(&out.join("log.jsonl"), event).unwrap()
}

/// Whether a run that is stopped after `stop` iterations and resumed is the one that was left alone.
fn check_resume(settings: &[&str], stop: u64) {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let recipe = recipe(settings);
    run(&recipe, &whole, &mut ());
    run(&recipe, &parts, &mut StopAt::iteration(stop));
    let mut trainer = Trainer::resume(&parts, Ok).unwrap();
    assert!(matches!(
        trainer.run(&mut ()).unwrap(),
        Outcome::Finished(_)
    ));
    let mut names = vec![
        "iter_6.safetensors",
        "iter_6.state.safetensors",
        "best.safetensors",
    ];
    if recipe.train.ema > 0.0 {
        names.push("iter_6.ema.safetensors");
    }
    for name in names {
        let [one, other] = [&whole, &parts].map(|out| tensors(&out.join(name)));
        assert!(one.len() > 20, "{name} holds too little");
        assert_eq!(
            one.keys().collect::<Vec<_>>(),
            other.keys().collect::<Vec<_>>()
        );
        for (tensor, bytes) in &one {
            assert!(
                *bytes == other[tensor],
                "{settings:?}: {tensor} of {name} differs"
            );
        }
    }
    let [one, other] = [&whole, &parts].map(|out| fs::read_to_string(out.join("scores.json")));
    assert_eq!(one.unwrap(), other.unwrap());
    // Checkpoints that are no longer kept are gone, all of their files.
    let left = fs::read_dir(&parts).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left.filter(|name| name.starts_with("iter_")).collect();
    assert!(
        left.iter().all(|name| name.starts_with("iter_6.")),
        "{left:?}"
    );
}

#[test]
fn options_go_on_bit_for_bit() {
    check_resume(&["train.ema=0.7"], 3);
    check_resume(
        &[
            "train.ema=0.7",
            "optimizer.kind=adamw",
            "optimizer.lr=0.001",
        ],
        4,
    );
    check_resume(
        &[
            "optimizer.kind=adamw",
            "optimizer.lr=0.001",
            "train.accumulate=2",
        ],
        5,
    );
    check_resume(
        &[
            "train.frozen_stages=2",
            "train.norm_eval=true",
            "loss.dice=1",
            "optimizer.lr_factors.decode_head=10",
            "schedule.warmup=4",
        ],
        2,
    );
}

/// What [`Learner::averaged`] gives, from the weights after each step.
#[test]
fn averages_follow_the_steps_on_one_device_and_on_two() {
    for devices in [1, 2] {
        let recipe = network::recipe(
            Method::DeepLabV3,
            Depth::R18,
            RunPrecision::F32,
            &["train.ema=0.75", "optimizer.lr=0.1"],
        );
        let device = Device::flex().autodiff();
        let model = recipe.model.init(&device);
        let mut learner = Learner::new(model, recipe.precision.policy(), &recipe)
            .with_further_devices(vec![device.clone(); devices - 1]);
        let (images, labels) = Batch::PAIR.draw(recipe.model.num_classes, &device);
        assert!(learner.averaged().is_none());
        let mut expected: Option<network::Values> = None;
        for at in 0..5 {
            // The third step overflows: nothing moves.
            let images = if at == 2 {
                images.clone() * f32::INFINITY
            } else {
                images.clone()
            };
            let step = learner.step(images, labels.clone());
            assert_eq!(step.outcome.stepped(), at != 2);
            let weights = values(learner.model());
            expected = Some(match expected {
                None => weights,
                Some(before) if at == 2 => before,
                Some(mut averages) => {
                    for (path, averages) in &mut averages {
                        let statistic = path.contains("running_");
                        for (average, weight) in averages.iter_mut().zip(&weights[path]) {
                            *average = match statistic {
                                true => *weight,
                                false => 0.75 * *average + 0.25 * weight,
                            };
                        }
                    }
                    averages
                }
            });
            let found = values(&learner.averaged().unwrap());
            for (path, expected) in expected.as_ref().unwrap() {
                for (found, expected) in found[path].iter().zip(expected) {
                    let error = (found - expected).abs();
                    assert!(
                        error < 1e-6 * expected.abs().max(1.0),
                        "{path}: {found}, {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn averages_are_evaluated_and_saved_beside() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let recipe = recipe(&["train.ema=0.9", "optimizer.lr=0.2"]);
    let Outcome::Finished(Some(scores)) = run(&recipe, &out, &mut ()) else {
        panic!("expected scores");
    };
    let [plain, averaged] = ["iter_6.safetensors", "iter_6.ema.safetensors"].map(|n| out.join(n));
    let (weights, averages) = (tensors(&plain), tensors(&averaged));
    for (name, weight) in &weights {
        let statistic = name.contains("running_") || name.ends_with("num_batches_tracked");
        assert_eq!(*weight == averages[name], statistic, "{name}");
    }
    // It is a checkpoint as any other, and scores as the run says.
    let mut predictor = halfseg_predict::Predictor::load(&averaged, &Device::flex()).unwrap();
    let val = halfseg_train::open_split(&recipe, "val").unwrap();
    let evaluate = || {
        predictor
            .evaluate(&*val, |_| Ok(true))
            .unwrap()
            .scores()
            .mean_iou
    };
    assert_eq!(evaluate(), scores.mean_iou);
    predictor = halfseg_predict::Predictor::load(&plain, &Device::flex()).unwrap();
    let evaluations = log(&out, "eval");
    assert_eq!(evaluations.len(), 3);
    let last = evaluations.last().unwrap();
    assert_eq!(last["miou"], scores.mean_iou);
    assert_eq!(
        last["plain"]["miou"],
        predictor
            .evaluate(&*val, |_| Ok(true))
            .unwrap()
            .scores()
            .mean_iou
    );
    // The best, or the last where there is none.
    let best = resolve_checkpoint(&out).unwrap();
    assert_eq!(best, out.join("best.safetensors"));
    fs::remove_file(best).unwrap();
    assert_eq!(resolve_checkpoint(&out).unwrap(), averaged);
    // A checkpoint without its averages is none.
    fs::remove_file(&averaged).unwrap();
    let error = Trainer::resume(&out, Ok)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("iter_6.ema.safetensors"), "{error}");
}

/// Averages that are asked for later begin later, and are left where none are asked for.
#[test]
fn averages_may_begin_and_end_with_a_resumed_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&recipe(&[]), &out, &mut StopAt::iteration(3));
    let on = |mut recipe: Recipe| recipe.set("train.ema=0.5").map(|()| recipe);
    let mut trainer = Trainer::resume(&out, on).unwrap();
    assert!(trainer.learner().averaged().is_none());
    trainer.run(&mut StopAt::iteration(5)).unwrap();
    drop(trainer);
    assert!(out.join("iter_5.ema.safetensors").is_file());
    let off = |mut recipe: Recipe| recipe.set("train.ema=0").map(|()| recipe);
    let mut trainer = Trainer::resume(&out, off).unwrap();
    trainer.run(&mut ()).unwrap();
    assert!(!out.join("iter_6.ema.safetensors").exists());
    assert!(!out.join("iter_5.ema.safetensors").exists());
}

#[test]
fn patience_ends_a_run_that_no_longer_gets_better() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    // Nothing is learnt, so that the first evaluation stays the best.
    let settings = [
        "train.patience=2",
        "schedule.iterations=20",
        "train.frozen_stages=4",
        "optimizer.lr_factors.decode_head=0",
        "optimizer.lr_factors.auxiliary_head=0",
        "model.aux_head=true",
        "train.best_by=aacc",
    ];
    let recipe = recipe(&settings);
    run(&recipe, &out, &mut ());
    let evaluations: Vec<_> = log(&out, "eval")
        .iter()
        .map(|line| line["iteration"].clone())
        .collect();
    let end = log(&out, "end").remove(0);
    let last = evaluations.last().unwrap().as_u64().unwrap();
    assert_eq!(
        (end["iteration"].as_u64(), &end["early"]),
        (Some(last), &Value::Bool(true))
    );
    let best = log(&out, "eval")
        .into_iter()
        .rev()
        .find(|line| line["best"] == true)
        .unwrap();
    assert_eq!(best["iteration"].as_u64().unwrap() + 4, last);
    assert!(last < 20, "{evaluations:?}");
    // Who resumes it asks for one more evaluation at least.
    let mut trainer = Trainer::resume(&out, Ok).unwrap();
    trainer.run(&mut ()).unwrap();
    let ends: Vec<_> = log(&out, "end")
        .iter()
        .map(|line| line["iteration"].as_u64().unwrap())
        .collect();
    assert_eq!(ends, [last, last + 2]);
}

/// The best is that of the score that is asked for, by what the log says of each evaluation.
#[test]
fn the_best_weights_are_those_of_the_score_that_is_asked_for() {
    for metric in ["macc", "aacc", "mdice", "mprecision", "mboundary_iou"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let best_by = format!("train.best_by={metric}");
        run(&recipe(&[&best_by, "optimizer.lr=0.1"]), &out, &mut ());
        let best = log(&out, "eval")
            .into_iter()
            .rev()
            .find(|line| line["best"] == true);
        let best = best.unwrap()["iteration"].as_u64().unwrap();
        let saved = halfseg_segmentor::read_metadata(out.join("best.safetensors")).unwrap();
        assert_eq!(saved["halfseg.iteration"], best.to_string(), "{metric}");
        let scores: Value =
            serde_json::from_str(&fs::read_to_string(out.join("scores.json")).unwrap()).unwrap();
        assert_eq!(scores["best"]["iteration"], best);
        assert_eq!(
            scores.get("mboundary_iou").is_some(),
            metric == "mboundary_iou"
        );
        if ["macc", "aacc"].contains(&metric) {
            let lines = log(&out, "eval");
            let of = |line: &Value| line[metric].as_f64().unwrap();
            let most = lines.iter().map(of).fold(0.0, f64::max);
            let there = lines.iter().find(|line| line["iteration"] == best).unwrap();
            assert_eq!(of(there), most, "{metric}");
        }
    }
}

#[test]
fn contradictions_are_refused_by_their_keys() {
    let refused = |settings: &[&str], expected: &str| {
        let mut recipe = recipe(&[]);
        let error = recipe.set_all(settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{settings:?}: {error}");
    };
    refused(&["train.ema=1"], "`train.ema`");
    refused(&["train.ema=-0.1"], "from 0 to below 1");
    refused(&["train.frozen_stages=5"], "`train.frozen_stages`");
    refused(
        &[
            "train.frozen_stages=1",
            "optimizer.lr_factors.backbone.layer1.0=2",
        ],
        "`optimizer.lr_factors`",
    );
    refused(
        &[
            "train.frozen_stages=0",
            "optimizer.decay_factors.backbone.stem=0",
        ],
        "`backbone.stem`",
    );
    refused(&["model.binary=true"], "false, but for two classes");
    refused(&["model.threshold=0.5"], "0.3 without binary");
    refused(
        &[
            "model.num_classes=2",
            "model.binary=true",
            "model.threshold=1",
        ],
        "between 0 and 1",
    );
    refused(
        &[
            "model.num_classes=2",
            "model.binary=true",
            "loss.sigmoid=true",
        ],
        "`loss.sigmoid`",
    );
}
