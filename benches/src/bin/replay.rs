//! Runs recordings of MMSegmentation through halfseg on any device, in f32, f16 and bf16, and prints
//! how far results and gradients are off.
//!
//! A recording (see `halfseg-segmentor`'s test `reference`, which compares more, on the CPU) holds a
//! small network of random weights and what MMSegmentation computed with it. The largest error of a
//! logit has a limit: in f32 1e-3 where logits have a deviation of 2, in f16 and bf16 1.5 times what
//! PyTorch's own autocast is off by. `--peer` names what `torch_peer.py replay` measured of it, best on
//! the same device. Recordings hold an error of bf16 alone; without a peer, f16 must stay within the
//! limit of bf16, which has three bits fewer.
//!
//! On CUDA with `HALFSEG_TF32=1`, f32 is multiplied on tensor cores, which read 10 bits of each mantissa (TF32). The limit
//! of f32 is then 1.5 times the peer's error with inputs rounded likewise.
//!
//! Each line is printed, and the JSON written, as soon as it is known.

#[path = "../../../crates/segmentor/tests/reference/recording.rs"]
#[allow(dead_code, reason = "the test that it is shared with reads more")]
mod recording;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::module::{ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use clap::Parser;
use halfseg_amp::autocast;
use halfseg_devices::DeviceChoice;
use halfseg_segmentor::{Segmentor, load};
use halfseg_train::RunPrecision;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use recording::{Recording, Values, folders_below};
use serde_json::{Value, json};

/// What losses are multiplied by before the backward pass in half precision.
const LOSS_SCALE: f64 = 512.0;

/// Runs recordings of MMSegmentation on a device and prints errors.
#[derive(Parser)]
struct Cli {
    /// A folder with recordings below it
    #[arg(long, value_name = "DIR")]
    recordings: PathBuf,
    /// flex, cuda, cuda:N, wgpu or wgpu:N
    #[arg(long, default_value = "flex")]
    device: DeviceChoice,
    /// Precisions to run in
    #[arg(long, value_delimiter = ',', default_values = ["f32", "f16", "bf16"])]
    precisions: Vec<RunPrecision>,
    /// What `torch_peer.py replay` printed: errors of PyTorch, from which limits follow
    #[arg(long, value_name = "FILE")]
    peer: Option<PathBuf>,
    /// Write the numbers as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Largest errors of PyTorch's logits, by recording and precision.
#[derive(Default)]
struct Peer(Value);

impl Peer {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let report: Value =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let errors = report.get("max_abs").cloned();
        let errors = errors.with_context(|| format!("{}: no `max_abs`", path.display()))?;
        Ok(Self(errors))
    }

    fn error(&self, recording: &str, precision: &str) -> Option<f64> {
        self.0.get(recording)?.get(precision)?.as_f64()
    }
}

/// What one recording gave in one precision.
struct Line {
    recording: String,
    precision: RunPrecision,
    /// Largest error of a logit and its limit, if there is one.
    logits: (f64, Option<f64>),
    /// Share of pixels of another class.
    classes: f64,
    /// Error of the loss, relative to it.
    loss: Option<f64>,
    /// Median and largest error of a gradient, relative to its norm in float64.
    gradients: Option<(f64, f64)>,
    /// All of it, with what was compiled and tuned for it.
    seconds: f64,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let folders = folders_below(&cli.recordings);
    ensure!(
        !folders.is_empty(),
        "{}: expected recordings (reference.json), found none",
        cli.recordings.display()
    );
    let peer = cli.peer.as_deref().map(Peer::read).transpose()?;
    let peer = peer.unwrap_or_default();
    let device = cli.device.open()?;
    println!(
        "| recording | dtype | logits, largest error | limit | pixels of another class | \
         loss, relative error | gradients, median error | largest | s |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    let mut lines = Vec::new();
    let mut failed = 0;
    // All recordings in one precision first: time may run out.
    for &precision in &cli.precisions {
        for folder in &folders {
            let name = folder.strip_prefix(&cli.recordings).unwrap_or(folder);
            let name = name.display().to_string();
            let one = || {
                let recording = Recording::open(folder.clone());
                let mut line = replay(&recording, &name, precision, &device)?;
                line.limit_by(&peer, cli.device);
                Ok(line)
            };
            match caught(one) {
                Ok(line) => {
                    println!("{}", line.row());
                    lines.push(line);
                }
                Err(error) => {
                    println!("| {name} | {precision} | **failed** | | | | | | |");
                    eprintln!("{name} in {precision}: {error:#}");
                    failed += 1;
                }
            }
            if let Some(path) = &cli.json {
                let rows: Vec<Value> = lines.iter().map(Line::json).collect();
                let text = json!({
                    "device": cli.device.to_string(), "failed": failed, "lines": rows,
                });
                std::fs::write(path, format!("{text:#}\n"))
                    .with_context(|| path.display().to_string())?;
            }
        }
    }
    let beyond = lines.iter().filter(|line| !line.is_within()).count();
    println!("{beyond} of {} lines are beyond a limit", lines.len());
    if failed > 0 {
        println!("{failed} lines are missing: see stderr");
    }
    Ok(ExitCode::from(u8::from(beyond + failed > 0)))
}

/// What `body` returns; a panic, as the backends report what goes wrong on a device, is an error too.
fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        bail!("panicked: {}", message.unwrap_or("no message"))
    })
}

