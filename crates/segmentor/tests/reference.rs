//! Compares halfseg with recordings of MMSegmentation: every folder below `$HALFSEG_REFERENCE`, or
//! the small ones committed beside this file.
//!
//! A recording holds a network of random weights and what MMSegmentation computes with it: logits,
//! losses, gradients and the weights after one step; sliding-window and multi-scale inference. One
//! line per comparison goes to standard output, with the error and the limit.

#[path = "reference/recording.rs"]
mod recording;
#[path = "reference/report.rs"]
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig, decay::WeightDecayConfig};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use halfseg_amp::{Policy, autocast};
use halfseg_data::{CropBox, RgbImage, normalize, ratio_size, resize_bilinear};
use halfseg_layers::resize_with;
use halfseg_segmentor::{Losses, Method, Segmentor, load, read_architecture};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use recording::{Recording, Values};
use report::Report;

/// Largest error of a logit, where logits have a standard deviation of 2.
const LOGIT_LIMIT: f64 = 1e-3;
/// Largest share of pixels whose class may differ.
const CLASS_LIMIT: f64 = 1e-4;
/// The learning rate of the recorded step; momentum is 0.9, weight decay 5e-4 on everything.
const LEARNING_RATE: f64 = 0.01;
/// Images that differ from a recorded one by rounding, of which one must be within the limits of
/// gradients and of the loss after the step if the recorded one is not.
const NUDGES: u64 = 16;

fn main() {
    let (root, committed) = match std::env::var_os("HALFSEG_REFERENCE") {
        Some(root) => (PathBuf::from(root), false),
        None => (
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings"),
            true,
        ),
    };
    if committed {
        println!(
            "HALFSEG_REFERENCE is not set: comparing with the small recordings in {}",
            root.display()
        );
    }
    let folders = recording::folders_below(&root);
    assert!(
        !folders.is_empty(),
        "there is no recording (reference.json) below {}",
        root.display()
    );
    let mut report = Report::new(!committed);
    for folder in folders {
        let name = folder
            .strip_prefix(&root)
            .unwrap_or(&folder)
            .display()
            .to_string();
        report.enter(if name.is_empty() {
            root.display().to_string()
        } else {
            name
        });
        compare(&Recording::open(folder), &mut report);
    }
    report.finish();
}

fn compare(recording: &Recording, report: &mut Report) {
    let device = Device::flex();
    let model = compare_checkpoints(recording, report, &device);
    compare_parameters(recording, report, &model);
    compare_inference(recording, report, &model, &device);
    if let Some(training) = recording.tensors("train.safetensors") {
        match recording.config().dropout {
            0.0 => compare_training(recording, report, &training),
            ratio => report.skip(&format!(
                "training: its dropout of {ratio} is not repeatable"
            )),
        }
    }
    if let Some(values) = recording.tensors("slide_tta.safetensors") {
        compare_views(recording, report, &model, &values, &device);
    }
}

/// Both files give the same network, and the `.pth` shows its architecture.
fn compare_checkpoints(recording: &Recording, report: &mut Report, device: &Device) -> Segmentor {
    let config = recording.config();
    let pth = recording.path("model.pth");
    let safetensors = recording.path("model.safetensors");
    let load = |path: &Path| {
        let (model, loaded) = load(path, Some(&config), device).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            loaded.is_complete() && loaded.unexpected.is_empty(),
            "{loaded}"
        );
        model
    };
    let mut read = read_architecture(&pth).unwrap_or_else(|error| panic!("{error}"));
    if matches!(config.method, Method::Fcn | Method::PspNet) {
        read.dilations.clone_from(&config.dilations);
    }
    report.check(
        "architecture read off the tensors",
        f64::from(read != config),
        0.0,
    );
    let (model, other) = (load(&pth), load(&safetensors));
    let (ours, theirs) = (tensors(&model), tensors(&other));
    let different = ours
        .iter()
        .filter(|(name, data)| theirs[*name] != **data)
        .count();
    report.check(
        "tensors that differ between .pth and .safetensors",
        different as f64,
        0.0,
    );
    model
}

