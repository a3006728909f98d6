//! `halfseg predict`.

mod ffmpeg;
mod film;
mod inputs;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use halfseg_data::{ImageReader, LabelMap, Picture};
use halfseg_devices::Ranks;
use halfseg_eval::argmax;
use halfseg_predict::{Predictor, write_logits, write_maps};
use halfseg_train::{check_same, check_same_weights};
use serde::{Deserialize, Serialize};

use self::inputs::{Input, Inputs, LOGITS, SUFFIXES};
use super::left_out::{LeftOut, class_map};
use crate::args::PredictArgs;
use crate::failure::Usage;
use crate::output::check_replaceable;
use crate::progress::Progress;
use crate::ranks;
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
    if let Some(video) = &args.film.video {
        return film::run(args, video);
    }
    // What clap does not ask for where pictures, which --video excludes, are given.
    let film = [
        ("--input-format", args.film.input_format.is_some()),
        ("--frames", args.film.frames.is_some()),
        ("--smooth", args.film.smooth.is_some()),
    ];
    if let Some((flag, _)) = film.into_iter().find(|(_, given)| *given) {
        return Err(Usage(format!("{flag}: expected with --video, found pictures")).into());
    }
    // The first process alone looks for pictures: the others may find what it has written meanwhile, and have
    // no list on stdin.
    let ranks = Ranks::current();
    let found = ranks.is_first().then(|| Found::of(args)).transpose();
    let found = ranks::shared_values(found)?.swap_remove(0);
    let Found {
        pictures,
        bad,
        own,
        done,
    } = found.context("the first process looks for pictures")?;
    let mut left_out = LeftOut::new(args.batch.skip_bad);
    let total = pictures.len() + bad.len() + done;
    let add = |why| left_out.add(anyhow!("{why}"));
    ranks::together(bad.into_iter().try_for_each(add))?;
    if own > 0 {
        message!("left out {own} pictures that this program wrote");
    }
    if done > 0 {
        message!("{done} images were segmented before");
    }
    if !pictures.is_empty() {
        segment_all(args, &pictures, &mut left_out)?;
    }
    message!(
        "{} images segmented; pictures in {}",
        total - done - left_out.count(),
        args.out.display()
    );
    ranks::together(left_out.finish(total))
}

/// What there is to do.
#[derive(Serialize, Deserialize)]
struct Found {
    pictures: Vec<Input>,
    /// Why files cannot be tried.
    bad: Vec<String>,
    /// Pictures that this program wrote.
    own: usize,
    /// How many were segmented before.
    done: usize,
}

impl Found {
    fn of(args: &PredictArgs) -> Result<Self> {
        let Inputs {
            pictures, bad, own, ..
        } = Inputs::find(&args.inputs, &args.out, args.mirror)?;
        if pictures.iter().any(|input| input.file.is_some()) && Ranks::current().size() > 1 {
            let why =
                "an image on stdin is for one process: run it without a launcher, or name a file";
            return Err(Usage(why.into()).into());
        }
        let (done, pictures): (Vec<_>, Vec<_>) = pictures
            .into_iter()
            .partition(|input| args.batch.skip_existing && is_done(args, input));
        for path in pictures.iter().flat_map(|input| results(args, input)) {
            check_replaceable(&path, args.batch.overwrite)?;
        }
        let why = |(path, why): (PathBuf, String)| format!("{}: {why}", path.display());
        Ok(Self {
            pictures,
            bad: bad.into_iter().map(why).collect(),
            own,
            done: done.len(),
        })
    }
}

/// Of several processes, each takes every so many pictures.
fn segment_all(args: &PredictArgs, pictures: &[Input], left_out: &mut LeftOut) -> Result<()> {
    let ranks = Ranks::current();
    let loaded = Loaded::open(&args.inference, None)?;
    check_same_weights(&ranks, &loaded.model, "weights")?;
    check_same(&ranks, &loaded.recipe, &[])?;
    let predictor = loaded.predictor();
    let palette = loaded.classes.colors();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    ranks.begin();
    let mut shown = Progress::new(pictures.len() as u64, "images");
    for first in (0..pictures.len()).step_by(ranks.size()) {
        ranks::check_interrupted(|| format!("interrupted after {first} images"))?;
        let own = match pictures.get(first + ranks.rank()) {
            Some(input) => segment_one(args, &predictor, input, palette),
            None => Ok(None),
        };
        let all = ranks::shared_values(own)?;
        for (input, bad) in pictures[first..].iter().zip(all) {
            bad.into_iter().for_each(|why| left_out.push(why));
            shown.inc(input.name());
        }
    }
    shown.finish();
    Ok(())
}

/// Segments a picture and writes what comes of it; why it is left out, if the job goes on without it.
fn segment_one(
    args: &PredictArgs,
    predictor: &Predictor,
    input: &Input,
    palette: &[[u8; 3]],
) -> Result<Option<String>> {
    match segment(args, predictor, input) {
        Ok((image, map)) => {
            let folder = args.out.join(&input.folder);
            let shown = predictor.pictures().shown(&image);
            write_maps(&folder, &input.stem, &shown, &map, (palette, args.opacity))?;
            Ok(None)
        }
        Err(error) => LeftOut::reason(args.batch.skip_bad, error).map(Some),
    }
}

/// The picture and its classes; the logits are written if they are wanted.
fn segment(
    args: &PredictArgs,
    predictor: &Predictor,
    input: &Input,
) -> Result<(Picture, LabelMap)> {
    let (reader, format, name) = (ImageReader::default(), predictor.pictures(), input.name());
    let image = match &input.file {
        Some(file) => reader.picture_of(&name, file.clone(), format)?,
        None => reader.picture(&input.path, format)?,
    };
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
