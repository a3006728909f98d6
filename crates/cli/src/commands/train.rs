//! `halfseg train`.

use std::path::Path;

use anyhow::Result;
use halfseg_devices::Ranks;
use halfseg_eval::{Scores, scores_json};
use halfseg_train::{Existing, Outcome, Splits, Trainer, open_device};

use crate::args::{RecipeArgs, TrainArgs};
use crate::failure::{Interrupted, Usage};
use crate::output::{check_writable, write_json};
use crate::preset;
use crate::progress::Console;
use crate::settings;
use crate::shell::quoted;

/// Trains, or continues to.
pub fn run(args: &TrainArgs) -> Result<()> {
    let RecipeArgs {
        sources,
        checkpoint,
        ..
    } = &args.recipe;
    let inputs = [&sources.config, checkpoint, &args.policy].map(Option::as_deref);
    let inputs = [&inputs[..], &[Some(&args.out)]].concat();
    let ranks = Ranks::current();
    if ranks.is_first() {
        check_writable(&[&args.json], &inputs)?;
    }
    let mut trainer = if args.resume {
        resume(args)?
    } else {
        begin(args)?
    };
    let scores = drive(&mut trainer, &args.out)?;
    if let (Some(path), Some(scores), true) = (&args.json, &scores, ranks.is_first()) {
        write_json(path, &scores_json(scores, &trainer.classes().names()))?;
    }
    Ok(())
}

fn begin(args: &TrainArgs) -> Result<Trainer> {
    settings::require_data(args.recipe.data.as_deref(), &args.recipe.sources)?;
    let recipe = settings::recipe(&args.recipe, args.policy.as_deref())?;
    detail!("{}", recipe.to_toml());
    let ranks = Ranks::current();
    if args.recipe.preset.is_none() && ranks.is_first() {
        preset::warn_of_other_batch(&recipe)?;
    }
    let device = open_device(&recipe, &ranks)?;
    if !args.overwrite {
        return Ok(Trainer::new(recipe, &device, &args.out)?);
    }
    let data = Splits::open(&recipe)?;
    let replaced = Existing::Replaced;
    Ok(Trainer::with_data(
        recipe, data, &device, &args.out, replaced,
    )?)
}

/// Flags change the recipe that the checkpoint carries, its devices, too; `--config` is not read, because
/// it would hide what the run began with.
fn resume(args: &TrainArgs) -> Result<Trainer> {
    if args.recipe.sources.config.is_some() {
        let why = "--resume with --config: the checkpoint carries its configuration; change single \
                   values with flags or --set";
        return Err(Usage(why.into()).into());
    }
    for (flag, given) in [
        ("--checkpoint", args.recipe.checkpoint.is_some()),
        ("--backbone-weights", args.recipe.backbone_weights.is_some()),
        ("--preset", args.recipe.preset.is_some()),
    ] {
        if given {
            let why = format!(
                "--resume with {flag}: the run goes on from its own last checkpoint; to start from \
                 other weights, begin a new run in another folder"
            );
            return Err(Usage(why).into());
        }
    }
    let change = |recorded| {
        let recipe = settings::apply(&args.recipe, args.policy.as_deref(), recorded)?;
        detail!("{}", recipe.to_toml());
        Ok(recipe)
    };
    Ok(Trainer::resume(&args.out, change)?)
}

/// Runs to the end with progress on the terminal and prints the scores.
pub fn drive(trainer: &mut Trainer, out: &Path) -> Result<Option<Box<Scores>>> {
    match trainer.run(&mut Console::new())? {
        Outcome::Finished(scores) => {
            if let Some(scores) = &scores {
                let names = trainer.classes().names();
                message!("{}", scores.table(&names).trim_end());
            }
            message!(
                "checkpoints, log, scores, curves and pictures in {}",
                out.display()
            );
            Ok(scores)
        }
        Outcome::Interrupted {
            iteration,
            checkpoint,
        } => Err(Interrupted(format!(
            "interrupted after iteration {iteration}; saved {}; continue with `halfseg train --resume \
             --out {}`",
            checkpoint.display(),
            quoted(out)
        ))
        .into()),
    }
}