fn compare_parameters(recording: &Recording, report: &mut Report, model: &Segmentor) {
    let count = |part: &str| {
        let parameters = tensors(model)
            .into_iter()
            .filter(|(name, _)| name.starts_with(part) && !name.contains(".running_"));
        parameters
            .map(|(_, data)| data.num_elements())
            .sum::<usize>() as f64
    };
    for (part, prefix) in [
        ("total", ""),
        ("backbone", "backbone."),
        ("decode_head", "decode_head."),
        ("auxiliary_head", "auxiliary_head."),
    ] {
        let Some(expected) = recording.number(&["parameters", part]) else {
            continue;
        };
        report.check(
            &format!("parameters, {part}"),
            (count(prefix) - expected).abs(),
            0.0,
        );
    }
}

fn compare_inference(
    recording: &Recording,
    report: &mut Report,
    model: &Segmentor,
    device: &Device,
) {
    let Some(values) = recording.tensors("reference.safetensors") else {
        return;
    };
    let image = values.float::<4>("image", device);
    let stages = model.backbone.forward(image.clone());
    for (name, map) in [
        ("feat.c2", &stages.c2),
        ("feat.c3", &stages.c3),
        ("feat.c4", &stages.c4),
        ("feat.c5", &stages.c5),
    ] {
        if values.has(name) {
            let expected = values.float::<4>(name, device);
            let limit = 1e-4 * deviation(&expected).max(1e-3);
            report.check(name, max_error(map.clone(), expected), limit);
        }
    }
    let logits = model.forward(image.clone());
    let expected = values.float::<4>("decode_logits_full", device);
    let limit = LOGIT_LIMIT * deviation(&expected) / 2.0;
    report.check("logits", max_error(logits.clone(), expected.clone()), limit);
    let differing = differing_classes(logits, &values, "argmax");
    report.check("share of pixels of another class", differing, CLASS_LIMIT);

    if let Some(head) = &model.auxiliary_head {
        let low = head.forward(stages.at(recording.config().aux_index));
        let [_, _, h, w] = image.dims();
        let full = resize_with(low.clone(), [h, w], recording.config().align_corners);
        for (name, logits) in [("aux_logits", low), ("aux_logits_full", full)] {
            let expected = values.float::<4>(name, device);
            let limit = LOGIT_LIMIT * deviation(&expected) / 2.0;
            report.check(name, max_error(logits, expected), limit);
        }
    }

    let logits = autocast(&Policy::bf16(), || model.forward(image));
    let error = (logits - expected).abs();
    let peer = |key| recording.number(&["eval", "bf16_autocast_vs_float32", key]);
    if let Some(peer) = peer("max_abs") {
        report.check(
            "bf16 logits, largest",
            scalar(error.clone().max()),
            1.5 * peer,
        );
    }
    if let Some(peer) = peer("mean_abs") {
        report.check("bf16 logits, mean", scalar(error.mean()), 1.5 * peer);
    }
}

