//! Whole runs at a tiny width.

mod stopped;

use std::fs;
use std::path::Path;

use halfseg_data::DataError;
use halfseg_devices::DeviceChoice;
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{
    Error, Existing, Log, Observer, Outcome, Recipe, Splits, Started, Step, Timing, Trainer,
    read_recipe, resolve_checkpoint,
};
use stopped::{StopAt, run};

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

fn resume(out: &Path, observer: &mut dyn Observer) -> Outcome {
    Trainer::resume(out, Ok).unwrap().run(observer).unwrap()
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
            true => run(&recipe, &parts, &mut StopAt::iteration(stop)),
            false => resume(&parts, &mut StopAt::iteration(stop)),
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
    run(&recipe, &two, &mut StopAt::iteration(2));
    let alone = |mut recipe: Recipe| {
        recipe.further_devices.clear();
        Ok(recipe)
    };
    let mut trainer = Trainer::resume(&two, alone).unwrap();
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
    let of_each =
        "colour map, overlay, trainIds, panel and difference of the worst and of the best picture";
    assert_eq!(pictures, 2 * 5, "{of_each}");

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
    run(&recipe, &out, &mut StopAt::iteration(2));
    let before = tensors(&out.join("iter_2.safetensors"));

    let failed = |trainer: &mut Trainer, expected: [&str; 2]| {
        let error = trainer.run(&mut ()).unwrap_err();
        let mut text = error.to_string();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            text.push_str(&next.to_string());
            cause = next;
        }
        for part in expected {
            assert!(text.contains(part), "expected `{part}` in: {text}");
        }
        assert_eq!(tensors(&out.join("iter_2.safetensors")), before);
    };
    // A device that is always full.
    #[cfg(target_os = "linux")]
    for name in ["iter_4.safetensors", "iter_4.state.safetensors"] {
        let mut trainer = Trainer::resume(&out, Ok).unwrap();
        std::os::unix::fs::symlink("/dev/full", out.join(name)).unwrap();
        failed(&mut trainer, [name, "No space left"]);
        let last = fs::read_to_string(out.join("last_checkpoint")).unwrap();
        assert_eq!(last, "iter_2.safetensors");
    }
    let mut trainer = Trainer::resume(&out, Ok).unwrap();
    let last = out.join("last_checkpoint");
    fs::remove_file(&last).unwrap();
    fs::create_dir(&last).unwrap();
    failed(&mut trainer, ["last_checkpoint", "directory"]);
    drop(trainer);
    fs::remove_dir(&last).unwrap();
    fs::write(&last, "iter_2.safetensors").unwrap();
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
fn batches_that_workers_would_pile_up_beyond_memory_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny(Method::Fcn, 2_000_000, "f16");
    // 1,049,600 batches of 1.7 MB.
    let many = ["data.crop=256x256", "data.workers=1024", "data.queue=1024"];
    recipe.set_all(many).unwrap();
    let device = DeviceChoice::Flex.open().unwrap();
    let begin =
        |recipe: &Recipe| Trainer::new(recipe.clone(), &device, &folder.path().join("run")).err();
    let error = begin(&recipe).unwrap().to_string();
    for part in ["`data.workers`", "data.queue = 1024", "1024 workers with 1"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // A short run has no use for so many.
    recipe.set("schedule.iterations=2").unwrap();
    assert!(begin(&recipe).is_none());
}

/// The place of the first value of the tensor `name` in the bytes of a file.
fn place(bytes: &[u8], name: &str) -> usize {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    file.tensor(name).unwrap().data().as_ptr().addr() - bytes.as_ptr().addr()
}

