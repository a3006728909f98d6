//! `halfseg info`.

use anyhow::Result;
use halfseg_devices::Bytes;
use halfseg_segmentor::{
    Cost, Depth, MemoryPlan, Method, PartCost, SegmentorConfig, TrainingStep, training_memory,
};
use halfseg_train::RunPrecision;
use serde_json::{Map, Value, json};

use crate::args::InfoArgs;
use crate::output::{check_writable, print_table, write_json};
use crate::settings::architecture;

/// Prints what a network costs, by part, for one image.
pub fn run(args: &InfoArgs) -> Result<()> {
    check_writable(&[&args.json])?;
    let config = match &args.checkpoint {
        Some(path) => architecture(&args.model, path)?,
        None => {
            let method = args.model.method.unwrap_or(Method::Fcn);
            let depth = args.model.backbone.unwrap_or(Depth::R101);
            let classes = args.model.classes.unwrap_or(19);
            SegmentorConfig::new(method, depth).with_num_classes(classes)
        }
    };
    config.validate()?;
    let size = [args.size.height, args.size.width];
    let cost = Cost::of(&config, size);
    let mut table = format!(
        "{} on {}, {} classes, one {} image\n{:<18}{:>12}{:>12}{:>16}\n",
        config.method,
        config.backbone,
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
    let batch = args.batch.map_or(2, usize::from);
    table += &format!(
        "\npredicted memory of a training step with {batch} such image(s)\n\
         {:<26}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
        "", "weights", "momentum", "gradients", "maps", "work", "peak"
    );
    for (precision, checkpointing) in plans() {
        let plan = MemoryPlan::of(&config, &step(size, batch, precision, checkpointing));
        let name = match checkpointing {
            true => format!("{precision}, checkpointing"),
            false => precision.to_string(),
        };
        let bytes = [
            plan.weights,
            plan.momentum,
            plan.gradients,
            plan.saved,
            plan.workspace,
            plan.peak,
        ];
        let columns = bytes.map(|bytes| format!("{:>10}", Bytes(bytes).to_string()));
        table += &format!("{name:<26}{}\n", columns.concat());
    }
    print_table(&table, args.json.as_deref())?;
    if let Some(path) = &args.json {
        let parts: Map<_, _> = cost
            .parts
            .iter()
            .map(|(name, part)| ((*name).to_owned(), object(part)))
            .collect();
        let memory = |precision| training_memory(&config, &step(size, 1, precision, false));
        let json = json!({
            "method": config.method.to_string(),
            "backbone": config.backbone.to_string(),
            "classes": config.num_classes,
            "size": args.size.to_string(),
            "parts": parts,
            "inference": object(&cost.total(false)),
            "training": object(&cost.total(true)),
            "batch": batch,
            "memory": memory_plans(&config, size, batch),
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

/// Precisions, each without and with gradient checkpointing.
fn plans() -> impl Iterator<Item = (RunPrecision, bool)> {
    let precisions = [RunPrecision::F32, RunPrecision::F16, RunPrecision::Bf16];
    let both = |precision| [false, true].map(|checkpointing| (precision, checkpointing));
    precisions.into_iter().flat_map(both)
}

fn step(
    size: [usize; 2],
    images: usize,
    precision: RunPrecision,
    recomputes: bool,
) -> TrainingStep {
    TrainingStep {
        size,
        images,
        element_bytes: precision.element_bytes(),
        recomputes,
    }
}

fn memory_plans(config: &SegmentorConfig, size: [usize; 2], batch: usize) -> Vec<Value> {
    let plan = |(precision, checkpointing): (RunPrecision, bool)| {
        let plan = MemoryPlan::of(config, &step(size, batch, precision, checkpointing));
        let mut object = memory_plan(&plan);
        object["precision"] = precision.to_string().into();
        object["gradient_checkpointing"] = checkpointing.into();
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
