//! The files of a run and their names.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::atomic::write_atomically;
use crate::{Error, Recipe};

/// The metadata key of a checkpoint that holds its [`Recipe`] as TOML.
pub const RECIPE_KEY: &str = "halfseg.recipe";

/// Names the last checkpoint of a folder.
pub(crate) const LAST: &str = "last_checkpoint";
pub(crate) const BEST: &str = "best.safetensors";
pub(crate) const CONFIG: &str = "config.toml";
pub(crate) const LOG: &str = "log.jsonl";

/// The weights that a path means: itself, or for the folder of a run its best checkpoint, else its
/// last.
///
/// # Errors
///
/// A folder without a checkpoint.
pub fn resolve_checkpoint(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let best = path.join(BEST);
    if best.is_file() {
        Ok(best)
    } else {
        last_checkpoint(path)
    }
}

/// The recipe that a checkpoint of a training run carries; `None` for weights from elsewhere.
///
/// # Errors
///
/// A file that is no checkpoint, or a recipe that this version does not understand.
pub fn read_recipe(weights: &Path) -> Result<Option<Recipe>, Error> {
    let metadata = halfseg_segmentor::read_metadata(weights)?;
    let parse = |text: &String| Recipe::parse(text, &format!("{}", weights.display()));
    metadata.get(RECIPE_KEY).map(parse).transpose()
}

pub(crate) fn last_checkpoint(out: &Path) -> Result<PathBuf, Error> {
    let name = fs::read_to_string(out.join(LAST)).map_err(|_| Error::NothingToResume {
        path: out.to_owned(),
        expected: LAST,
    })?;
    Ok(out.join(name.trim()))
}

pub(crate) fn state_path(weights: &Path) -> PathBuf {
    weights.with_extension("state.safetensors")
}

pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    write_atomically(path, |out| out.write_all(text.as_bytes()))
}
