//! `halfseg bench`.

#[cfg(any(feature = "count-allocations", test))]
mod allocator;
mod exchange;
mod layers;
mod memory;
mod peak;

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, Distribution, Int, Tensor};
use halfseg_devices::{Bytes, DeviceChoice, resident_memory};
use halfseg_predict::{Predictor, PredictorSettings};
use halfseg_segmentor::{Cost, Depth, MemoryPlan, Method, SegmentorConfig, count_parameters};
use halfseg_train::{Learner, Recipe, check_memory};
use serde_json::json;

use self::layers::Layers;
use self::memory::{allocated, in_use, seen_in_use};
use self::peak::measure_gflops;
use crate::args::BenchArgs;
use crate::commands::cpu_kernels;
use crate::commands::info::memory_plan;
use crate::commands::start_threads;
use crate::failure::{Interrupted, Usage};
use crate::interrupt;
use crate::output::{check_writable, print_table, write_json};

/// Measures passes over random images through a network of random weights.
///
/// Inference is the network, logits at the images' size and argmax, read back to the host; training
/// is all of [`Learner::step`]: network, both losses, backward pass, unscaling, SGD. Nothing is
/// loaded.
pub fn run(args: &BenchArgs) -> Result<()> {
    check_writable(&[&args.json], &[])?;
    let recipe = recipe(args)?;
    if args.exchange {
        return exchange::run(args, &recipe);
    }
    let (method, depth) = (recipe.model.method, recipe.model.backbone);
    let batch = recipe.train.batch;
    check(args, &recipe.model, batch)?;
    match args.train {
        true => drop(check_memory(&recipe)?),
        false => {
            let settings = PredictorSettings::new(args.precision.policy(), recipe.eval.clone());
            let (device, size) = (recipe.device.open()?, args.size);
            settings.check_memory(&recipe.model, &device, size.width, size.height)?;
        }
    }
    start_threads(args.threads)?;
    let threads = rayon::current_num_threads();
    // Before the network, so that the machine is as cool for it as it will be.
    let peak = match args.peak_gflops {
        Some(given) => Some((given, "given")),
        None if args.device == DeviceChoice::Flex => Some((measure_gflops(threads), "measured")),
        None => None,
    };

    let mode = if args.train { "training" } else { "inference" };
    let json = args.json.as_deref();
    let what = format!(
        "{method} on {depth}, {mode}, {batch} image(s) of {}, {}, {}, {threads} thread(s)\n",
        args.size, args.precision, args.device
    );
    print_table(&what, json)?;
    let measured = if args.train {
        measure_training(args, &recipe)?
    } else {
        measure_inference(args, &recipe)?
    };
    let Measured {
        seconds,
        parameters,
        memory,
        memory_source,
        allocated,
        in_use,
        saved,
        packed,
        layers,
    } = measured;
    let plan = args
        .train
        .then(|| MemoryPlan::of(&recipe.model, &recipe.training_step()));
    let times = Times::of(seconds);

    let macs = macs(&recipe.model, args, batch);
    let floor_s = peak.map(|(gflops, _)| 2.0 * macs as f64 / (gflops * 1e9));
    let images_per_s = batch as f64 / times.median;
    let mut table = String::new();
    let mut row = |name: &str, value: String| table += &format!("{name:<22}{value:>14}\n");
    row("median", format!("{:.4} s", times.median));
    row("95th percentile", format!("{:.4} s", times.p95));
    row("fastest", format!("{:.4} s", times.min));
    row("images/s", format!("{images_per_s:.3}"));
    row("multiply-adds", format!("{:.2} G", macs as f64 / 1e9));
    if let (Some((gflops, origin)), Some(floor_s)) = (peak, floor_s) {
        row("f32 peak", format!("{gflops:.1} GFLOP/s {origin}"));
        row("floor", format!("{floor_s:.4} s"));
        let share = 100.0 * floor_s / times.median;
        row("share of the floor", format!("{share:.1}%"));
    }
    let kernels = (args.device == DeviceChoice::Flex)
        .then(cpu_kernels)
        .flatten();
    if let Some((instruction_set, f32_products)) = kernels {
        row("instruction set", instruction_set.into());
        row("f32 products", f32_products.into());
    }
    row(
        "peak memory",
        memory.map_or("unknown".into(), |peak: Bytes| peak.to_string()),
    );
    if let Some(allocated) = allocated {
        row("allocated at most", allocated.to_string());
    }
    if let Some(in_use) = in_use {
        row("in use at least", in_use.to_string());
    }
    if let Some(packed) = packed {
        row("packed weights", packed.to_string());
    }
    if let Some(saved) = saved {
        row("kept for backward", saved.to_string());
    }
    if let Some(plan) = &plan {
        row("predicted peak", Bytes(plan.peak).to_string());
        row("predicted to be kept", Bytes(plan.saved).to_string());
    }
    print_table(&table, json)?;
    if let Some(layers) = &layers {
        print_table(&layers.table(peak.map(|(gflops, _)| gflops)), json)?;
    }

    if let Some(path) = &args.json {
        let json = json!({
            "program": "halfseg",
            "version": env!("CARGO_PKG_VERSION"),
            "mode": mode,
            "method": method.to_string(),
            "backbone": depth.to_string(),
            "size": args.size.to_string(),
            "batch": batch,
            "precision": args.precision.to_string(),
            "gradient_checkpointing": args.gradient_checkpointing,
            "device": args.device.to_string(),
            "threads": threads,
            "instruction_set": kernels.map(|(instruction_set, _)| instruction_set),
            "f32_products": kernels.map(|(_, f32_products)| f32_products),
            "warmup": args.warmup,
            "parameters": parameters,
            "seconds": times.all,
            "median_s": times.median,
            "p95_s": times.p95,
            "min_s": times.min,
            "images_per_s": images_per_s,
            "gmacs": macs as f64 / 1e9,
            "peak_gflops": peak.map(|(gflops, _)| gflops),
            "peak_gflops_source": peak.map(|(_, origin)| origin),
            "floor_s": floor_s,
            "share_of_floor": floor_s.map(|floor_s| floor_s / times.median),
            "peak_bytes": memory.map(|peak| peak.0),
            "peak_source": memory_source,
            "allocated_peak_bytes": allocated.map(|bytes| bytes.0),
            "in_use_seen_bytes": in_use.map(|bytes| bytes.0),
            "saved_bytes": saved.map(|bytes| bytes.0),
            "packed_weights_bytes": packed.map(|bytes| bytes.0),
            "predicted": plan.as_ref().map(memory_plan),
            "layers": layers.as_ref().map(Layers::json),
        });
        write_json(path, &json)?;
    }
    if times.all.len() < args.iterations.get() {
        let (measured, wanted) = (times.all.len(), args.iterations);
        let why = format!("interrupted: {measured} of {wanted} passes were measured");
        return Err(Interrupted(why).into());
    }
    Ok(())
}

