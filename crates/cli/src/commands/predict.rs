//! `halfseg predict`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use halfseg_data::read_image;
use halfseg_eval::argmax;
use halfseg_files::walk;
use halfseg_predict::write_maps;
use halfseg_train::write_logits;

use crate::args::PredictArgs;
use crate::failure::{Interrupted, Usage};
use crate::interrupt;
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
    let images = images(&args.inputs)?;
    let loaded = Loaded::open(&args.inference, None)?;
    let predictor = loaded.predictor();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut shown = Progress::new(images.len() as u64, "images");
    for (done, (path, stem)) in images.iter().enumerate() {
        if interrupt::requested() {
            return Err(Interrupted(format!("interrupted after {done} images")).into());
        }
        let image = read_image(path)?;
        let scores = predictor.scores(&image)?;
        if args.logits {
            let file = args.out.join(format!("{stem}_logits.safetensors"));
            write_logits(&file, scores.clone())?;
        }
        let prediction = argmax(scores).swap_remove(0);
        let map = prediction.finite(&path.display().to_string())?;
        write_maps(&args.out, stem, &image, &map, args.opacity)?;
        shown.inc(path.display());
    }
    shown.finish();
    message!(
        "{} images segmented; pictures in {}",
        images.len(),
        args.out.display()
    );
    Ok(())
}

/// The images that the arguments mean, with the names of their pictures. Folders are searched with
/// their subfolders.
fn images(inputs: &[PathBuf]) -> Result<Vec<(PathBuf, String)>> {
    let mut paths = Vec::new();
    for input in inputs {
        if input.is_dir() {
            let before = paths.len();
            let files = walk(input, |folder, e| {
                anyhow::Error::new(e).context(format!("cannot read {}", folder.display()))
            })?;
            paths.extend(files.into_iter().filter(|path| is_image(path)));
            if paths.len() == before {
                bail!(
                    "{}: expected PNG or JPEG images in it, found none",
                    input.display()
                );
            }
        } else if input.is_file() {
            paths.push(input.clone());
        } else {
            bail!(
                "{}: expected an image or a folder, found nothing",
                input.display()
            );
        }
    }
    let mut taken: HashMap<String, PathBuf> = HashMap::new();
    let mut images = Vec::new();
    for path in paths {
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(other) = taken.insert(stem.clone(), path.clone()) {
            if other == path {
                continue;
            }
            bail!(
                "{} and {} would both be written as {stem}_color.png; predict them separately",
                other.display(),
                path.display()
            );
        }
        images.push((path, stem));
    }
    Ok(images)
}

/// Whether a name in a folder is one of a picture.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["png", "jpg", "jpeg"]
        .iter()
        .any(|known| extension == *known)
}