#[test]
fn weights_that_are_no_numbers_are_neither_saved_nor_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let device = DeviceChoice::Flex.open().unwrap();
    let out = folder.path().join("run");
    // The first step leaves infinities behind, although its loss is a number.
    let mut recipe = tiny(Method::Fcn, 4, "f32");
    let steep = ["optimizer.lr=1e30", "train.checkpoint_every=1"];
    recipe.set_all(steep).unwrap();
    recipe.set("optimizer.lr_factors.decode_head=1e30").unwrap();
    let mut trainer = Trainer::new(recipe, &device, &out).unwrap();
    let error = trainer.run(&mut ()).unwrap_err();
    assert!(
        matches!(&error, Error::Diverged { iteration: 1, loss, found } if loss.is_finite()
            && found.contains("the last step left") && found.contains("`decode_head.")),
        "{error}"
    );
    assert!(!out.join("iter_1.safetensors").exists() && !Trainer::can_resume(&out));

    let out = folder.path().join("other");
    run(
        &tiny(Method::Fcn, 4, "f32"),
        &out,
        &mut StopAt::iteration(2),
    );
    let path = out.join("iter_2.safetensors");
    let whole = fs::read(&path).unwrap();
    for (name, value) in [
        ("decode_head.conv_seg.bias", f32::NAN),
        ("backbone.layer1.0.bn1.running_var", f32::INFINITY),
    ] {
        let mut bytes = whole.clone();
        let at = place(&bytes, name);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let mut onward = tiny(Method::Fcn, 2, "f32");
        onward.checkpoint = path.to_str().unwrap().to_owned();
        for error in [
            Trainer::resume(&out, Ok).err().unwrap(),
            Trainer::new(onward, &device, &folder.path().join("onward"))
                .err()
                .unwrap(),
        ] {
            let (error, found) = (error.to_string(), format!("{value} in `{name}`"));
            assert!(
                error.contains("iter_2.safetensors") && error.contains(&found),
                "{error}"
            );
        }
    }
    fs::write(&path, whole).unwrap();
    assert!(matches!(resume(&out, &mut ()), Outcome::Finished(Some(_))));
}

#[test]
fn resuming_where_nothing_is_names_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let error = Trainer::resume(folder.path(), Ok).err().unwrap();
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

/// A run that evaluates and writes lines for several iterations, in a folder of its own.
fn eventful() -> Recipe {
    let mut recipe = tiny(Method::Fcn, 7, "f32");
    let settings = [
        "train.eval_every=2",
        "train.checkpoint_every=3",
        "train.log_every=4",
    ];
    recipe.set_all(settings).unwrap();
    recipe
}

/// What must not depend on interruptions: weights, optimizer, best weights, scores, and the log but
/// for its times.
fn remains(out: &Path) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let averages = "iter_7.ema.safetensors";
    let averages = out.join(averages).is_file().then_some(averages);
    let names = [
        "iter_7.safetensors",
        "iter_7.state.safetensors",
        "best.safetensors",
    ];
    for name in names.into_iter().chain(averages) {
        for (tensor, bytes) in tensors(&out.join(name)) {
            all.push((format!("{name}: {tensor}"), format!("{bytes:?}")));
        }
    }
    let scores = fs::read_to_string(out.join("scores.json")).unwrap();
    all.push(("scores.json".into(), scores));
    for event in ["train", "skip", "eval", "end"] {
        let lines = Log::read(&out.join("log.jsonl"), event).unwrap();
        for mut line in lines {
            let fields = line.as_object_mut().unwrap();
            fields.retain(|key, _| {
                ![
                    "seconds",
                    "step_s",
                    "data_wait_s",
                    "images_per_s",
                    "rss_mib",
                    "peak_rss_mib",
                ]
                .contains(&key.as_str())
            });
            all.push((event.into(), line.to_string()));
        }
    }
    all
}

fn check_remains(expected: &[(String, String)], out: &Path, what: &str) {
    let found = remains(out);
    let names =
        |all: &[(String, String)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{what}");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{what}: {name} differs");
    }
}

/// Ends the run as a kill does, without a word, at the given call.
struct KilledAt {
    calls: usize,
    at: usize,
}

