//! `halfseg info`.

use anyhow::Result;
use halfseg_data::Classes;
use halfseg_devices::Bytes;
use halfseg_predict::known_classes;
use halfseg_segmentor::{
    Cost, Depth, MemoryPlan, Method, PartCost, SegmentorConfig, TrainingStep, training_memory,
};
use halfseg_train::{Recipe, RunPrecision};
use serde_json::{Map, Value, json};

use crate::args::InfoArgs;
use crate::commands::cpu_kernels;
use crate::failure::Usage;
use crate::output::{check_writable, print_table, write_json};
use crate::settings::{architecture, config_file, weights_file};

/// Prints what a network costs, by part, for one image.
pub fn run(args: &InfoArgs) -> Result<()> {
    let inputs = [&args.checkpoint, &args.sources.config].map(Option::as_deref);
    check_writable(&[&args.json], &inputs)?;
    let has_values = args.sources.config.is_some() || !args.sources.set.is_empty();
    if args.checkpoint.is_some() && has_values {
        let why =
            "--config and --set say what a network is, and so does --checkpoint: leave one out";
        return Err(Usage(why.into()).into());
    }
    let config = match &args.checkpoint {
        Some(path) => architecture(&args.model, &weights_file(path)?)?,
        None => {
            let method = args.model.method.unwrap_or(Method::Fcn);
            let depth = args.model.backbone.unwrap_or(Depth::R101);
            let mut recipe =
                config_file(&args.sources)?.unwrap_or_else(|| Recipe::published(method, depth));
            recipe.set_model(args.model.method, args.model.backbone);
            if let Some(classes) = args.model.classes {
                recipe.model.num_classes = classes;
            }
            recipe.set_all(&args.sources.set)?;
            recipe.model
        }
    };
    config.validate()?;
    let size = [args.size.height, args.size.width];
    let cost = Cost::of(&config, size);
    let classes = match &args.checkpoint {
        Some(path) => known_classes(&weights_file(path)?)?,
        None => None,
    };
    let mut table = format!(
        "{} on {}{}, {} classes, one {} image\n{:<18}{:>12}{:>12}{:>16}\n",
        config.method,
        config.backbone,
        variant(&config),
        config.num_classes,
        args.size,
        "part",
        "parameters",
        "GMAC",
        "maps in f16"
    );
    for (name, part) in &cost.parts {
        table += &row(name, part);
    }
    table += &row("inference", &cost.total(false));
    table += &row("training", &cost.total(true));
    if let Some(classes) = &classes {
        table += &format!("\nclasses: {}\n", classes.names().join(", "));
    }
    let batch = args.batch.map_or(2, usize::from);
    table += &format!(
        "\npredicted memory of a training step with {batch} such image(s)\n\
         {:<30}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
        "", "weights", "momentum", "gradients", "maps", "work", "peak"
    );
    for kind in plans() {
        let plan = MemoryPlan::of(&config, &step(size, batch, kind));
        let Kind {
            precision,
            checkpointing,
            on_gpu,
        } = kind;
        let mut name = precision.to_string();
        name += if on_gpu { " on a GPU" } else { "" };
        name += if checkpointing { ", checkpointing" } else { "" };
        let bytes = [
            plan.weights,
            plan.momentum,
            plan.gradients,
            plan.saved,
            plan.workspace,
            plan.peak,
        ];
        let columns = bytes.map(|bytes| format!("{:>10}", Bytes(bytes).to_string()));
        table += &format!("{name:<30}{}\n", columns.concat());
    }
    let seconds = args.gflops.map(|gflops| {
        // The backward pass makes two products for each of the forward pass.
        let operations = 2.0 * 3.0 * cost.total(true).macs as f64 * batch as f64;
        operations / (gflops * 1e9)
    });
    if let (Some(seconds), Some(gflops)) = (seconds, args.gflops) {
        if !(gflops > 0.0 && gflops.is_finite()) {
            let why = format!("--gflops: expected a positive number, found {gflops}");
            return Err(Usage(why).into());
        }
        table += &format!(
            "\npredicted time of such a step at {gflops} GFLOP/s: {seconds:.3} s (six operations for each \
             multiply-add of the forward pass, nothing else), {:.1} h for 80,000\n",
            seconds * 80_000.0 / 3600.0
        );
    }
    let kernels = cpu_kernels();
    if let Some((instruction_set, f32_products)) = kernels {
        table += &format!(
            "\nconvolutions on this CPU: instruction set {instruction_set}, products of f32 by {f32_products}\n"
        );
    }
    print_table(&table, args.json.as_deref())?;
    if let Some(path) = &args.json {
        let parts: Map<_, _> = cost
            .parts
            .iter()
            .map(|(name, part)| ((*name).to_owned(), object(part)))
            .collect();
        let memory = |precision| {
            let kind = Kind {
                precision,
                checkpointing: false,
                on_gpu: false,
            };
            training_memory(&config, &step(size, 1, kind))
        };
        let json = json!({
            "method": config.method.to_string(),
            "backbone": config.backbone.to_string(),
            "classes": config.num_classes,
            "instruction_set": kernels.map(|(instruction_set, _)| instruction_set),
            "f32_products": kernels.map(|(_, f32_products)| f32_products),
            "class_names": classes.as_ref().map(Classes::names),
            "palette": classes.as_ref().map(Classes::colors),
            "config": config,
            "size": args.size.to_string(),
            "parts": parts,
            "inference": object(&cost.total(false)),
            "training": object(&cost.total(true)),
            "batch": batch,
            "memory": memory_plans(&config, size, batch),
            "step_s": seconds,
            "training_bytes": {
                "f32": memory(RunPrecision::F32),
                "f16": memory(RunPrecision::F16),
                "bf16": memory(RunPrecision::Bf16),
            },
        });
        write_json(path, &json)?;
    }
    Ok(())
}