/// The published recipe with what the flags ask for.
fn recipe(args: &BenchArgs) -> Result<Recipe> {
    let method = args.model.method.unwrap_or(Method::Fcn);
    let depth = args.model.backbone.unwrap_or(Depth::R101);
    let mut recipe = Recipe::published(method, depth);
    recipe.precision.dtype = args.precision;
    recipe.device = args.device;
    recipe.data.crop = args.size;
    recipe.train.batch = args.batch.map_or(1 + usize::from(args.train), usize::from);
    recipe.train.gradient_checkpointing = args.gradient_checkpointing;
    if let Some(classes) = args.model.classes {
        recipe.model.num_classes = classes;
    }
    recipe.model.validate()?;
    Ok(recipe)
}

/// What clap cannot see.
fn check(args: &BenchArgs, model: &SegmentorConfig, batch: usize) -> Result<()> {
    let size = args.size;
    let fewest = model.min_train_batch([size.height, size.width]);
    if args.train && batch < fewest {
        let method = model.method;
        let why = format!(
            "--batch: training {method} at {size} needs at least {fewest} images, found {batch}"
        );
        return Err(Usage(why).into());
    }
    match args.peak_gflops {
        Some(peak) if !(peak.is_finite() && peak > 0.0) => {
            let why = format!("--peak-gflops: expected a number above 0, found {peak}");
            Err(Usage(why).into())
        }
        _ if args.layers && args.device != DeviceChoice::Flex => {
            let why = format!(
                "--layers: convolutions are timed on the CPU (--device cpu), found {}",
                args.device
            );
            Err(Usage(why).into())
        }
        _ => Ok(()),
    }
}

