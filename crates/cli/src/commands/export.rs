//! `halfseg export`.

use std::collections::BTreeMap;

use anyhow::Result;
use halfseg_devices::DeviceChoice;
use halfseg_segmentor::Naming;
use halfseg_train::{DataSource, RECIPE_KEY, read_recipe};

use crate::args::ExportArgs;
use crate::output::check_writable;
use crate::settings::{architecture, weights_file};

/// Writes a checkpoint as safetensors under the names of a program.
pub fn run(args: &ExportArgs) -> Result<()> {
    check_writable(&[&Some(args.out.clone())], &[Some(&args.checkpoint)])?;
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
        recipe.backbone_weights.clear();
        metadata.insert(RECIPE_KEY.to_owned(), recipe.to_toml());
    }
    let names = Naming::from(args.to);
    if names == Naming::Mmseg && config.refine {
        warning!(
            "MMSegmentation has no head with `refine`, which is torchvision's: it will not take the file, halfseg \
             will; --to torchvision writes names that torchvision takes"
        );
    }
    model.export(&args.out, metadata, names)?;
    message!("wrote {} with {names} names", args.out.display());
    Ok(())
}
