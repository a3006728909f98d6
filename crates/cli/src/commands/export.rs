//! `halfseg export`.

use std::collections::BTreeMap;

use anyhow::Result;
use halfseg_devices::DeviceChoice;
use halfseg_train::resolve_checkpoint;

use crate::args::ExportArgs;
use crate::settings::architecture;
use crate::values::Names;

/// Writes a checkpoint as safetensors under MMSegmentation's names.
pub fn run(args: &ExportArgs) -> Result<()> {
    let weights = resolve_checkpoint(&args.checkpoint)?;
    let config = architecture(&args.model, &weights)?;
    let device = DeviceChoice::Flex.open()?;
    let (model, report) = halfseg_segmentor::load(&weights, Some(&config), &device)?;
    message!("{}: {report}", weights.display());
    let metadata: BTreeMap<_, _> = halfseg_segmentor::read_metadata(&weights)?
        .into_iter()
        .filter(|(key, _)| key.starts_with("halfseg."))
        .collect();
    model.save_safetensors(&args.out, metadata)?;
    let names = match args.to {
        Names::Mmseg => "MMSegmentation's",
    };
    message!("wrote {} with {names} names", args.out.display());
    Ok(())
}