fn replay(
    recording: &Recording,
    name: &str,
    precision: RunPrecision,
    device: &Device,
) -> Result<Line> {
    let start = Instant::now();
    let values = recording
        .tensors("reference.safetensors")
        .with_context(|| format!("{name}: no reference.safetensors"))?;
    let policy = precision.policy();
    let model = model(recording, device)?;
    let image = values.float::<4>("image", device);
    let logits = host(autocast(&policy, || model.forward(image)));
    let expected = host(values.float::<4>("decode_logits_full", &Device::flex()));
    let limit = match precision {
        RunPrecision::F32 => Some(1e-3 * deviation(&expected) / 2.0),
        RunPrecision::F16 | RunPrecision::Bf16 => recording
            .number(&["eval", "bf16_autocast_vs_float32", "max_abs"])
            .map(|peer| 1.5 * peer),
    };
    let classes = recording.config().num_classes;
    let mut line = Line {
        recording: name.to_owned(),
        precision,
        logits: (largest_error(&logits, &expected), limit),
        classes: differing(&logits, &expected, classes),
        loss: None,
        gradients: None,
        seconds: 0.0,
    };
    let training = recording.tensors("train.safetensors");
    if let Some(values) = training.filter(|_| recording.config().dropout == 0.0) {
        let (loss, gradients) = train(recording, &values, precision, device)?;
        if let Some(expected) = recording.number(&["train", "losses", "loss"]) {
            line.loss = Some((loss - expected).abs() / expected.abs());
        }
        let mut errors: Vec<f64> = gradients.into_values().collect();
        errors.sort_by(f64::total_cmp);
        line.gradients = errors.last().map(|&last| (errors[errors.len() / 2], last));
    }
    line.seconds = start.elapsed().as_secs_f64();
    Ok(line)
}

fn model(recording: &Recording, device: &Device) -> Result<Segmentor> {
    let path = recording.path("model.safetensors");
    let (model, loaded) = load(path, Some(&recording.config()), device)?;
    ensure!(loaded.is_complete(), "{loaded}");
    Ok(model)
}

/// The loss, and the error of each gradient relative to its norm in float64.
fn train(
    recording: &Recording,
    values: &Values,
    precision: RunPrecision,
    device: &Device,
) -> Result<(f64, BTreeMap<String, f64>)> {
    let device = device.clone().autodiff();
    let model = model(recording, &device)?;
    let image = values.float::<4>("image", &device);
    let labels = values.int::<3>("label", &device);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let losses = autocast(&precision.policy(), || model.loss(image, labels, &mut rng));
    let loss = f64::from(losses.total.clone().into_scalar::<f32>());
    let scale = match precision {
        RunPrecision::F32 => 1.0,
        RunPrecision::F16 | RunPrecision::Bf16 => LOSS_SCALE,
    };
    let gradients = (losses.total * scale).backward();
    let gradients = GradientsParams::from_grads(gradients, &model);
    let mut errors = Errors {
        gradients: &gradients,
        names: model.names(),
        values,
        scale,
        found: BTreeMap::new(),
    };
    burn::module::Module::visit(&model, &mut errors);
    Ok((loss, errors.found))
}

