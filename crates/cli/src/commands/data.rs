//! `halfseg data`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use halfseg_data::{Definition, SurveyOptions, is_definition, propose};
use halfseg_files::write_atomically;

use crate::args::{DataArgs, DataCommand, InitArgs};
use crate::failure::Usage;
use crate::output::{check_writable, print};
use crate::shell::quoted;

/// Pairs of a split that are read to say whether the proposal holds.
const TRIED: usize = 20;

/// Does what the subcommand says.
pub fn run(args: &DataArgs) -> Result<()> {
    match &args.command {
        DataCommand::Init(args) => init(args),
    }
}

fn init(args: &InitArgs) -> Result<()> {
    if !is_definition(&args.out) {
        let why = format!(
            "--out {}: expected a name that ends with .toml",
            args.out.display()
        );
        return Err(Usage(why).into());
    }
    check_writable(&[&Some(args.out.clone())], &[])?;
    if args.out.exists() {
        bail!(
            "{}: expected no file, found one; choose another name, or remove it",
            args.out.display()
        );
    }
    if !args.folder.is_dir() {
        bail!(
            "{}: expected a folder of pictures and masks, found none",
            args.folder.display()
        );
    }
    let root = root(&args.folder, &args.out)?;
    let text = match &args.preset {
        Some(name) => Definition::preset_text(name, &root)?,
        None => propose(&args.folder, &root)?,
    };
    let folder = args.out.parent().unwrap_or(Path::new(""));
    let definition = Definition::parse(&text, &args.out.display().to_string(), folder)?;
    write_atomically(&args.out, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let splits = definition.splits();
    let options = SurveyOptions {
        train: splits.iter().copied().find(|split| *split == "train"),
        most: Some(TRIED),
        ..SurveyOptions::default()
    };
    let report = definition.survey(&splits, &options);
    let mut summary = format!("classes: {}\n", definition.classes());
    for split in &report.splits {
        summary += &format!("split {}: {} pictures\n", split.name, split.pictures);
    }
    print(&summary)?;
    let errors = report
        .findings
        .iter()
        .filter(|f| f.severity == halfseg_data::Severity::Error);
    for finding in errors {
        warning!("{finding}");
    }
    let out = quoted(&args.out);
    message!("wrote {out}; edit it, then look at all of it with `halfseg doctor --data {out}`");
    Ok(())
}

/// The folder as the definition in `out` names it: relative to it where it lies below, else from the root of the
/// file system.
fn root(folder: &Path, out: &Path) -> Result<PathBuf> {
    let cannot = || format!("cannot find {}", folder.display());
    let folder = folder.canonicalize().with_context(cannot)?;
    let beside = Path::new(".").join(out.parent().unwrap_or(Path::new("")));
    let beside = beside
        .canonicalize()
        .with_context(|| format!("cannot find {}", beside.display()))?;
    Ok(match folder.strip_prefix(&beside) {
        Ok(below) => below.to_owned(),
        Err(_) => folder,
    })
}
