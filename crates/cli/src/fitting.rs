//! What of a network is left to the data: its inputs and its outputs.

use std::path::Path;

use anyhow::Result;
use halfseg_data::Definition;
use halfseg_train::{DataSource, Error, Recipe};

use crate::args::RecipeArgs;
use crate::settings::config_text;

/// Whether the number of inputs, and that of classes, are left to the data.
pub fn left_to_data(args: &RecipeArgs) -> Result<[bool; 2]> {
    let classes = !names(args, "num_classes")? && args.model.classes.is_none();
    Ok([!names(args, "in_channels")?, classes])
}

/// Whether this key of the model is asked for, rather than left to the data.
fn names(args: &RecipeArgs, key: &str) -> Result<bool> {
    let full = format!("model.{key}");
    let is_set = |set: &String| set.split('=').next().unwrap_or_default().trim() == full;
    let table = config_text(&args.sources)?.map(|(_, text)| text.parse::<toml::Table>());
    let in_file = table.and_then(Result::ok).is_some_and(|table| {
        let model = table.get("model");
        model.is_some_and(|model| model.get(key).is_some())
    });
    Ok(args.sources.set.iter().any(is_set) || in_file)
}

/// Gives the network as many inputs as pictures of the data have channels, and as many outputs as there are classes,
/// where these two are left to the data.
pub fn fit(data: &DataSource, left: [bool; 2], recipe: &mut Recipe) -> Result<()> {
    let DataSource::Definition(path) = data else {
        return Ok(());
    };
    let definition = Definition::read(Path::new(path)).map_err(Error::from)?;
    if left[0] {
        recipe.model.in_channels = definition.format().channels();
    }
    if left[1] {
        recipe.model.num_classes = definition.classes().len();
    }
    Ok(())
}
