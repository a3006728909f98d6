//! Training in several processes against one process with the whole batch: this program starts itself under
//! `mpirun`. `HALFSEG_REQUIRE_MPI` makes it an error that there is none.

mod network;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use halfseg_amp::{DynamicScale, Scaling};
use halfseg_segmentor::{Depth, Method, Segmentor};
use halfseg_train::{Learner, LossScale, Ranks, Recipe, RunPrecision, Step, check_same_weights};
use network::{Batch, values};

/// Two, three and four processes with as many images each.
const BATCH: Batch = Batch {
    images: 12,
    first: 5,
    one_in: 2,
};

/// Runs the test `body` of this program in so many processes.
fn under_mpirun(processes: usize, body: &str) {
    let mpirun = std::env::var("MPIRUN").unwrap_or("mpirun".into());
    let mut command = Command::new(&mpirun);
    command
        .args(
            "--allow-run-as-root --oversubscribe --bind-to none --mca btl tcp,self -np".split(' '),
        )
        .arg(processes.to_string())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", body, "--ignored", "--nocapture"])
        .env("RAYON_NUM_THREADS", "1");
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            let required = std::env::var_os("HALFSEG_REQUIRE_MPI").is_some();
            assert!(!required, "{mpirun}: {error}");
            eprintln!("skipped: {mpirun}: {error}");
            return;
        }
    };
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    for line in said.lines().filter(|line| line.contains("differ by")) {
        println!("{processes} processes: {line}");
    }
    assert!(output.status.success(), "{processes}: {said}\n{errors}");
    // That it was run at all; lines of several processes may be mixed.
    assert!(said.contains("1 passed"), "{said}\n{errors}");
}

fn recipe(method: Method, precision: RunPrecision, settings: &[&str]) -> Recipe {
    let settings = [&["optimizer.lr=0.2", "train.batch=12"], settings].concat();
    network::recipe(method, Depth::R18, precision, &settings)
}

/// What all processes begin with.
fn drawn(recipe: &Recipe) -> Segmentor {
    let device = Device::flex().autodiff();
    device.seed(7);
    recipe.model.init(&device)
}

/// Running statistics are shared between clones.
fn copied(model: &Segmentor) -> Segmentor {
    model.clone().valid().train()
}

fn joined() -> Ranks {
    Ranks::start().expect("mpirun started this program")
}

struct Pair {
    whole: Learner,
    shared: Learner,
}

impl Pair {
    /// A learner that is alone, and one of the processes', with so many devices in each.
    fn new(recipe: &Recipe, devices: usize) -> (Self, BTreeMap<String, Vec<f32>>) {
        let model = drawn(recipe);
        let further = vec![Device::flex().autodiff(); devices - 1];
        let learner = || Learner::new(copied(&model), recipe.precision.policy(), recipe);
        let shared = learner().with_further_devices(further).with_ranks(joined());
        let pair = Self {
            whole: learner(),
            shared,
        };
        (pair, values(&model))
    }

    fn step(&mut self, images: &Tensor<4>, labels: &Tensor<3, Int>) -> [Step; 2] {
        let places = self.shared.places(images.dims()[0]);
        let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
        let places = Tensor::<1, Int>::from_ints(&places[..], &images.device());
        let part = images.clone().select(0, places.clone());
        let whole = self.whole.step(images.clone(), labels.clone());
        [
            whole,
            self.shared.step(part, labels.clone().select(0, places)),
        ]
    }

    fn difference(&self, initial: &BTreeMap<String, Vec<f32>>) -> f64 {
        apart(&self.whole, &self.shared, initial)
    }

    /// How far three steps of the learner that is alone end from where they did, at most, with images that
    /// differ by some units in the last place.
    fn moved_by_rounding(
        &self,
        recipe: &Recipe,
        images: &Tensor<4>,
        labels: &Tensor<3, Int>,
        initial: &BTreeMap<String, Vec<f32>>,
    ) -> f64 {
        let nudged = (1..=6).map(|units| {
            let model = copied(&drawn(recipe));
            let mut learner = Learner::new(model, recipe.precision.policy(), recipe);
            let images = images.clone() * (1.0 + f64::from(units) * f64::from(f32::EPSILON));
            for _ in 0..3 {
                learner.step(images.clone(), labels.clone());
            }
            apart(&self.whole, &learner, initial)
        });
        nudged.fold(0.0, f64::max)
    }
}

