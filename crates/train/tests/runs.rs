//! Whole runs at a tiny width.

use std::fs;
use std::path::Path;

use halfseg_data::DataError;
use halfseg_devices::DeviceChoice;
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{
    Error, Log, Observer, Outcome, Recipe, Step, Timing, Trainer, read_recipe, resolve_checkpoint,
};

fn tiny(method: Method, iterations: u64, precision: &str) -> Recipe {
    let mut recipe = Recipe::published(method, Depth::R18);
    for value in [
        "model.stem_channels=8",
        "model.base_channels=4",
        "model.head_channels=8",
        "model.aux_channels=8",
        "model.c1_channels=4",
        "data.scale=64x32",
        "data.crop=32x32",
        "data.synthetic_train=5",
        "data.synthetic_val=2",
        "train.batch=2",
        "train.pictures=1",
        &format!("schedule.iterations={iterations}"),
        &format!("precision.dtype={precision}"),
    ] {
        recipe.set(value).unwrap();
    }
    recipe
}

/// Stops after a number of iterations.
struct StopAt(u64, u64);

impl Observer for StopAt {
    fn stepped(&mut self, step: &Step, _timing: &Timing) {
        self.1 = step.iteration;
    }

    fn stop(&mut self) -> bool {
        self.1 >= self.0
    }
}

fn run(recipe: &Recipe, out: &Path, observer: &mut dyn Observer) -> Outcome {
    let device = DeviceChoice::Flex.open().unwrap();
    Trainer::new(recipe.clone(), &device, out)
        .unwrap()
        .run(observer)
        .unwrap()
}

fn resume(out: &Path, observer: &mut dyn Observer) -> Outcome {
    let device = DeviceChoice::Flex.open().unwrap();
    Trainer::resume(&device, out, Ok)
        .unwrap()
        .run(observer)
        .unwrap()
}

/// Tensors of a safetensors file without its metadata, byte for byte.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec()))
        .collect();
    tensors.sort();
    assert!(tensors.len() > 50, "{} holds too little", path.display());
    tensors
}

fn check_resume(method: Method, precision: &str, scale: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let mut recipe = tiny(method, 6, precision);
    recipe
        .set(&format!("precision.loss_scale={scale}"))
        .unwrap();

    assert!(matches!(
        run(&recipe, &whole, &mut ()),
        Outcome::Finished(Some(_))
    ));
    for (stop, from_scratch) in [(2, true), (5, false)] {
        let outcome = match from_scratch {
            true => run(&recipe, &parts, &mut StopAt(stop, 0)),
            false => resume(&parts, &mut StopAt(stop, 0)),
        };
        let Outcome::Interrupted {
            iteration,
            checkpoint,
        } = outcome
        else {
            panic!("expected an interruption");
        };
        assert_eq!(iteration, stop);
        assert!(checkpoint.is_file());
    }
    assert!(matches!(
        resume(&parts, &mut ()),
        Outcome::Finished(Some(_))
    ));

    for name in ["iter_6.safetensors", "iter_6.state.safetensors"] {
        let (a, b) = (tensors(&whole.join(name)), tensors(&parts.join(name)));
        assert_eq!(a.len(), b.len());
        for ((name, a), (_, b)) in a.iter().zip(&b) {
            assert!(
                a == b,
                "{method} {precision}: {name} differs after resuming"
            );
        }
    }
    let losses = |out: &Path| -> Vec<String> {
        let lines = Log::read(&out.join("log.jsonl"), "train").unwrap();
        lines
            .iter()
            .map(|line| format!("{} {}", line["loss"], line["lr"]))
            .collect()
    };
    assert_eq!(losses(&whole), losses(&parts));
    assert_eq!(losses(&whole).len(), 6);
    assert_eq!(
        fs::read_to_string(whole.join("scores.json")).unwrap(),
        fs::read_to_string(parts.join("scores.json")).unwrap()
    );
    // Only the last checkpoint stays.
    assert!(!parts.join("iter_2.safetensors").exists());
    assert!(!parts.join("iter_5.state.safetensors").exists());
}

#[test]
fn a_resumed_run_is_the_uninterrupted_run_bit_for_bit() {
    check_resume(Method::Fcn, "f32", "512");
    check_resume(Method::Fcn, "f16", "dynamic");
    check_resume(Method::DeepLabV3Plus, "bf16", "512");
}

/// A checkpoint does not tell on how many devices it was written.
#[test]
fn a_run_on_two_devices_is_resumed_on_one() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let mut recipe = tiny(Method::PspNet, 3, "f16");
    run(&recipe, &one, &mut ());
    recipe.set("further_devices=[\"flex\"]").unwrap();
    run(&recipe, &two, &mut StopAt(2, 0));
    let device = DeviceChoice::Flex.open().unwrap();
    let alone = |mut recipe: Recipe| {
        recipe.further_devices.clear();
        Ok(recipe)
    };
    let mut trainer = Trainer::resume(&device, &two, alone).unwrap();
    assert!(matches!(
        trainer.run(&mut ()).unwrap(),
        Outcome::Finished(_)
    ));
    for name in ["iter_3.safetensors", "iter_3.state.safetensors"] {
        let names = |out: &Path| -> Vec<_> {
            let tensors = tensors(&out.join(name)).into_iter();
            tensors.map(|(name, data)| (name, data.len())).collect()
        };
        assert_eq!(names(&one), names(&two));
    }
    let losses = |out: &Path| -> Vec<f64> {
        let lines = Log::read(&out.join("log.jsonl"), "train").unwrap();
        lines
            .iter()
            .map(|line| line["loss"].as_f64().unwrap())
            .collect()
    };
    for (a, b) in losses(&one).iter().zip(losses(&two)) {
        assert!((a - b).abs() < 5e-3 * a, "{a} on one device, {b} on two");
    }
}