/// Multiply-adds of a pass: a training step computes each convolution three times, forward and for
/// both gradients.
fn macs(model: &SegmentorConfig, args: &BenchArgs, batch: usize) -> u64 {
    let passes = if args.train { 3 } else { 1 };
    passes
        * batch as u64
        * Cost::of(model, [args.size.height, args.size.width])
            .total(args.train)
            .macs
}

/// What one measurement found.
struct Measured {
    /// Of each pass.
    seconds: Vec<f64>,
    parameters: u64,
    /// The most that was held.
    memory: Option<Bytes>,
    memory_source: &'static str,
    /// The most that tensors took of the host's memory, without what the allocator wastes; only on
    /// the CPU and with the feature `count-allocations`.
    allocated: Option<Bytes>,
    /// The most that tensors took of a GPU's memory in a training step, as far as asking again and again shows;
    /// `memory` has what lies idle between them as well.
    in_use: Option<Bytes>,
    /// What the last step kept between its forward and its backward pass: maps, and weights in half
    /// precision.
    saved: Option<Bytes>,
    /// Of inference on the CPU: weights as the kernels want them, which are kept beside the network's own.
    packed: Option<Bytes>,
    /// Where that was asked for.
    layers: Option<Layers>,
}

impl Measured {
    fn new(seconds: Vec<f64>, parameters: u64, choice: DeviceChoice, device: &Device) -> Self {
        let (memory, memory_source) = match choice {
            DeviceChoice::Flex => (resident_memory().map(|(_, peak)| peak), "VmHWM"),
            // The allocator keeps what it once took, so this is a peak, but for what `settle` gave
            // back; it counts whole pages.
            _ => {
                let usage = device.memory_pool_usage();
                let reserved = usage.map(|usage| Bytes(usage.bytes_reserved));
                (reserved, "bytes reserved by the allocator after warm-up")
            }
        };
        Self {
            seconds,
            parameters,
            memory,
            memory_source,
            allocated: allocated()
                .filter(|_| choice == DeviceChoice::Flex)
                .map(|(_, peak)| peak),
            in_use: None,
            saved: None,
            packed: None,
            layers: None,
        }
    }
}

fn measure_inference(args: &BenchArgs, recipe: &Recipe) -> Result<Measured> {
    let batch = recipe.train.batch;
    let device = recipe.device.open()?;
    args.precision.policy().check(&device)?;
    let model = recipe.model.init(&device);
    let parameters = count_parameters(&model);
    let predictor = Predictor::new(&model, args.precision.policy(), recipe.eval.clone());
    drop(model);
    let images = images(args, batch, recipe.model.in_channels, &device);
    let seconds = time(args, &device, || {
        predictor.segment(images.clone());
        Ok(())
    })?;
    let mut measured = Measured::new(seconds, parameters, args.device, &device);
    measured.packed =
        (args.device == DeviceChoice::Flex).then(|| Bytes(Predictor::packed_weights()));
    if args.layers {
        measured.layers = Layers::of(args, || drop(predictor.segment(images.clone())));
    }
    Ok(measured)
}

fn measure_training(args: &BenchArgs, recipe: &Recipe) -> Result<Measured> {
    let batch = recipe.train.batch;
    let device = recipe.device.open()?.autodiff();
    recipe.precision.policy().check(&device)?;
    let model = recipe.model.init(&device);
    let parameters = count_parameters(&model);
    let mut learner = Learner::new(model, recipe.precision.policy(), recipe);
    let images = images(args, batch, recipe.model.in_channels, &device);
    let classes = Distribution::Uniform(0.0, recipe.model.num_classes as f64);
    let shape = [batch, args.size.height, args.size.width];
    let labels = Tensor::<3, Int>::random(shape, classes, &device);
    let seconds = time(args, &device, || {
        learner.step(images.clone(), labels.clone());
        // The losses are read before the optimizer runs.
        device.sync().context("the device failed")
    })?;
    let mut measured = Measured::new(seconds, parameters, args.device, &device);
    // In a step of its own: on a GPU asking waits for all kernels.
    let before = in_use(args.device, &device);
    let mut kept = None;
    if args.layers {
        measured.layers = Layers::of(args, || drop(learner.step(images.clone(), labels.clone())));
    }
    learner.step_with(images.clone(), labels.clone(), || {
        kept = in_use(args.device, &device)
    });
    if args.device != DeviceChoice::Flex {
        measured.in_use = seen_in_use(&device, || learner.step(images.clone(), labels.clone()));
    }
    let saved = before
        .zip(kept)
        .map(|(before, kept)| Bytes(kept.saturating_sub(before)));
    measured.saved = saved;
    Ok(measured)
}