/// The same of parameters alone: running statistics change more.
fn parameters_apart(pair: &Pair, initial: &BTreeMap<String, Vec<f32>>) -> f64 {
    let mut parameters = initial.clone();
    parameters.retain(|path, _| !path.contains("running_"));
    apart(&pair.whole, &pair.shared, &parameters)
}

/// The 2-norm of the difference of all values over that of what training changed.
fn apart(one: &Learner, other: &Learner, initial: &BTreeMap<String, Vec<f32>>) -> f64 {
    let (one, other) = (values(one.model()), values(other.model()));
    let (mut apart, mut moved) = (0.0, 0.0);
    for (path, initial) in initial {
        for ((a, b), initial) in one[path].iter().zip(&other[path]).zip(initial) {
            apart += f64::from(a - b).powi(2);
            moved += f64::from(a - initial).powi(2);
        }
    }
    (apart / moved).sqrt()
}

fn check_same_everywhere(learner: &Learner, what: &str) {
    check_same_weights(learner.ranks(), learner.model(), what).unwrap();
}

#[test]
fn processes_train_as_one_with_the_whole_batch() {
    for processes in 2..=4 {
        under_mpirun(processes, "body_of_equality");
    }
}

#[test]
#[ignore = "run by the test above in several processes"]
fn body_of_equality() {
    let device = Device::flex().autodiff();
    for method in Method::ALL {
        let recipe = recipe(method, RunPrecision::F32, &[]);
        let (drawn, labels) = BATCH.draw(recipe.model.num_classes, &device);
        for brightness in [1.0, 0.9, 1.1] {
            let images = drawn.clone() * brightness;
            let (mut pair, initial) = Pair::new(&recipe, 1);
            for _ in 0..3 {
                let [whole, shared] = pair.step(&images, &labels);
                assert!(whole.outcome.stepped() && shared.outcome.stepped());
                assert!((whole.loss - shared.loss).abs() <= 1e-5 * whole.loss);
                assert!((whole.accuracy - shared.accuracy).abs() < 0.1);
            }
            let share = pair.difference(&initial);
            // A value within rounding of 0 before a ReLU may go either way, and its gradient with it.
            let explained = match share < 1e-6 {
                true => 0.0,
                false => 3.0 * pair.moved_by_rounding(&recipe, &images, &labels, &initial),
            };
            let parameters = parameters_apart(&pair, &initial);
            if pair.shared.ranks().is_first() {
                println!(
                    "{method}: values differ by {share:.1e} of what training changed, parameters by \
                     {parameters:.1e} ({explained:.1e})"
                );
            }
            assert!(
                share < f64::max(1e-6, explained),
                "{method}: {share:e} {explained:e}"
            );
            check_same_everywhere(&pair.shared, "weights");
        }
    }
    joined().finish();
}

#[test]
fn processes_take_the_same_decisions_in_f16() {
    for processes in 2..=4 {
        under_mpirun(processes, "body_of_decisions");
    }
}

/// Images of one process overflow in some steps, and the dynamic scale falls and rises.
#[test]
#[ignore = "run by the test above in several processes"]
fn body_of_decisions() {
    let device = Device::flex().autodiff();
    for method in Method::ALL {
        let mut recipe = recipe(method, RunPrecision::F16, &[]);
        let scale = DynamicScale::torch().with_interval(3);
        recipe.precision.loss_scale = LossScale::Given(Scaling::Dynamic(scale));
        let (mut pair, initial) = Pair::new(&recipe, 1);
        let (images, labels) = BATCH.draw(recipe.model.num_classes, &device);
        // Of the last process.
        let spoilt = images.clone().narrow(0, 11, 1) * f32::INFINITY;
        let spoilt = Tensor::cat(vec![images.clone().narrow(0, 0, 11), spoilt], 0);
        let mut scales = Vec::new();
        for turn in 0..9 {
            let overflows = turn % 5 == 2;
            let images = if overflows { &spoilt } else { &images };
            let before = values(pair.shared.model());
            let [whole, shared] = pair.step(images, &labels);
            let told = [&whole, &shared].map(|step| step.outcome.stepped());
            assert_eq!(told[0], told[1], "{method}, step {turn}");
            if overflows {
                assert!(!told[0], "{method}, step {turn}");
                assert_eq!(before, values(pair.shared.model()), "{method}, step {turn}");
            }
            let [a, b] =
                [&pair.whole, &pair.shared].map(|learner| learner.scaler().current_scale());
            assert_eq!(a, b, "{method}, step {turn}");
            scales.push(b.to_string());
        }
        scales.dedup();
        assert!(scales.len() > 2, "the scale moved: {scales:?}");
        let ranks = pair.shared.ranks();
        ranks.check_same("scales", &scales.join(" ")).unwrap();
        check_same_everywhere(&pair.shared, "weights");
        let share = pair.difference(&initial);
        assert!(share < 2e-2, "{method}: {share:e}");
    }
    joined().finish();
}

