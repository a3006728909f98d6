//! `halfseg export`.

use std::collections::BTreeMap;

use anyhow::Result;
use halfseg_devices::DeviceChoice;
use halfseg_train::{DataSource, RECIPE_KEY, read_recipe};

use crate::args::ExportArgs;
use crate::settings::{architecture, weights_file};
use crate::values::Names;

/// Writes a checkpoint as safetensors under MMSegmentation's names.
pub fn run(args: &ExportArgs) -> Result<()> {
    let weights = weights_file(&args.checkpoint)?;
    let config = architecture(&args.model, &weights)?;
    let device = DeviceChoice::Flex.open()?;
    let (model, report) = halfseg_segmentor::load(&weights, Some(&config), &device)?;
    message!("{}: {report}", weights.display());
    let mut metadata: BTreeMap<_, _> = halfseg_segmentor::read_metadata(&weights)?
        .into_iter()
        .filter(|(key, _)| key.starts_with("halfseg."))
        .collect();
    // The recipe goes along, but for the places of files on this machine.
    if let Some(mut recipe) = read_recipe(&weights)? {
        recipe.data.source = DataSource::Synthetic;
        recipe.checkpoint.clear();
        metadata.insert(RECIPE_KEY.to_owned(), recipe.to_toml());
    }
    model.save_safetensors(&args.out, metadata)?;
    let names = match args.to {
        Names::Mmseg => "MMSegmentation's",
    };
    message!("wrote {} with {names} names", args.out.display());
    Ok(())
}