fn compare_training(recording: &Recording, report: &mut Report, values: &Values) {
    let batch = Batch::new(recording, values);
    let step = batch.step(batch.model());
    let recorded = |of: &str, key: &str| {
        recording
            .number(&["train", of, key])
            .unwrap_or_else(|| panic!("no {of}.{key}"))
    };
    let compare_losses = |report: &mut Report, of: &str, losses: &[f64; 3], limit: f64| {
        // Shares are measured against the whole: what rounding does to one it does to the sum.
        let total = recorded(of, "loss").abs();
        for (key, found) in ["loss", "decode.loss_ce", "aux.loss_ce"].iter().zip(losses) {
            let error = (found - recorded(of, key)).abs() / total;
            report.check(&format!("{of}, {key}, relative"), error, limit);
        }
    };
    compare_losses(report, "losses", &step.losses, 1e-5);
    // A few pixels may change sides by the logits' own rounding.
    let [n, h, w] = batch.labels.dims();
    let error = (step.accuracy - recorded("losses", "decode.acc_seg")).abs();
    let limit = (200.0 / (n * h * w) as f64).max(1e-2);
    report.check("decode.acc_seg, percent", error, limit);

    let second = recorded("losses_after_step", "loss");
    let beyond = |step: &Step| {
        let gradients = gradient_errors(recording, values, step, None);
        // Not `error > limit`, which a NaN would pass.
        let within = gradients.iter().filter(|g| g.error <= g.limit).count();
        // The signs that decide gradients also decide where the step ends.
        let second_within = (step.second[0] - second).abs() <= 1e-4 * second.abs();
        gradients.len() - within + usize::from(!second_within)
    };
    let (step, sensitivity) = match beyond(&step) {
        0 => (step, None),
        count => {
            println!(
                "{report}: {count} of {} numbers (gradients, and the loss after the step) are \
                 beyond the strict limits",
                step.gradients.len() + 1
            );
            let gradients = gradient_errors(recording, values, &step, None);
            for g in gradients
                .iter()
                .filter(|g| g.limit.total_cmp(&g.error).is_lt())
            {
                let (error, limit) = (g.error / g.norm, g.limit / g.norm);
                println!(
                    "{report}: beyond: gradient of {}: {error:.2e} of {limit:.2e}",
                    g.name
                );
            }
            // Rounding that falls otherwise: see `Batch::nudged`, and where that does not suffice
            // `Sensitivity`.
            let mut nudged = (1..=NUDGES).map(|run| (run, batch.nudged(run).step(batch.model())));
            match nudged.find(|(_, step)| beyond(step) == 0) {
                Some((run, step)) => {
                    println!(
                        "{report}: all are within them from image {run} of those that differ from \
                         the recorded one by rounding"
                    );
                    (step, None)
                }
                None => {
                    println!(
                        "{report}: nor are all within them from any of {NUDGES} images that differ \
                         by rounding; measuring what rounding does to this network"
                    );
                    assert!(
                        report.may_loosen(),
                        "a committed recording must stay within the strict limits"
                    );
                    let sensitivity = Sensitivity::measure(&batch, &step);
                    (step, Some(sensitivity))
                }
            }
        }
    };
    let gradients = gradient_errors(recording, values, &step, sensitivity.as_ref());
    compare_gradients(report, &gradients);
    compare_step(report, values, &step, &gradients);
    let rounding = sensitivity.map_or(0.0, |sensitivity| sensitivity.second / second.abs());
    compare_losses(
        report,
        "losses_after_step",
        &step.second,
        (3.0 * rounding).max(1e-4),
    );

    let losses = autocast(&Policy::bf16(), || batch.losses(&batch.model()));
    compare_losses(report, "losses_bf16_autocast", &numbers(&losses), 1e-2);
}

/// A recorded batch and how to train on it.
struct Batch<'a> {
    recording: &'a Recording,
    device: Device,
    image: Tensor<4>,
    labels: Tensor<3, Int>,
}

/// What one step on a batch gives.
struct Step {
    losses: [f64; 3],
    accuracy: f64,
    gradients: BTreeMap<String, Tensor<1>>,
    after: BTreeMap<String, TensorData>,
    second: [f64; 3],
}

impl<'a> Batch<'a> {
    fn new(recording: &'a Recording, values: &Values) -> Self {
        let device = Device::flex().autodiff();
        let image = values.float::<4>("image", &device);
        let labels = values.int::<3>("label", &device);
        Self {
            recording,
            device,
            image,
            labels,
        }
    }

    fn model(&self) -> Segmentor {
        let (path, config) = (
            self.recording.path("model.safetensors"),
            self.recording.config(),
        );
        let loaded = load(path, Some(&config), &self.device);
        loaded.unwrap_or_else(|error| panic!("{error}")).0
    }

    /// The batch with each number of the image moved by at most a unit in its last place, so that
    /// the roundings of all later sums fall otherwise.
    ///
    /// A value that lies within rounding of 0 before a ReLU sends its gradient one way or the
    /// other, and every layer below follows. Traced on recordings at depth 101 with 3.9 million
    /// such values, 2 or 3 of them have another sign than in float64, in MMSegmentation's f32 run
    /// as here; with the signs held fixed all gradients are within 3e-5 of float64. A step from one
    /// of these images whose signs agree with float64 must be within the strict limits as a whole.
    fn nudged(&self, run: u64) -> Self {
        let mut mover = Mover {
            rng: ChaCha8Rng::seed_from_u64(run),
            shift: f64::from(f32::EPSILON),
        };
        Self {
            recording: self.recording,
            device: self.device.clone(),
            image: mover.moved(self.image.clone()),
            labels: self.labels.clone(),
        }
    }

