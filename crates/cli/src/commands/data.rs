//! `halfseg data`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use halfseg_data::{Definition, SurveyOptions, is_definition, propose};
use halfseg_files::write_atomically;
use halfseg_train::DEFINITION_KEY;

use crate::args::{ConvertArgs, DataArgs, DataCommand, ExtractArgs, InitArgs};
use crate::failure::Usage;
use crate::output::{check_writable, print};
use crate::settings::weights_file;
use crate::shell::quoted;

/// Pairs of a split that are read to say whether the proposal holds.
const TRIED: usize = 20;

/// Does what the subcommand says.
pub fn run(args: &DataArgs) -> Result<()> {
    match &args.command {
        DataCommand::Init(args) => init(args),
        DataCommand::Convert(args) => convert(args),
        DataCommand::Extract(args) => extract(args),
    }
}

fn init(args: &InitArgs) -> Result<()> {
    check_out(&args.out)?;
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
    write(&args.out, &text)
}

fn convert(args: &ConvertArgs) -> Result<()> {
    check_out(&args.out)?;
    let [classes, folder] = [&args.classes, &args.root].map(Option::as_deref);
    let found = halfseg_data::convert(&args.description, classes, folder)?;
    if !found.root().is_dir() {
        bail!(
            "{}: expected the folder of the data, as {} names it, found none; --root says where it is",
            found.root().display(),
            args.description.display()
        );
    }
    let root = root(found.root(), &args.out)?;
    write(&args.out, &found.to_toml(&root))
}

fn extract(args: &ExtractArgs) -> Result<()> {
    check_out(&args.out)?;
    let weights = weights_file(&args.checkpoint)?;
    let metadata = halfseg_segmentor::read_metadata(&weights)?;
    let Some(text) = metadata.get(DEFINITION_KEY) else {
        bail!(
            "{}: expected the definition of a data set, `{DEFINITION_KEY}` in its metadata, found none: it was not trained on \
             one",
            weights.display()
        );
    };
    let text = match &args.root {
        Some(folder) => Definition::moved(text, &root(folder, &args.out)?)?,
        None => text.clone(),
    };
    write(&args.out, &text)
}

/// Refuses a name that is none of a definition, and a file that is there.
fn check_out(out: &Path) -> Result<()> {
    if !is_definition(out) {
        let why = format!(
            "--out {}: expected a name that ends with .toml",
            out.display()
        );
        return Err(Usage(why).into());
    }
    check_writable(&[&Some(out.to_owned())], &[])?;
    if out.exists() {
        bail!(
            "{}: expected no file, found one; choose another name, or remove it",
            out.display()
        );
    }
    Ok(())
}

/// Writes a definition, and says what a first look at its data shows.
fn write(out: &Path, text: &str) -> Result<()> {
    let folder = out.parent().unwrap_or(Path::new(""));
    let definition = Definition::parse(text, &out.display().to_string(), folder)?;
    write_atomically(out, |file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", out.display()))?;
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
    let out = quoted(out);
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