impl KilledAt {
    fn call(&mut self) {
        self.calls += 1;
        if self.calls == self.at {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

impl Observer for KilledAt {
    fn started(&mut self, _: &Started<'_>) {
        self.call();
    }
    fn stepped(&mut self, _: &Step, _: &Timing) {
        self.call();
    }
    fn evaluating(&mut self, _: usize, _: usize) {
        self.call();
    }
    fn evaluated(&mut self, _: u64, _: &halfseg_eval::Scores, _: bool) {
        self.call();
    }
    fn saved(&mut self, _: &Path) {
        self.call();
    }
    fn stop(&mut self) -> bool {
        self.call();
        false
    }
}

/// As [`KilledAt`], but asked to stop, as by Ctrl-C.
struct StoppedAt(KilledAt);

impl Observer for StoppedAt {
    fn stop(&mut self) -> bool {
        self.0.calls += 1;
        self.0.calls == self.0.at
    }
}

#[test]
fn a_run_that_ends_anywhere_goes_on_as_if_it_had_not() {
    check_any_end(&eventful());
    let mut options = eventful();
    let settings = [
        "train.ema=0.6",
        "optimizer.kind=adamw",
        "train.best_by=mdice",
    ];
    options.set_all(settings).unwrap();
    check_any_end(&options);
}

fn check_any_end(recipe: &Recipe) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let mut calls = KilledAt { calls: 0, at: 0 };
    run(recipe, &whole, &mut calls);
    let expected = remains(&whole);
    let mut stops = StoppedAt(KilledAt { calls: 0, at: 0 });
    run(recipe, &folder.path().join("again"), &mut stops);

    let device = DeviceChoice::Flex.open().unwrap();
    for at in 1..=calls.calls {
        let out = folder.path().join(format!("killed-{at}"));
        let mut trainer = Trainer::new(recipe.clone(), &device, &out).unwrap();
        let killed = std::panic::AssertUnwindSafe(|| trainer.run(&mut KilledAt { calls: 0, at }));
        assert!(std::panic::catch_unwind(killed).is_err(), "call {at}");
        drop(trainer);
        if Trainer::can_resume(&out) {
            resume(&out, &mut ());
        } else {
            let again = Trainer::with_data(
                recipe.clone(),
                Splits::open(recipe).unwrap(),
                &device,
                &out,
                Existing::Replaced,
            );
            again.unwrap().run(&mut ()).unwrap();
        }
        check_remains(&expected, &out, &format!("killed at call {at}"));
    }
    for at in 1..=stops.0.calls {
        let out = folder.path().join(format!("stopped-{at}"));
        let outcome = run(recipe, &out, &mut StoppedAt(KilledAt { calls: 0, at }));
        // The last question is asked when everything is done.
        if matches!(outcome, Outcome::Interrupted { .. }) {
            resume(&out, &mut ());
        }
        check_remains(&expected, &out, &format!("stopped at question {at}"));
    }
}

#[test]
fn resuming_a_finished_run_changes_neither_log_nor_scores() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let Outcome::Finished(Some(scores)) = run(&eventful(), &out, &mut ()) else {
        panic!("expected scores");
    };
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    fs::remove_file(out.join("scores.json")).unwrap();
    let Outcome::Finished(Some(again)) = resume(&out, &mut ()) else {
        panic!("expected scores");
    };
    assert_eq!(again, scores);
    assert_eq!(fs::read_to_string(out.join("log.jsonl")).unwrap(), log);
    assert!(out.join("scores.json").is_file());

    let longer = |mut recipe: Recipe| {
        recipe.set("schedule.iterations=9")?;
        Ok(recipe)
    };
    Trainer::resume(&out, longer).unwrap().run(&mut ()).unwrap();
    let evaluations = Log::read(&out.join("log.jsonl"), "eval").unwrap();
    let at: Vec<_> = evaluations.iter().map(|line| &line["iteration"]).collect();
    assert_eq!(at, [2, 4, 6, 7, 8, 9]);
}

#[test]
fn a_folder_belongs_to_one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let recipe = eventful();
    run(&recipe, &out, &mut StopAt::iteration(3));
    let held = Trainer::resume(&out, Ok).unwrap();
    let error = Trainer::resume(&out, Ok).err().unwrap();
    assert!(
        matches!(error, Error::FolderLocked { .. })
            && error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    let device = DeviceChoice::Flex.open().unwrap();
    let data = Splits::open(&recipe).unwrap();
    let replaced = Existing::Replaced;
    let error = Trainer::with_data(recipe, data, &device, &out, replaced)
        .err()
        .unwrap();
    assert!(matches!(error, Error::FolderLocked { .. }), "{error}");
    drop(held);
    assert!(Trainer::resume(&out, Ok).is_ok());
}

#[test]
fn of_two_new_runs_in_one_folder_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let out = &folder.path().join("run");
    let barrier = &std::sync::Barrier::new(2);
    let begin = || {
        let device = DeviceChoice::Flex.open().unwrap();
        let recipe = eventful();
        barrier.wait();
        let trainer = Trainer::new(recipe, &device, out);
        // Neither is over before both have begun.
        barrier.wait();
        trainer.map(drop)
    };
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(begin);
        [begin(), other.join().unwrap()]
    });
    let refused: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(
        matches!(refused.as_slice(), [Error::FolderLocked { .. }]),
        "{refused:?}"
    );
}

