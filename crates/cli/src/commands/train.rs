//! `halfseg train`.

use std::path::Path;

use anyhow::Result;
use halfseg_devices::Ranks;
use halfseg_eval::{Scores, scores_json};
use halfseg_train::{Existing, Observer, Outcome, Splits, Trainer, open_device};

use crate::args::{RecipeArgs, ShownArgs, TrainArgs};
#[cfg(feature = "tensorboard")]
use crate::events::Events;
use crate::failure::{Interrupted, Usage};
use crate::observers::Observers;
#[cfg(feature = "report")]
use crate::observers::Reporter;
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
    check_features(&args.shown)?;
    #[cfg(feature = "tensorboard")]
    if let (Some(folder), true) = (&args.shown.tensorboard, ranks.is_first()) {
        Events::check(folder, args.resume || args.overwrite)?;
    }
    let mut trainer = if args.resume {
        resume(args)?
    } else {
        begin(args)?
    };
    let scores = drive(&mut trainer, &args.out, &args.shown)?;
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

/// Refuses flags of what this program was built without.
fn check_features(shown: &ShownArgs) -> Result<(), Usage> {
    let features = [
        (
            "--report-every",
            "report",
            shown.report_every.is_some(),
            cfg!(feature = "report"),
        ),
        (
            "--tensorboard",
            "tensorboard",
            shown.tensorboard.is_some(),
            cfg!(feature = "tensorboard"),
        ),
        ("--tui", "tui", shown.tui, cfg!(feature = "tui")),
    ];
    match features.iter().find(|(.., given, built)| *given && !built) {
        None => Ok(()),
        Some((flag, feature, ..)) => Err(Usage(format!(
            "{flag}: this program was built without it: build it with `--features {feature}`"
        ))),
    }
}

/// Those who watch the run into `out`, which goes on after `iteration`. The first of several processes writes what
/// there is to write.
fn observers(out: &Path, shown: &ShownArgs, iteration: u64) -> Result<Observers> {
    if !Ranks::current().is_first() {
        return Ok(Observers(vec![Box::new(Console::new())]));
    }
    let mut all: Vec<Box<dyn Observer>> = Vec::new();
    #[cfg(feature = "report")]
    if let Some(every) = shown.report_every {
        all.push(Box::new(Reporter {
            run: out.to_owned(),
            every: every.get(),
            seen: 0,
            warned: false,
        }));
    }
    #[cfg(feature = "tensorboard")]
    if let Some(folder) = &shown.tensorboard {
        all.push(Box::new(Events::open(folder, out, iteration)?));
    }
    #[cfg(feature = "tui")]
    if shown.tui {
        match crate::tui::Dashboard::open() {
            Ok(dashboard) => {
                all.push(Box::new(dashboard));
                return Ok(Observers(all));
            }
            Err(why) => warning!("--tui: {why}; progress comes as lines"),
        }
    }
    let _ = (out, shown, iteration);
    all.push(Box::new(Console::new()));
    Ok(Observers(all))
}

/// Writes the report of the run that has ended. One that cannot be written costs nothing that was learned.
fn report(out: &Path) {
    #[cfg(feature = "report")]
    if Ranks::current().is_first() {
        match super::report::write_of_run(out) {
            Ok(path) => detail!("wrote {}", path.display()),
            Err(error) => warning!("{error:#}; `halfseg report {}` writes it", quoted(out)),
        }
    }
    let _ = out;
}

/// Runs to the end with progress on the terminal and prints the scores.
pub fn drive(trainer: &mut Trainer, out: &Path, shown: &ShownArgs) -> Result<Option<Box<Scores>>> {
    let mut observers = observers(out, shown, trainer.learner().iteration())?;
    let outcome = trainer.run(&mut observers);
    // What they hold of the terminal goes back before anything is said.
    drop(observers);
    match outcome? {
        Outcome::Finished(scores) => {
            report(out);
            if let Some(scores) = &scores {
                let names = trainer.classes().names();
                message!("{}", scores.table(&names).trim_end());
            }
            message!(
                "checkpoints, log, scores, curves{} and pictures in {}",
                if cfg!(feature = "report") { ", report.html" } else { "" },
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
