//! `halfseg predict --video`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use halfseg_devices::Ranks;
use halfseg_files::move_into_place;
use halfseg_predict::overlay;
use tempfile::NamedTempFile;

use super::ffmpeg::{Film, Source};
use crate::args::PredictArgs;
use crate::commands::left_out::class_map;
use crate::failure::{Interrupted, Usage};
use crate::interrupt;
use crate::output::check_writable;
use crate::progress::Progress;
use crate::settings::Loaded;

/// Segments a film, or what a camera sees, and writes a film with the overlay.
pub fn run(args: &PredictArgs, video: &Path) -> Result<()> {
    if Ranks::current().size() > 1 {
        let why = "--video is for one process: run it without a launcher";
        return Err(Usage(why.into()).into());
    }
    let smooth = args.film.smooth.unwrap_or(0.0);
    if !(0.0..1.0).contains(&smooth) {
        let why = format!("--smooth: expected a number from 0 to below 1, found {smooth}");
        return Err(Usage(why).into());
    }
    let source = Source {
        name: video,
        format: args.film.input_format.as_deref(),
    };
    if source.format.is_none() && video.exists() && !video.is_file() {
        bail!(
            "{}: expected a film, found no regular file; --input-format says which kind of device it is",
            video.display()
        );
    }
    check_out(args, video)?;
    let facts = source.probe()?;
    let loaded = Loaded::open(&args.inference, None)?;
    if !loaded.pictures.is_rgb() {
        bail!(
            "{}: expected a network for RGB of 8 bits, as frames are, found one for {}",
            loaded.weights.display(),
            loaded.pictures
        );
    }
    let predictor = loaded.predictor();
    let mut smoothed = predictor
        .film(smooth)
        .map_err(|error| Usage(error.to_string()))?;
    let palette = loaded.classes.colors();

    let mut frames = source.frames(&facts)?;
    let written = beside(&args.out)?;
    let sound = facts
        .sound
        .then_some(&source)
        .filter(|source| source.format.is_none());
    let mut film: Option<Film> = None;
    let most = args.film.frames.unwrap_or(u64::MAX);
    let known = facts.frames.filter(|_| source.format.is_none());
    let total = known.map_or(most, |frames| frames.min(most));
    let mut shown = Progress::new(if total == u64::MAX { 0 } else { total }, "frames");
    let mut done = 0;
    while done < most {
        if interrupt::requested() {
            // A camera has no other end.
            if source.format.is_some() && done > 0 {
                break;
            }
            let why = format!("interrupted after {done} frames: no film");
            return Err(Interrupted(why).into());
        }
        let Some(frame) = frames.read().with_context(|| video.display().to_string())? else {
            break;
        };
        let name = format!("{}, frame {}", video.display(), done + 1);
        let prediction = smoothed.predict(&frame).map_err(|error| error.of(&name))?;
        let map = class_map(prediction, &name, args.batch.allow_nonfinite)?;
        let film = match &mut film {
            Some(film) => film,
            None => film.insert(Film::begin(
                written.path(),
                (frame.width, frame.height),
                &facts.rate,
                sound,
                args.film.frames.is_some(),
            )?),
        };
        let write = film.push(&overlay(&frame, &map, palette, args.opacity));
        write.with_context(|| format!("cannot write {}", args.out.display()))?;
        done += 1;
        // Lengths are estimates.
        shown.set_of(
            done,
            if total == u64::MAX {
                done
            } else {
                total.max(done)
            },
        );
    }
    let Some(film) = film else {
        bail!("{}: expected a film, found no frame in it", video.display());
    };
    film.end()
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    shown.finish();
    move_into_place(written.path(), &args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    message!("{done} frames segmented; film in {}", args.out.display());
    Ok(())
}

/// Refuses to write where something is that this program may not replace.
fn check_out(args: &PredictArgs, video: &Path) -> Result<()> {
    let out = &args.out;
    let inputs = [Some(&*args.inference.checkpoint), Some(video)];
    check_writable(&[&Some(out.clone())], &inputs)?;
    if out.extension().is_none() {
        bail!(
            "{}: expected the name of a film, such as out.mp4, whose end says its format",
            out.display()
        );
    }
    if out.exists() && !out.is_file() {
        bail!(
            "cannot write {}: expected a regular file, found none",
            out.display()
        );
    }
    if out.exists() && !args.batch.overwrite {
        bail!(
            "{} is there: choose another name, or replace it with --overwrite",
            out.display()
        );
    }
    Ok(())
}

/// A file in the folder of `path`, of its format, which goes when it is not moved away.
fn beside(path: &Path) -> Result<NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder: PathBuf = folder.unwrap_or(Path::new(".")).to_owned();
    let end = path.extension().unwrap_or_default().to_string_lossy();
    let suffix = format!(".{end}");
    let mut builder = tempfile::Builder::new();
    builder.prefix(".halfseg-").suffix(&suffix);
    // As other files of this user are.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .tempfile_in(&folder)
        .with_context(|| format!("cannot write into {}", folder.display()))
}