/// `[batch, channels, height, width]`, as normalised pictures are.
fn images(args: &BenchArgs, batch: usize, channels: usize, device: &Device) -> Tensor<4> {
    let shape = [batch, channels, args.size.height, args.size.width];
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Seconds of each pass after the warm-up: at least one, fewer than asked for if the user interrupts.
///
/// The first passes on a GPU compile kernels and try out which are fastest, for minutes perhaps, so
/// their times are printed.
fn time(
    args: &BenchArgs,
    device: &Device,
    mut pass: impl FnMut() -> Result<()>,
) -> Result<Vec<f64>> {
    let (warmup, iterations) = (args.warmup, args.iterations.get());
    let mut seconds = Vec::with_capacity(iterations);
    for i in 0..warmup + iterations {
        if i + 1 == warmup && args.device != DeviceChoice::Flex {
            settle(device)?;
        }
        let start = Instant::now();
        pass()?;
        let passed = start.elapsed().as_secs_f64();
        if i < warmup {
            message!("warm-up {} of {warmup}: {passed:.4} s", i + 1);
        } else {
            seconds.push(passed);
        }
        if interrupt::requested() {
            let passes = i + 1;
            if seconds.is_empty() {
                return Err(Interrupted(format!("interrupted after {passes} passes")).into());
            }
            break;
        }
    }
    Ok(seconds)
}

/// Gives back what only trials of kernels took, so that memory is that of a step. The last pass of the
/// warm-up takes again what a step needs.
fn settle(device: &Device) -> Result<()> {
    device.sync().context("the device failed")?;
    device.memory_cleanup();
    Ok(())
}

/// Times of one measurement, in seconds.
struct Times {
    /// In the order of measurement.
    all: Vec<f64>,
    median: f64,
    /// The smallest time that 95% of all do not exceed.
    p95: f64,
    min: f64,
}

impl Times {
    /// Of at least one time.
    fn of(all: Vec<f64>) -> Self {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        Self {
            median: (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
            p95: sorted[(95 * n).div_ceil(100) - 1],
            min: sorted[0],
            all,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    /// Larger sizes and other networks are in `docs/MEASURED.md`.
    #[test]
    fn a_training_step_allocates_what_is_predicted() {
        let _alone = allocator::count_alone();
        // Threads keep room for strips of maps from the first step on in which they had some to do.
        let flags = "halfseg bench --method fcn --backbone resnet18 --size 96x192 --train \
                     --gradient-checkpointing --warmup 4 --iterations 1";
        let Command::Bench(args) = Cli::parse_from(flags.split_whitespace()).command else {
            panic!("that was not `bench`");
        };
        let recipe = recipe(&args).unwrap();
        let measured = measure_training(&args, &recipe).unwrap();
        let plan = MemoryPlan::of(&recipe.model, &recipe.training_step());
        let check = |found: Option<Bytes>, predicted: u64| {
            let ratio = found.expect("tests count allocations").0 as f64 / predicted as f64;
            assert!(
                (0.9..1.1).contains(&ratio),
                "{found:?}, predicted {predicted}"
            );
        };
        check(measured.allocated, plan.peak);
        check(measured.saved, plan.saved);
    }

    #[test]
    fn times_are_summed_up_by_rank() {
        let times = Times::of(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((times.median, times.p95, times.min), (2.5, 10.0, 1.0));
        assert_eq!(times.all, [3.0, 1.0, 2.0, 10.0]);
        let one = Times::of(vec![4.0]);
        assert_eq!((one.median, one.p95, one.min), (4.0, 4.0, 4.0));
        let many = Times::of((1..=100).map(f64::from).collect());
        assert_eq!((many.median, many.p95), (50.5, 95.0));
    }
}