/// Compares gradients by MMSegmentation's names.
struct Errors<'a> {
    gradients: &'a GradientsParams,
    names: BTreeMap<ParamId, String>,
    values: &'a Values,
    scale: f64,
    found: BTreeMap<String, f64>,
}

impl ModuleVisitor for Errors<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = &self.names[&param.id];
        let key = format!("grad64.{name}");
        let Some(gradient) = self.gradients.get::<D>(param.id) else {
            return;
        };
        if !self.values.has(&key) {
            return;
        }
        let found = host(gradient).into_iter().map(|value| value / self.scale);
        let exact = host(self.values.row(&key, &Device::flex()));
        let error = norm(found.zip(&exact).map(|(found, exact)| found - exact));
        let norm = norm(exact.iter().copied()).max(1e-30);
        self.found.insert(name.clone(), error / norm);
    }
}

impl Line {
    /// Takes the limit from the peer's own error where that is known.
    fn limit_by(&mut self, peer: &Peer, device: DeviceChoice) {
        let name = match (self.precision, device) {
            (RunPrecision::F16, _) => "f16",
            (RunPrecision::Bf16, _) => "bf16",
            (RunPrecision::F32, DeviceChoice::Cuda(_))
                if std::env::var_os("HALFSEG_TF32").is_some_and(|value| value == "1") =>
            {
                "tf32"
            }
            (RunPrecision::F32, _) => return,
        };
        if let Some(error) = peer.error(&self.recording, name) {
            let limit = 1.5 * error;
            self.logits.1 = match self.precision {
                // The limit without TF32 holds in any case.
                RunPrecision::F32 => self.logits.1.map(|exact| exact.max(limit)),
                RunPrecision::F16 | RunPrecision::Bf16 => Some(limit),
            };
        }
    }

    fn is_within(&self) -> bool {
        let (error, limit) = self.logits;
        limit.is_none_or(|limit| error <= limit)
    }

    fn row(&self) -> String {
        let or_none =
            |value: Option<f64>| value.map_or("none".into(), |value| format!("{value:.1e}"));
        let verdict = if self.is_within() { "" } else { " **beyond**" };
        format!(
            "| {} | {} | {:.1e}{verdict} | {} | {:.1e} | {} | {} | {} | {:.1} |",
            self.recording,
            self.precision,
            self.logits.0,
            or_none(self.logits.1),
            self.classes,
            or_none(self.loss),
            or_none(self.gradients.map(|(median, _)| median)),
            or_none(self.gradients.map(|(_, largest)| largest)),
            self.seconds,
        )
    }

    fn json(&self) -> Value {
        json!({
            "recording": self.recording,
            "precision": self.precision.to_string(),
            "logits_max_error": self.logits.0,
            "logits_limit": self.logits.1,
            "share_of_other_classes": self.classes,
            "loss_relative_error": self.loss,
            "gradient_relative_error_median": self.gradients.map(|(median, _)| median),
            "gradient_relative_error_max": self.gradients.map(|(_, largest)| largest),
            "seconds": self.seconds,
            "within": self.is_within(),
        })
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let values = tensor.into_data().convert::<f32>();
    let values = values.as_slice::<f32>().expect("converted to f32 above");
    values.iter().map(|&value| f64::from(value)).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    norm(values.iter().map(|value| value - mean)) / (values.len() as f64).sqrt()
}

/// Infinite where a value is NaN.
fn largest_error(found: &[f64], expected: &[f64]) -> f64 {
    let errors = found.iter().zip(expected).map(|(f, e)| (f - e).abs());
    errors.fold(0.0, |largest, error| {
        if error.is_nan() {
            f64::INFINITY
        } else {
            largest.max(error)
        }
    })
}

/// Share of the pixels of `[1, classes, h, w]` whose largest logits differ.
fn differing(found: &[f64], expected: &[f64], classes: usize) -> f64 {
    let pixels = expected.len() / classes;
    let best = |values: &[f64], pixel: usize| {
        let at = |class: &usize| values[class * pixels + pixel];
        (0..classes).rev().max_by(|a, b| at(a).total_cmp(&at(b)))
    };
    let other = (0..pixels).filter(|&pixel| best(found, pixel) != best(expected, pixel));
    other.count() as f64 / pixels as f64
}