#[test]
fn another_runs_files_are_refused_and_replaced_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let device = DeviceChoice::Flex.open().unwrap();
    for (name, text) in [
        ("best.safetensors", "weights"),
        ("iter_3.safetensors", "weights"),
        ("iter_3.state.safetensors", "weights"),
        ("last_checkpoint", "iter_3.safetensors"),
        ("scores.json", "{}"),
        ("log.jsonl", "{\"event\":\"train\",\"iteration\":1}\n"),
        ("config.toml", "seed = 77\n"),
    ] {
        let out = folder.path().join(name);
        fs::create_dir(&out).unwrap();
        fs::write(out.join(name), text).unwrap();
        fs::write(out.join("notes.txt"), "mine").unwrap();
        let recipe = tiny(Method::Fcn, 1, "f32");
        let error = Trainer::new(recipe.clone(), &device, &out).err().unwrap();
        assert!(
            matches!(error, Error::FolderInUse { .. }),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), text);

        let data = Splits::open(&recipe).unwrap();
        let replaced = Existing::Replaced;
        let trainer = Trainer::with_data(recipe.clone(), data, &device, &out, replaced).unwrap();
        let found = fs::read_to_string(out.join(name)).ok();
        let expected = match name {
            "log.jsonl" => Some(String::new()),
            "config.toml" => Some(recipe.to_toml()),
            _ => None,
        };
        assert_eq!(found, expected, "{name}");
        assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
        drop(trainer);
    }
    // What has a run's names and is no run's is somebody's.
    for name in [
        "log.jsonl",
        "loss.svg",
        "confusion.svg",
        "pictures/x_trainIds.png",
    ] {
        let path = folder.path().join("strange").join(name);
        let out = folder.path().join("strange");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        let recipe = tiny(Method::Fcn, 1, "f32");
        let error = Trainer::new(recipe.clone(), &device, &out).err().unwrap();
        let first = name.split('/').next().unwrap();
        assert!(
            matches!(&error, Error::FolderInUse { found, .. } if found == first),
            "{name}: {error}"
        );
        let data = Splits::open(&recipe).unwrap();
        drop(Trainer::with_data(recipe, data, &device, &out, Existing::Replaced).unwrap());
        assert_eq!(
            path.is_file(),
            first != name || name == "log.jsonl",
            "{name}"
        );
        fs::remove_dir_all(out).unwrap();
    }
    // A run that came to nothing is in nobody's way, nor is a configuration that says the same.
    let out = folder.path().join("nothing");
    fs::create_dir(&out).unwrap();
    let recipe = tiny(Method::Fcn, 1, "f32");
    let own = format!("# mine\n{}", recipe.to_toml());
    fs::write(out.join("config.toml"), &own).unwrap();
    drop(Trainer::new(recipe.clone(), &device, &out).unwrap());
    assert_eq!(fs::read_to_string(out.join("config.toml")).unwrap(), own);
    run(&tiny(Method::PspNet, 1, "f32"), &out, &mut ());
}

#[test]
fn what_interrupted_saves_left_behind_goes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut recipe = eventful();
    recipe.set("train.checkpoint_every=1").unwrap();
    run(&recipe, &out, &mut StopAt::iteration(3));
    let names = || {
        let entries = fs::read_dir(&out).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let before = names();
    // A save of iteration 4 that did not get far.
    let manifest = fs::read_to_string(out.join("run.json")).unwrap();
    let listed = manifest.replace(
        "\"checkpoints\":{",
        "\"checkpoints\":{\"4\":{\"log_bytes\":0,\
        \"line\":{\"steps\":0,\"sums\":[0,0,0,0],\"skipped\":0,\"waited\":{\"secs\":0,\"nanos\":0},\
        \"total\":{\"secs\":0,\"nanos\":0},\"images\":0},\"best\":null,\"evaluated\":null,\
        \"finished\":false},",
    );
    assert_ne!(listed, manifest);
    fs::write(out.join("run.json"), listed).unwrap();
    fs::copy(
        out.join("iter_3.safetensors"),
        out.join("iter_4.safetensors"),
    )
    .unwrap();
    fs::write(out.join(".iter_4.state.safetensors.77-0.tmp"), "half").unwrap();
    fs::write(out.join(".best.safetensors.78-12.tmp"), "half").unwrap();
    drop(Trainer::resume(&out, Ok).unwrap());
    assert_eq!(names(), before);

    // What no run of this folder wrote stays.
    let mine = [".mine.tmp", "iter_2.safetensors", "iter_2-copy.safetensors"];
    for name in mine {
        fs::write(out.join(name), "mine").unwrap();
    }
    resume(&out, &mut ());
    for name in mine {
        assert!(names().iter().any(|there| there == name), "{name} is gone");
    }
}