#[test]
fn a_run_leaves_its_results_and_a_checkpoint_that_knows_itself() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut recipe = tiny(Method::PspNet, 4, "f16");
    recipe.set("train.eval_every=2").unwrap();
    let Outcome::Finished(Some(scores)) = run(&recipe, &out, &mut ()) else {
        panic!("expected scores");
    };
    assert!((0.0..=1.0).contains(&scores.mean_iou));
    for name in [
        "config.toml",
        "log.jsonl",
        "scores.json",
        "loss.svg",
        "confusion.svg",
    ] {
        assert!(out.join(name).is_file(), "{name} is missing");
    }
    let pictures = fs::read_dir(out.join("pictures")).unwrap().count();
    assert_eq!(pictures, 4, "colour map, overlay, trainIds and panel");

    let best = resolve_checkpoint(&out).unwrap();
    assert_eq!(best, out.join("best.safetensors"));
    assert_eq!(read_recipe(&best).unwrap().unwrap(), recipe);
    assert_eq!(
        halfseg_segmentor::read_architecture(&best).unwrap(),
        recipe.model
    );
    assert_eq!(Recipe::read(&out.join("config.toml")).unwrap(), recipe);
    let evaluations = Log::read(&out.join("log.jsonl"), "eval").unwrap();
    assert_eq!(evaluations.len(), 2);
    assert_eq!(evaluations[1]["iteration"], 4);

    let device = DeviceChoice::Flex.open().unwrap();
    let again = Trainer::new(recipe, &device, &out).err().unwrap();
    assert!(matches!(again, Error::FolderInUse { .. }), "{again}");
}

#[test]
fn a_full_disk_leaves_the_previous_checkpoint_to_resume_from() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let recipe = tiny(Method::Fcn, 4, "f32");
    run(&recipe, &out, &mut StopAt(2, 0));
    let before = tensors(&out.join("iter_2.safetensors"));

    // The names that writers take first lead to a device that is always full.
    #[cfg(target_os = "linux")]
    for name in [
        "iter_4.safetensors",
        "iter_4.state.safetensors",
        "last_checkpoint",
    ] {
        let temporary = out.join(format!(".{name}.{}.tmp", std::process::id()));
        std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
        let device = DeviceChoice::Flex.open().unwrap();
        let error = Trainer::resume(&device, &out, Ok)
            .unwrap()
            .run(&mut ())
            .unwrap_err();
        let mut text = error.to_string();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            text.push_str(&next.to_string());
            cause = next;
        }
        assert!(
            text.contains(name) && text.contains("No space left"),
            "{text}"
        );
        let last = fs::read_to_string(out.join("last_checkpoint")).unwrap();
        assert_eq!(last, "iter_2.safetensors");
        assert_eq!(tensors(&out.join("iter_2.safetensors")), before);
        let _ = fs::remove_file(temporary);
    }
    assert!(matches!(resume(&out, &mut ()), Outcome::Finished(Some(_))));
}

#[test]
fn a_crop_beyond_memory_is_refused_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny(Method::Fcn, 1, "f16");
    recipe.set("data.crop=1000000x1000000").unwrap();
    let device = DeviceChoice::Flex.open().unwrap();
    let error = Trainer::new(recipe, &device, &folder.path().join("run"))
        .err()
        .unwrap();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
    assert!(error.to_string().contains("1000000x1000000"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn resuming_where_nothing_is_names_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let device = DeviceChoice::Flex.open().unwrap();
    let error = Trainer::resume(&device, folder.path(), Ok).err().unwrap();
    assert!(matches!(error, Error::NothingToResume { .. }));
    assert!(error.to_string().contains("last_checkpoint"), "{error}");
}

#[test]
fn labels_beyond_the_classes_are_refused_by_value() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny(Method::Fcn, 2, "f32");
    recipe.set("model.num_classes=5").unwrap();
    let device = DeviceChoice::Flex.open().unwrap();
    let mut trainer = Trainer::new(recipe, &device, &folder.path().join("run")).unwrap();
    let error = trainer.run(&mut ()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Data(DataError::LabelOutOfRange { expected: 5, .. })
        ),
        "{error}"
    );
}

#[test]
fn an_endless_learning_rate_ends_with_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny(Method::Fcn, 50, "f16");
    recipe.set("optimizer.lr=1e12").unwrap();
    recipe.set("train.max_skipped=3").unwrap();
    let device = DeviceChoice::Flex.open().unwrap();
    let mut trainer = Trainer::new(recipe, &device, &folder.path().join("run")).unwrap();
    let error = trainer.run(&mut ()).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
}
