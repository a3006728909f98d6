//! `halfseg doctor`.

mod html;

pub use html::escaped;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Result, bail};
use halfseg_data::{Definition, Finding, Report, Severity, SurveyOptions};
use halfseg_devices::Bytes;
use halfseg_files::write_atomically;
use halfseg_train::{DataSource, Recipe, machine_findings};
use serde_json::{Value, json};
use std::io::Write;

use crate::args::DoctorArgs;
use crate::failure::Usage;
use crate::output::{check_writable, print_table, write_json};
use crate::progress::Progress;
use crate::settings;

/// Looks at data and machine, and fails where training would.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let sources = &args.recipe.sources;
    settings::require_data(args.recipe.data.as_deref(), sources)?;
    check_writable(&[&args.json, &args.html], &[sources.config.as_deref()])?;
    if args.sample == Some(0) {
        return Err(Usage("--sample: expected at least 1, found 0".into()).into());
    }
    let recipe = settings::recipe(&args.recipe, None)?;
    let (definition, splits) = subject(&recipe)?;
    let splits: Vec<&str> = splits.iter().map(String::as_str).collect();
    let shown = Mutex::new(Progress::new(0, "pictures"));
    let progress = |done: usize, all: usize| {
        // Whoever comes while another one draws need not wait for it.
        if let Ok(mut shown) = shown.try_lock() {
            shown.set_of(done as u64, all as u64);
        }
    };
    let options = SurveyOptions {
        train: Some(&recipe.data.train_split),
        most: args.sample,
        crop: Some(recipe.data.crop),
        progress: Some(&progress),
    };
    let mut report = definition.survey(&splits, &options);
    if let Ok(shown) = shown.lock() {
        shown.finish();
    }
    let machine = machine_findings(&recipe, free_disk(&args.out));
    report.findings.extend(machine);
    report.findings.sort_by_key(|finding| finding.severity);
    print_table(&text(&definition, &report), args.json.as_deref())?;
    if let Some(path) = &args.json {
        write_json(path, &as_json(&recipe, &report)?)?;
    }
    if let Some(path) = &args.html {
        let page = html::page(definition.origin(), &report);
        write_atomically(path, |out| out.write_all(page.as_bytes()))
            .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path.display()))?;
    }
    let errors = count(&report, Severity::Error);
    if errors > 0 {
        bail!("{errors} finding(s) with which training would fail, or its scores lie");
    }
    Ok(())
}

/// What the recipe's data are, and their splits: first those of training and evaluation.
fn subject(recipe: &Recipe) -> Result<(Definition, Vec<String>)> {
    let data = &recipe.data;
    let mut splits = vec![data.train_split.clone()];
    if !data.val_split.is_empty() && data.val_split != data.train_split {
        splits.push(data.val_split.clone());
    }
    match &data.source {
        DataSource::Definition(path) => {
            let definition = Definition::read(Path::new(path))?;
            let classes = definition.classes().len();
            if classes != recipe.model.num_classes {
                // In the words of training.
                halfseg_train::Splits::open(recipe)?;
            }
            for split in definition.splits() {
                if !splits.iter().any(|known| known == split) {
                    splits.push(split.to_owned());
                }
            }
            Ok((definition, splits))
        }
        DataSource::Folder(path) => {
            let root = Path::new(path);
            if !root.join("leftImg8bit").is_dir() {
                bail!(
                    "{path}: expected a folder with leftImg8bit in it, as Cityscapes has it, or the definition of a data \
                     set; `halfseg data init {path} --out FILE.toml` proposes one"
                );
            }
            let names: Vec<&str> = splits.iter().map(String::as_str).collect();
            let definition = Definition::of_cityscapes(root, &names, recipe.model.num_classes)?;
            Ok((definition, splits))
        }
        DataSource::Synthetic => {
            let why = "--data synthetic: expected data to look at, found scenes that are generated";
            Err(Usage(why.into()).into())
        }
    }
}

fn count(report: &Report, severity: Severity) -> usize {
    report
        .findings
        .iter()
        .filter(|finding| finding.severity == severity)
        .count()
}

fn text(definition: &Definition, report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let Finding {
            severity,
            kind,
            count,
            message,
            ..
        } = finding;
        let split = finding
            .split
            .as_deref()
            .map_or(String::new(), |split| format!(", split {split}"));
        let more = if *count > 1 {
            format!(" (and {} more)", count - 1)
        } else {
            String::new()
        };
        out += &format!("{severity:<8}{message}{more} [{kind}{split}]\n");
    }
    if !report.findings.is_empty() {
        out.push('\n');
    }
    out += &format!("{:<24}", "class");
    for split in &report.splits {
        out += &format!("{:>20}", format!("{} %", split.name));
    }
    out += &format!("{:>10}\n", "weight");
    for (class, name) in definition.classes().names().iter().enumerate() {
        out += &format!("{name:<24}");
        for split in &report.splits {
            let all: u64 = split.pixels.iter().sum();
            let share = 100.0 * split.pixels[class] as f64 / all.max(1) as f64;
            out += &format!(
                "{:>20}",
                format!("{share:.3} in {}", split.pictures_with[class])
            );
        }
        let weight = report.weights.get(class).copied().flatten();
        out += &format!(
            "{:>10}\n",
            weight.map_or("-".into(), |weight| format!("{weight:.3}"))
        );
    }
    for split in &report.splits {
        let sizes = split
            .sizes
            .map_or(String::new(), |[low, high]| match low == high {
                true => format!(", {}x{}", low.0, low.1),
                false => format!(", {}x{} to {}x{}", low.0, low.1, high.0, high.1),
            });
        out += &format!(
            "{}: {} pictures, {} read{sizes}\n",
            split.name, split.pictures, split.read
        );
    }
    let list = |values: &[f64]| {
        let values: Vec<_> = values.iter().map(|v| format!("{v:.3}")).collect();
        values.join(", ")
    };
    if let (Some(mean), Some(std)) = (&report.mean, &report.std) {
        let use_of = match definition.is_normalized() {
            true => "",
            false => ", for [pictures] of the definition",
        };
        let (mean, std) = (list(mean), list(std));
        out += &format!("the pictures' channels have{use_of}: mean = [{mean}], std = [{std}]\n");
    }
    if let Some(crop) = report.crop {
        out += &format!("a crop that most pictures fill: --crop {crop}\n");
    }
    let [errors, warnings, notes] =
        [Severity::Error, Severity::Warning, Severity::Note].map(|s| count(report, s));
    out + &format!("{errors} errors, {warnings} warnings, {notes} notes\n")
}

fn as_json(recipe: &Recipe, report: &Report) -> Result<Value> {
    let mut json = serde_json::to_value(report)?;
    json["data"] = recipe.data.source.to_string().into();
    json["train_split"] = recipe.data.train_split.clone().into();
    json["sound"] = json!(!report.has_errors());
    Ok(json)
}

/// Bytes that are free on the disk where `path` is, or is to be.
fn free_disk(path: &Path) -> Option<Bytes> {
    let path = std::path::absolute(path).ok()?;
    let there: PathBuf = path.ancestors().find(|folder| folder.exists())?.to_owned();
    free_bytes(&there)
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<Bytes> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<Bytes> {
    None
}