#[test]
fn as_many_checkpoints_stay_as_are_asked_for_and_each_can_be_gone_back_to() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut recipe = eventful();
    recipe.set("train.keep=2").unwrap();
    run(&recipe, &out, &mut ());
    let expected = remains(&out);
    let there = |iteration: u64| {
        let weights = out.join(format!("iter_{iteration}.safetensors"));
        weights.is_file() && weights.with_extension("state.safetensors").is_file()
    };
    assert_eq!([4, 6, 7].map(there), [false, true, true]);
    fs::write(out.join("last_checkpoint"), "iter_6.safetensors\n").unwrap();
    resume(&out, &mut ());
    check_remains(&expected, &out, "from the one before");

    recipe
        .set_all(["train.checkpoint_every=0", "train.eval_every=0"])
        .unwrap();
    let end = folder.path().join("end");
    run(&recipe, &end, &mut ());
    assert!(end.join("iter_7.safetensors").is_file());
    assert_eq!(Log::read(&end.join("log.jsonl"), "eval").unwrap().len(), 1);
}

#[test]
fn what_would_make_another_run_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&eventful(), &out, &mut StopAt::iteration(3));
    let log = fs::read(out.join("log.jsonl")).unwrap();
    for (assignment, key, reason) in [
        ("seed=5", "`seed`", "order of the data"),
        ("train.batch=4", "`train.batch`", "counted in batches"),
        (
            "data.synthetic_train=6",
            "`data.train_split`",
            "decides their order",
        ),
        (
            "schedule.iterations=2",
            "`schedule.iterations`",
            "3 or more",
        ),
    ] {
        let change = |mut recipe: Recipe| {
            recipe.set(assignment)?;
            Ok(recipe)
        };
        let error = Trainer::resume(&out, change).err().unwrap().to_string();
        assert!(error.contains(key) && error.contains(reason), "{error}");
    }
    assert_eq!(fs::read(out.join("log.jsonl")).unwrap(), log);
    resume(&out, &mut ());
}

#[test]
fn a_best_score_holds_for_its_pictures_and_settings() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&eventful(), &out, &mut StopAt::iteration(5));
    let first = Log::read(&out.join("log.jsonl"), "eval").unwrap();
    assert_eq!(first[0]["best"], true);
    let change = |mut recipe: Recipe| {
        recipe.set("eval.ms_flip=true")?;
        Ok(recipe)
    };
    struct Notes(Vec<String>);
    impl Observer for Notes {
        fn started(&mut self, run: &Started<'_>) {
            self.0 = run.notes.to_vec();
        }
    }
    let mut notes = Notes(Vec::new());
    Trainer::resume(&out, change)
        .unwrap()
        .run(&mut notes)
        .unwrap();
    assert!(
        matches!(notes.0.as_slice(), [note] if note.contains("looked for anew")),
        "{:?}",
        notes.0
    );
    let lines = Log::read(&out.join("log.jsonl"), "eval").unwrap();
    assert_eq!(
        lines[2]["best"], true,
        "the first of other settings is the best of them"
    );
    assert_eq!(lines[2]["iteration"], 6);
}