    fn losses(&self, model: &Segmentor) -> Losses {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        model.loss(self.image.clone(), self.labels.clone(), &mut rng)
    }

    fn step(&self, model: Segmentor) -> Step {
        let losses = self.losses(&model);
        let gradients = GradientsParams::from_grads(losses.total.backward(), &model);
        let mut collector = Gradients {
            gradients: &gradients,
            names: model.names(),
            found: BTreeMap::new(),
        };
        model.visit(&mut collector);
        let found = collector.found;
        let mut optimizer = SgdConfig::new()
            .with_momentum(Some(MomentumConfig::new().with_dampening(0.0)))
            .with_weight_decay(Some(WeightDecayConfig::new(5e-4)))
            .init();
        let model = optimizer.step(LEARNING_RATE, model, gradients);
        let after = tensors(&model);
        Step {
            losses: numbers(&losses),
            accuracy: scalar(losses.accuracy),
            gradients: found,
            after,
            second: numbers(&self.losses(&model)),
        }
    }
}

fn numbers(losses: &Losses) -> [f64; 3] {
    [&losses.total, &losses.decode, &losses.aux].map(|loss| scalar(loss.clone()))
}

/// Collects gradients by MMSegmentation's names.
struct Gradients<'a> {
    gradients: &'a GradientsParams,
    names: BTreeMap<ParamId, String>,
    found: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let count = gradient.shape().num_elements();
            let name = self.names[&param.id].clone();
            self.found.insert(name, gradient.reshape([count]));
        }
    }
}

/// How far rounding moves this network's gradients.
///
/// The last resort, where so many values lie within rounding of 0 before a ReLU that no run has all
/// their signs as float64 has them. MMSegmentation itself, with another convolution algorithm, is
/// beyond 3 times its own recorded noise then. The step is repeated with weights and image moved by
/// up to 4 units in the last place, which is what sums of some hundred products round by, and what
/// that moves a gradient by, at most [`CAP`](Self::CAP) of it, is allowed three times.
struct Sensitivity {
    /// Largest distance of a gradient from the unmoved one, absolutely.
    gradients: BTreeMap<String, f64>,
    /// The same for the loss after the step.
    second: f64,
}

impl Sensitivity {
    const RUNS: u64 = 4;
    /// No gradient may be further off than this share of its norm. One sign alone moved gradients
    /// of MMSegmentation by up to 0.11 between its own convolution algorithms.
    const CAP: f64 = 0.2;
    const SHIFT: f64 = 4.0 * f32::EPSILON as f64;

    fn measure(batch: &Batch<'_>, step: &Step) -> Self {
        let mut found = Self {
            gradients: BTreeMap::new(),
            second: 0.0,
        };
        for run in 0..Self::RUNS {
            let mut mover = Mover {
                rng: ChaCha8Rng::seed_from_u64(run),
                shift: Self::SHIFT,
            };
            let moved = Batch {
                recording: batch.recording,
                device: batch.device.clone(),
                image: mover.moved(batch.image.clone()),
                labels: batch.labels.clone(),
            };
            let other = moved.step(batch.model().map(&mut mover));
            for (name, gradient) in &other.gradients {
                let distance = norm(gradient.clone() - step.gradients[name].clone());
                let largest = found.gradients.entry(name.clone()).or_default();
                *largest = largest.max(distance);
            }
            found.second = found.second.max((other.second[0] - step.second[0]).abs());
        }
        found
    }
}

/// Moves every number by up to a share of its size.
struct Mover {
    rng: ChaCha8Rng,
    shift: f64,
}

impl Mover {
    fn moved<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        let (shape, device) = (x.dims(), x.device());
        let factors: Vec<f32> = (0..x.shape().num_elements())
            .map(|_| (1.0 + self.shift * self.rng.random_range(-1.0..=1.0)) as f32)
            .collect();
        x * Tensor::from_data(TensorData::new(factors, shape), &device)
    }
}

impl ModuleMapper for Mover {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let tracked = param.is_require_grad();
        param.map(|x| {
            let moved = self.moved(x.inner());
            Tensor::from_inner(moved).set_require_grad(tracked)
        })
    }
}

