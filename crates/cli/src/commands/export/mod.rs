//! `halfseg export`.

use std::collections::BTreeMap;

#[cfg(feature = "onnx")]
mod onnx;
mod pytorch;

use anyhow::Result;
use halfseg_devices::DeviceChoice;
use halfseg_segmentor::Naming;
use halfseg_train::{DataSource, RECIPE_KEY, read_recipe};

use crate::args::ExportArgs;
use crate::failure::Usage;
use crate::output::check_writable;
use crate::settings::{architecture, weights_file};

/// Writes a checkpoint as safetensors or `.pth` under the names of a program, or as ONNX.
pub fn run(args: &ExportArgs) -> Result<()> {
    let naming = args.to.naming();
    if let (Some(_), Some(flag)) = (naming, args.onnx.given()) {
        return Err(Usage(format!(
            "{flag} says how an ONNX file is made: add --to onnx"
        ))
        .into());
    }
    if naming.is_none() && cfg!(not(feature = "onnx")) {
        let message = "this program was built without ONNX: build it with `--features onnx`";
        return Err(Usage(message.to_owned()).into());
    }
    check_writable(&[&Some(args.out.clone())], &[Some(&args.checkpoint)])?;
    let as_pytorch = naming.filter(|_| pytorch::is_asked_for(&args.out));
    if let Some(naming) = as_pytorch {
        pytorch::check(args, naming)?;
    }
    let weights = weights_file(&args.checkpoint)?;
    let config = architecture(&args.model, &weights)?;
    let device = DeviceChoice::Flex.open()?;
    let (model, report) = halfseg_segmentor::load(&weights, Some(&config), &device)?;
    message!("{}: {report}", weights.display());
    let Some(names) = naming else {
        #[cfg(feature = "onnx")]
        onnx::write(args, &weights, &model)?;
        return Ok(());
    };
    if names == Naming::Mmseg && config.refine && as_pytorch.is_none() {
        warning!(
            "MMSegmentation has no head with `refine`, which is torchvision's: it will not take the file, halfseg \
             will; --to torchvision writes names that torchvision takes"
        );
    }
    if as_pytorch.is_some() {
        return pytorch::write(args, &weights, &model, names);
    }
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
    model.export(&args.out, metadata, names)?;
    message!("wrote {} with {names} names", args.out.display());
    Ok(())
}