#[test]
fn damaged_and_mismatched_checkpoints_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&eventful(), &out, &mut StopAt::iteration(3));
    let refused = |parts: &[&str]| {
        let error = Trainer::resume(&out, Ok).err().unwrap().to_string();
        for part in parts {
            assert!(error.contains(part), "expected `{part}` in: {error}");
        }
    };
    let last = out.join("last_checkpoint");
    fs::copy(
        out.join("iter_3.safetensors"),
        folder.path().join("iter_3.safetensors"),
    )
    .unwrap();
    for name in [
        "../iter_3.safetensors",
        "/etc/passwd",
        "iter_03.safetensors",
        "iter_3.state.safetensors",
        "iter_+3.safetensors",
        "",
    ] {
        fs::write(&last, name).unwrap();
        refused(&["last_checkpoint", "such as iter_8000.safetensors"]);
    }
    fs::write(&last, b"iter_\xff.safetensors").unwrap();
    refused(&["last_checkpoint"]);
    fs::write(&last, "iter_99999999999999999999.safetensors").unwrap();
    refused(&["last_checkpoint"]);
    fs::write(&last, "iter_5.safetensors").unwrap();
    refused(&["iter_5.safetensors", "iter_3.safetensors is whole"]);
    fs::write(&last, "iter_3.safetensors").unwrap();

    let state = out.join("iter_3.state.safetensors");
    let whole = fs::read(&state).unwrap();
    let rewritten = |text: &str, with: &str, tensors: bool| {
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
        assert!(header.contains(text), "{header:.300}");
        let header = header.replace(text, with);
        let (header, data) = match tensors {
            true => (header, &whole[8 + length..]),
            false => {
                let mut json: serde_json::Value = serde_json::from_str(&header).unwrap();
                json.as_object_mut()
                    .unwrap()
                    .retain(|name, _| name == "__metadata__");
                (json.to_string(), &whole[..0])
            }
        };
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        fs::write(&state, bytes).unwrap();
    };
    let (three, four) = ("\\\"iteration\\\":3", "\\\"iteration\\\":4");
    rewritten(three, four, true);
    refused(&["iter_3.state.safetensors", "iteration 3", "iteration 4"]);
    rewritten(three, three, false);
    refused(&["iter_3.state.safetensors", "momentum"]);
    fs::write(&state, &whole).unwrap();

    let manifest = out.join("run.json");
    let listed = fs::read(&manifest).unwrap();
    fs::write(&manifest, &listed[..listed.len() / 2]).unwrap();
    refused(&["run.json"]);
    fs::write(&manifest, &listed).unwrap();
    resume(&out, &mut ());
}

#[test]
fn a_run_of_an_earlier_version_goes_on_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole"), folder.path().join("run"));
    let mut recipe = eventful();
    // Earlier versions forgot what a line had added up.
    recipe.set("train.log_every=1").unwrap();
    run(&recipe, &whole, &mut ());
    let expected = remains(&whole);
    for stop in [4, 5, 7] {
        run(&recipe, &out, &mut StopAt::iteration(stop));
        fs::remove_file(out.join("run.json")).unwrap();
        fs::remove_file(out.join("run.lock")).unwrap();
        struct Notes(usize);
        impl Observer for Notes {
            fn started(&mut self, run: &Started<'_>) {
                self.0 = run
                    .notes
                    .iter()
                    .filter(|n| n.contains("earlier version"))
                    .count();
            }
        }
        let mut notes = Notes(0);
        Trainer::resume(&out, Ok).unwrap().run(&mut notes).unwrap();
        assert_eq!(notes.0, 1);
        check_remains(&expected, &out, &format!("stopped after {stop}"));
        fs::remove_dir_all(&out).unwrap();
    }
}

/// Whose resize takes 466 GiB.
#[test]
fn a_long_and_narrow_crop_announces_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny(Method::Fcn, 1, "f16");
    if halfseg_devices::available_memory().is_none_or(|available| available.0 > 400 << 30) {
        return;
    }
    for crop in ["1000000x1", "1x1000000"] {
        recipe.set(&format!("data.crop={crop}")).unwrap();
        let device = DeviceChoice::Flex.open().unwrap();
        let error = Trainer::new(recipe.clone(), &device, &folder.path().join("run"));
        let Some(Error::Memory { needed, .. }) = error.err() else {
            panic!("expected more memory to be asked for than there is");
        };
        assert!(needed.0 > 450 << 30, "{needed}");
    }
}

/// The step is finite, but not what the weights make of f16 after it.
#[test]
fn an_evaluation_that_is_not_finite_is_counted_and_ends_nothing() {
    #[derive(Default)]
    struct Seen(usize);
    impl Observer for Seen {
        fn not_finite(&mut self, name: &str, pixels: usize) {
            assert!(!name.is_empty());
            self.0 += pixels;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut recipe = tiny(Method::Fcn, 1, "f16");
    recipe.set("optimizer.lr=1e30").unwrap();
    let mut seen = Seen::default();
    let outcome = run(&recipe, &out, &mut seen);
    assert!(matches!(outcome, Outcome::Finished(Some(_))));
    let evaluations = Log::read(&out.join("log.jsonl"), "eval").unwrap();
    assert_eq!(evaluations[0]["not_finite"], seen.0);
    assert!((1..=2 * 64 * 32).contains(&seen.0), "{} pixels", seen.0);
}
