//! `halfseg predict`.

mod inputs;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use halfseg_data::{LabelMap, RgbImage, read_image};
use halfseg_eval::argmax;
use halfseg_predict::{Predictor, write_logits, write_maps};

use self::inputs::{Input, Inputs, LOGITS, SUFFIXES};
use super::left_out::{LeftOut, class_map};
use crate::args::PredictArgs;
use crate::failure::{Interrupted, Usage};
use crate::interrupt;
use crate::output::check_replaceable;
use crate::progress::Progress;
use crate::settings::Loaded;

/// Segments images and writes pictures.
pub fn run(args: &PredictArgs) -> Result<()> {
    if args.logits && args.inference.ms_flip {
        let why = "--logits with --ms-flip: several views have no logits in common; leave one out";
        return Err(Usage(why.into()).into());
    }
    if !(0.0..=1.0).contains(&args.opacity) {
        let why = format!(
            "--opacity: expected a number from 0 to 1, found {}",
            args.opacity
        );
        return Err(Usage(why).into());
    }
    let Inputs {
        pictures, bad, own, ..
    } = Inputs::find(&args.inputs, &args.out, args.mirror)?;
    let mut left_out = LeftOut::new(args.batch.skip_bad);
    let total = pictures.len() + bad.len();
    for (path, why) in bad {
        left_out.add(anyhow!("{}: {why}", path.display()))?;
    }
    let (done, pictures): (Vec<_>, Vec<_>) = pictures
        .into_iter()
        .partition(|input| args.batch.skip_existing && is_done(args, input));
    for path in pictures.iter().flat_map(|input| results(args, input)) {
        check_replaceable(&path, args.batch.overwrite)?;
    }
    if own > 0 {
        message!("left out {own} pictures that this program wrote");
    }
    if !done.is_empty() {
        message!("{} images were segmented before", done.len());
    }
    if !pictures.is_empty() {
        segment_all(args, &pictures, &mut left_out)?;
    }
    message!(
        "{} images segmented; pictures in {}",
        total - done.len() - left_out.count(),
        args.out.display()
    );
    left_out.finish(total)
}

fn segment_all(args: &PredictArgs, pictures: &[Input], left_out: &mut LeftOut) -> Result<()> {
    let loaded = Loaded::open(&args.inference, None)?;
    let predictor = loaded.predictor();
    let palette = loaded.classes.colors();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut shown = Progress::new(pictures.len() as u64, "images");
    for (done, input) in pictures.iter().enumerate() {
        if interrupt::requested() {
            return Err(Interrupted(format!("interrupted after {done} images")).into());
        }
        match segment(args, &predictor, input) {
            Ok((image, map)) => {
                let folder = args.out.join(&input.folder);
                write_maps(&folder, &input.stem, &image, &map, (palette, args.opacity))?;
            }
            Err(error) => left_out.add(error)?,
        }
        shown.inc(input.path.display());
    }
    shown.finish();
    Ok(())
}

/// The picture and its classes; the logits are written if they are wanted.
fn segment(
    args: &PredictArgs,
    predictor: &Predictor,
    input: &Input,
) -> Result<(RgbImage, LabelMap)> {
    let image = read_image(&input.path)?;
    let name = input.path.display().to_string();
    let (prediction, logits) = match args.logits {
        false => (predictor.predict(&image).map_err(|e| e.of(&name))?, None),
        true => {
            let scores = predictor.scores(&image).map_err(|e| e.of(&name))?;
            (argmax(scores.clone()).swap_remove(0), Some(scores))
        }
    };
    let map = class_map(prediction, &name, args.batch.allow_nonfinite)?;
    if let Some(logits) = logits {
        let path = logits_path(args, input);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        write_logits(&path, logits)?;
    }
    Ok((image, map))
}

fn logits_path(args: &PredictArgs, input: &Input) -> PathBuf {
    let name = format!("{}{LOGITS}", input.stem);
    args.out.join(&input.folder).join(name)
}

/// All that is written of a picture.
fn results(args: &PredictArgs, input: &Input) -> impl Iterator<Item = PathBuf> {
    let folder = args.out.join(&input.folder);
    let stem = input.stem.clone();
    let pictures = SUFFIXES.map(|suffix| folder.join(format!("{stem}{suffix}")));
    let logits = args.logits.then(|| logits_path(args, input));
    pictures.into_iter().chain(logits)
}

/// Whether everything that would be written is there.
fn is_done(args: &PredictArgs, input: &Input) -> bool {
    results(args, input).all(|path| path.is_file())
}