/// How a gradient compares with the one in float64, absolutely.
struct GradientError {
    name: String,
    norm: f64,
    error: f64,
    limit: f64,
}

fn gradient_errors(
    recording: &Recording,
    values: &Values,
    step: &Step,
    sensitivity: Option<&Sensitivity>,
) -> Vec<GradientError> {
    let device = Device::flex();
    let compare = |name: String| {
        let exact = values.row(&format!("grad64.{name}"), &device);
        let found = step
            .gradients
            .get(&name)
            .unwrap_or_else(|| panic!("{name} has no gradient"));
        let norm = norm(exact.clone()).max(1e-30);
        let error = self::norm(found.clone() - exact);
        let noise = recording
            .number(&["train", "grad_noise", &name])
            .unwrap_or(0.0);
        let rounding = sensitivity.map_or(0.0, |sensitivity| sensitivity.gradients[&name]);
        let strict = 3.0 * noise.max(1e-5) * norm;
        let limit = strict.max((3.0 * rounding).min(Sensitivity::CAP * norm));
        GradientError {
            name,
            norm,
            error,
            limit,
        }
    };
    values
        .names_after("grad64.")
        .into_iter()
        .map(compare)
        .collect()
}

fn compare_gradients(report: &mut Report, gradients: &[GradientError]) {
    let ratio = |g: &&GradientError| g.error / g.limit;
    for GradientError {
        name,
        norm,
        error,
        limit,
    } in gradients
    {
        report.count(
            &format!("gradient of {name}, relative"),
            error / norm,
            limit / norm,
        );
    }
    if let Some(g) = gradients
        .iter()
        .max_by(|a, b| ratio(a).total_cmp(&ratio(b)))
    {
        let what = format!(
            "{} gradients, nearest to its limit: {}",
            gradients.len(),
            g.name
        );
        report.summarise(&what, g.error / g.norm, g.limit / g.norm);
    }
}

fn compare_step(report: &mut Report, values: &Values, step: &Step, gradients: &[GradientError]) {
    let device = Device::flex();
    let limits: BTreeMap<&str, f64> = gradients
        .iter()
        .map(|gradient| (gradient.name.as_str(), gradient.limit))
        .collect();
    let mut worst = [
        (0.0, String::new(), 0.0, 0.0),
        (0.0, String::new(), 0.0, 0.0),
    ];
    for name in values.names_after("after.") {
        if name.ends_with("num_batches_tracked") {
            continue;
        }
        let expected = values.row(&format!("after.{name}"), &device);
        let row: Vec<f32> = step.after[&name].iter::<f32>().collect();
        let found = Tensor::<1>::from_data(TensorData::new(row, expected.dims()), &device);
        let statistic = name.contains(".running_");
        let (error, limit) = match statistic {
            true => (norm(found - expected.clone()) / norm(expected), 1e-5),
            false => (
                max_error(found, expected),
                LEARNING_RATE * limits[name.as_str()] + 1e-6,
            ),
        };
        let what = if statistic { "statistic" } else { "step" };
        report.count(&format!("{what} of {name}"), error, limit);
        let worst = &mut worst[usize::from(statistic)];
        if error / limit >= worst.0 {
            *worst = (error / limit, name, error, limit);
        }
    }
    for (what, (_, name, error, limit)) in ["step", "running statistics"].iter().zip(worst) {
        report.summarise(
            &format!("{what}, nearest to its limit: {name}"),
            error,
            limit,
        );
    }
}