/// What is other than in the published models.
fn variant(config: &SegmentorConfig) -> String {
    let stem = match (config.deep_stem, config.avg_down) {
        (true, false) => "",
        (true, true) => " (V1d)",
        (false, false) => " (7x7 stem)",
        (false, true) => " (7x7 stem, averaged skip connections)",
    };
    match config.output_stride() {
        8 => stem.to_owned(),
        stride => format!("{stem} at output stride {stride}"),
    }
}

/// What the memory of a step depends on, beside the network and its input.
#[derive(Clone, Copy)]
struct Kind {
    precision: RunPrecision,
    checkpointing: bool,
    /// Where normalised maps are not kept.
    on_gpu: bool,
}

/// On the CPU and on a GPU all precisions, each without and with gradient checkpointing.
fn plans() -> impl Iterator<Item = Kind> {
    let precisions = [RunPrecision::F32, RunPrecision::F16, RunPrecision::Bf16];
    let on = move |on_gpu| {
        precisions.into_iter().flat_map(move |precision| {
            [false, true].map(|checkpointing| Kind {
                precision,
                checkpointing,
                on_gpu,
            })
        })
    };
    [false, true].into_iter().flat_map(on)
}

fn step(size: [usize; 2], images: usize, kind: Kind) -> TrainingStep {
    TrainingStep {
        size,
        images,
        element_bytes: kind.precision.element_bytes(),
        recomputes: kind.checkpointing,
        normalises_again: kind.on_gpu,
        frozen_stages: None,
    }
}

fn memory_plans(config: &SegmentorConfig, size: [usize; 2], batch: usize) -> Vec<Value> {
    let plan = |kind: Kind| {
        let plan = MemoryPlan::of(config, &step(size, batch, kind));
        let mut object = memory_plan(&plan);
        object["precision"] = kind.precision.to_string().into();
        object["gradient_checkpointing"] = kind.checkpointing.into();
        object["gpu"] = kind.on_gpu.into();
        object
    };
    plans().map(plan).collect()
}

/// A plan as JSON, in bytes.
pub fn memory_plan(plan: &MemoryPlan) -> Value {
    json!({
        "weights": plan.weights,
        "momentum": plan.momentum,
        "gradients": plan.gradients,
        "batch": plan.batch,
        "saved": plan.saved,
        "workspace": plan.workspace,
        "peak": plan.peak,
    })
}

fn row(name: &str, part: &PartCost) -> String {
    let maps = Bytes(2 * part.map_elements).to_string();
    format!(
        "{name:<18}{:>12}{:>12.2}{maps:>16}\n",
        part.parameters,
        part.macs as f64 / 1e9
    )
}

fn object(part: &PartCost) -> Value {
    json!({
        "parameters": part.parameters,
        "macs": part.macs,
        "map_elements": part.map_elements,
    })
}
