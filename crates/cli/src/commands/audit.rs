//! `halfseg audit`.

use std::path::Path;

use anyhow::Result;
use halfseg_train::{Audit, Error, Recipe, audit, read_recipe};
use serde_json::{Value, json};

use crate::args::AuditArgs;
use crate::failure::Usage;
use crate::output::{check_writable, print_table, write_json};
use crate::settings;

/// Prints what half precision costs each operation of a network, and writes a policy.
pub fn run(args: &AuditArgs) -> Result<()> {
    if args.max_error.is_nan() || args.max_error < 0.0 {
        let found = args.max_error;
        let why = format!("--max-error: expected a number of at least 0, found {found}");
        return Err(Usage(why).into());
    }
    let scales = args.underflow.as_deref().unwrap_or_default();
    let unusable = |scale: &&f32| scale.is_nan() || **scale <= 0.0 || scale.is_infinite();
    if let Some(found) = scales.iter().find(unusable) {
        let why = format!("--underflow: expected positive numbers, found {found}");
        return Err(Usage(why).into());
    }
    let inputs = [&args.recipe.sources.config, &args.recipe.checkpoint].map(Option::as_deref);
    check_writable(&[&args.policy, &args.json], &inputs)?;
    let recipe = recipe(args)?;
    let device = recipe.device.open()?;
    let audit = audit(&recipe, &device, scales)?;
    show(&recipe, &audit, args.json.as_deref())?;

    let policy = audit.report.policy(args.max_error);
    if let Some(path) = &args.policy {
        policy.save(path).map_err(Error::from)?;
        let before = recipe.precision.policy();
        let exceptions = |policy: &halfseg_amp::Policy| policy.ops().len() + policy.modules().len();
        message!(
            "wrote {}: {} of {} operations err by more than {} and run in f32; {} exceptions in all",
            path.display(),
            exceptions(&policy).saturating_sub(exceptions(&before)),
            audit.report.rows.len(),
            args.max_error,
            exceptions(&policy),
        );
    }
    if let Some(path) = &args.json {
        let mut json = to_json(&recipe, &audit);
        json["policy"] = serde_json::to_value(&policy)?;
        json["max_error"] = args.max_error.into();
        write_json(path, &json)?;
    }
    Ok(())
}

/// What would be trained: with a checkpoint of a run and no `--config`, the run's own recipe.
fn recipe(args: &AuditArgs) -> Result<Recipe> {
    let weights = args.recipe.checkpoint.as_deref();
    let weights = weights.map(settings::weights_file).transpose()?;
    let own = match (&weights, &args.recipe.sources.config) {
        (Some(weights), None) => read_recipe(weights)?,
        _ => None,
    };
    // A folder means the checkpoint in it.
    let mut flags = args.recipe.clone();
    flags.checkpoint = weights;
    match own {
        Some(mut recipe) => {
            // The device is this machine's, not that of the run's past.
            recipe.device = flags.device.unwrap_or_default();
            Ok(settings::apply(&flags, None, recipe)?)
        }
        None => settings::recipe(&flags, None),
    }
}

fn show(recipe: &Recipe, audit: &Audit, json: Option<&Path>) -> Result<()> {
    let weights = match recipe.checkpoint.as_str() {
        "" => "random weights".to_owned(),
        path => format!("weights of {}", Path::new(path).display()),
    };
    let mut table = format!(
        "{} on {}, {weights}, one batch of {} at {} from {}: {} against f32\n",
        recipe.model.method,
        recipe.model.backbone,
        recipe.train.batch,
        recipe.data.crop,
        recipe.data.source,
        recipe.precision.summary(),
    );
    if let Some(report) = &audit.loaded {
        message!("{}: {report}", recipe.checkpoint);
    }
    table += &audit.report.to_string();
    table += &format!(
        "loss {:.6} in f32, {:.6} under the policy\nforward pass under the policy: {}\n",
        audit.loss, audit.policy_loss, audit.casts
    );
    if let Some(underflow) = &audit.underflow {
        table += "gradient values that become zero, by loss scale (`!`: some become infinite):\n";
        table += &underflow.to_string();
        table += &match underflow.best_scale() {
            Some(scale) => format!("best of these scales: {scale}\n"),
            None => "every one of these scales overflows\n".into(),
        };
    }
    print_table(&table, json)
}

fn to_json(recipe: &Recipe, audit: &Audit) -> Value {
    // JSON has no infinities: they become `null`.
    json!({
        "method": recipe.model.method.to_string(),
        "backbone": recipe.model.backbone.to_string(),
        "data": recipe.data.source.to_string(),
        "checkpoint": recipe.checkpoint,
        "batch": recipe.train.batch,
        "crop": recipe.data.crop.to_string(),
        "precision": audit.report.precision,
        "operations": audit.report.rows,
        "loss": audit.loss,
        "policy_loss": audit.policy_loss,
        "casts": audit.casts,
        "underflow": audit.underflow.as_ref().map(|underflow| json!({
            "scales": underflow.scales,
            "total": underflow.total(),
            "parameters": underflow.rows,
            "best_scale": underflow.best_scale(),
        })),
    })
}