/// Whole, sliding-window and multi-scale inference on an 8-bit image.
fn compare_views(
    recording: &Recording,
    report: &mut Report,
    model: &Segmentor,
    values: &Values,
    device: &Device,
) {
    let settings = recording.json("slide_tta.json");
    let pair = |key: &str| -> [usize; 2] {
        [0, 1].map(|i| settings[key][i].as_u64().expect("a size") as usize)
    };
    let (crop, stride) = (pair("crop"), pair("stride"));
    let ratios: Vec<f64> = settings["ratios"]
        .as_array()
        .expect("ratios")
        .iter()
        .map(|ratio| ratio.as_f64().expect("a ratio"))
        .collect();
    let (width, height, bytes) = values.bytes("image");
    let rgb = bytes
        .chunks_exact(3)
        .flat_map(|bgr| [bgr[2], bgr[1], bgr[0]])
        .collect();
    let image = RgbImage {
        width,
        height,
        data: rgb,
    };
    let tensor = |image: &RgbImage| {
        let shape = [1, 3, image.height, image.width];
        Tensor::<4>::from_data(TensorData::new(normalize(image), shape), device)
    };
    let network = |x: Tensor<4>| model.forward(x);
    let windows = |x: Tensor<4>| halfseg_eval::slide(&network, x, crop, stride);
    let align_corners = recording.config().align_corners;

    for (name, logits) in [
        ("whole", network(tensor(&image))),
        ("slide", windows(tensor(&image))),
    ] {
        let expected = values
            .float::<3>(&format!("{name}.logits"), device)
            .unsqueeze::<4>();
        let limit = LOGIT_LIMIT * deviation(&expected) / 2.0;
        report.check(
            &format!("{name} logits"),
            max_error(logits.clone(), expected),
            limit,
        );
        let differing = differing_classes(logits, values, &format!("{name}.pred"));
        report.check(
            &format!("{name}, share of pixels of another class"),
            differing,
            2e-4,
        );
    }
    let views = |run: &dyn Fn(Tensor<4>) -> Tensor<4>| {
        let view = |ratio: f64, mirror: bool| {
            let (w, h) = ratio_size((width, height), ratio);
            let region = CropBox {
                left: 0,
                top: 0,
                width: w,
                height: h,
            };
            let x = tensor(&resize_bilinear(&image, (w, h), region));
            let x = if mirror { x.flip([3]) } else { x };
            // Mirroring and resizing commute.
            resize_with(run(x), [height, width], align_corners)
        };
        halfseg_eval::multi_scale_flip(&view, &ratios, &[false, true])
    };
    for (name, run) in [
        ("tta", &network as &dyn Fn(Tensor<4>) -> Tensor<4>),
        ("slide_tta", &windows as &dyn Fn(Tensor<4>) -> Tensor<4>),
    ] {
        let key = format!("{name}.probs");
        if !values.has(&key) {
            continue;
        }
        let probabilities = views(run);
        let expected = values.float::<3>(&key, device).unsqueeze::<4>();
        let error = max_error(probabilities.clone(), expected);
        report.check(&format!("{name} probabilities"), error, 1e-4 + LOGIT_LIMIT);
        let differing = differing_classes(probabilities, values, &format!("{name}.pred"));
        report.check(
            &format!("{name}, share of pixels of another class"),
            differing,
            2e-4,
        );
    }
}

/// Share of pixels whose largest score is not the recorded class.
fn differing_classes(scores: Tensor<4>, values: &Values, name: &str) -> f64 {
    let expected = values.bytes(name).2;
    let found = halfseg_eval::argmax(scores).into_iter();
    let found: Vec<u8> = found.flat_map(|one| one.map.data).collect();
    assert_eq!(found.len(), expected.len(), "{name} has another size");
    let different = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    different as f64 / expected.len() as f64
}

/// All tensors of a network by MMSegmentation's names.
fn tensors(model: &Segmentor) -> BTreeMap<String, TensorData> {
    struct Visitor {
        names: BTreeMap<ParamId, String>,
        found: BTreeMap<String, TensorData>,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found
                .insert(self.names[&param.id].clone(), param.val().into_data());
        }
    }
    let mut visitor = Visitor {
        names: model.names(),
        found: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

fn scalar(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}

fn max_error<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f64 {
    assert_eq!(found.dims(), expected.dims(), "shapes differ");
    let error = (found.cast(FloatDType::F64) - expected.cast(FloatDType::F64))
        .abs()
        .max();
    let error: f64 = error.into_scalar();
    if error.is_nan() { f64::INFINITY } else { error }
}

fn norm(x: Tensor<1>) -> f64 {
    let squares: f64 = x.cast(FloatDType::F64).square().sum().into_scalar();
    squares.sqrt()
}

fn deviation(x: &Tensor<4>) -> f64 {
    let x = x.clone().cast(FloatDType::F64);
    let variance: f64 = (x.clone() - x.mean().unsqueeze::<4>())
        .square()
        .mean()
        .into_scalar();
    variance.sqrt()
}