#[test]
fn weights_stay_the_same_to_the_last_bit() {
    under_mpirun(3, "body_of_bits");
}

#[test]
#[ignore = "run by the test above in several processes"]
fn body_of_bits() {
    let device = Device::flex().autodiff();
    for (precision, exchange) in [
        (RunPrecision::F32, "f32"),
        (RunPrecision::F16, "f16"),
        (RunPrecision::Bf16, "bf16"),
    ] {
        let exchanged = format!("train.exchange_precision={exchange}");
        let settings = [
            &*exchanged,
            "schedule.iterations=200",
            "optimizer.clip_norm=10",
            "train.ema=0.9",
        ];
        let recipe = recipe(Method::DeepLabV3Plus, precision, &settings);
        let learner = Learner::new(drawn(&recipe), recipe.precision.policy(), &recipe);
        let mut learner = learner.with_ranks(joined());
        let (images, labels) = BATCH.draw(recipe.model.num_classes, &device);
        let first = learner.places(12)[0];
        let part = (images.narrow(0, first, 4), labels.narrow(0, first, 4));
        let mut losses = Vec::new();
        for _ in 0..200 {
            let step = learner.step(part.0.clone(), part.1.clone());
            losses.push(step.loss);
        }
        check_same_everywhere(&learner, "weights after 200 steps");
        let averaged = learner.averaged().unwrap();
        check_same_weights(learner.ranks(), &averaged, "averages after 200 steps").unwrap();
        let mut hasher = DefaultHasher::new();
        for loss in &losses {
            loss.to_bits().hash(&mut hasher);
        }
        let losses_hash = format!("{:x}", hasher.finish());
        learner.ranks().check_same("losses", &losses_hash).unwrap();
        // It learns these images by heart.
        assert!(losses[199] < losses[0], "{} {}", losses[0], losses[199]);
    }
    joined().finish();
}

#[test]
fn processes_with_several_devices_train_as_one() {
    under_mpirun(2, "body_of_devices");
}

/// Two devices in each of two processes, and batches that are taken in parts; gradients in half precision.
#[test]
#[ignore = "run by the test above in several processes"]
fn body_of_devices() {
    let device = Device::flex().autodiff();
    // Of parameters, which the rounding of gradients moves.
    let bound = [("f32", 1e-5), ("bf16", 3e-2), ("f16", 3e-3)];
    for (exchange, bound) in bound {
        for accumulate in [1, 3] {
            let settings = [
                format!("train.exchange_precision={exchange}"),
                format!("train.accumulate={accumulate}"),
            ];
            let settings = settings.each_ref().map(|text| text.as_str());
            let recipe = recipe(Method::PspNet, RunPrecision::F32, &settings);
            let (mut pair, initial) = Pair::new(&recipe, 2);
            let (images, labels) = BATCH.draw(recipe.model.num_classes, &device);
            for _ in 0..2 {
                let [whole, shared] = pair.step(&images, &labels);
                assert!((whole.loss - shared.loss).abs() <= 1e-2 * whole.loss);
            }
            let share = parameters_apart(&pair, &initial);
            if pair.shared.ranks().is_first() {
                println!("{exchange}, {accumulate} part(s): parameters differ by {share:.1e}");
            }
            assert!(share < bound, "{exchange}, {accumulate}: {share:e}");
            let rounded = exchange != "f32";
            assert_eq!(rounded, share > 1e-5, "{exchange}: {share:e}");
            check_same_everywhere(&pair.shared, "weights");
        }
    }
    joined().finish();
}
