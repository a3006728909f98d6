//! Predictions that `halfseg eval` keeps.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use halfseg_data::{
    IGNORE, LabelMap, Sample, encode_label, label_id, read_label, short_name, train_id,
};
use halfseg_files::write_atomically;

use crate::args::EvalArgs;
use crate::output::check_replaceable;

/// What the names of kept predictions end with: labelIds for the Cityscapes server, else classes.
const SUFFIXES: [&str; 2] = ["_pred_labelIds.png", "_pred_classes.png"];

/// Where predictions are kept, if anywhere.
pub struct Predictions {
    folder: Option<PathBuf>,
    /// Whether an archive is to hold them.
    archived: bool,
    /// Whether they are classes, not labelIds.
    pub own: bool,
}

impl Predictions {
    /// Makes the folder, if there is to be one.
    pub fn new(args: &EvalArgs, own: bool) -> Result<Self> {
        let folder = args.save_predictions.clone();
        if let Some(folder) = &folder {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let archived = args.zip.is_some();
        Ok(Self {
            folder,
            archived,
            own,
        })
    }

    /// What an earlier run has kept of an image, if that is to serve.
    pub fn kept(&self, args: &EvalArgs, sample: &Sample) -> Option<PathBuf> {
        let folder = self.folder.as_ref().filter(|_| args.batch.skip_existing)?;
        Some(folder.join(file_name(&sample.name, self.own))).filter(|path| path.is_file())
    }

    /// Keeps the labelIds, or the classes, of one image, where they are not kept already; gives its PNG, if an
    /// archive is to hold it.
    pub fn write(
        &self,
        args: &EvalArgs,
        name: &str,
        map: &LabelMap,
        is_kept: bool,
    ) -> Result<Vec<u8>> {
        let mut png = Vec::new();
        if self.folder.is_none() && !self.archived {
            return Ok(png);
        }
        let name = file_name(name, self.own);
        let label = LabelMap {
            data: match self.own {
                true => map.data.clone(),
                false => label_ids(&map.data),
            },
            ..*map
        };
        encode_label(&mut png, &label).with_context(|| name.clone())?;
        if let Some(folder) = self.folder.as_ref().filter(|_| !is_kept) {
            let path = folder.join(&name);
            check_replaceable(&path, args.batch.overwrite)?;
            write_atomically(&path, |out| out.write_all(&png))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if !self.archived {
            png.clear();
        }
        Ok(png)
    }
}

/// The classes that an earlier run has kept of an image, as such if they are `own`, else as labelIds.
pub fn read_kept(path: &Path, sample: &Sample, own: bool) -> Result<LabelMap> {
    let mut map = read_label(path)?;
    let (width, height) = sample.image.size();
    if (map.width, map.height) != (width, height) {
        bail!(
            "{}: expected {width}x{height} pixels as the image has, found {}x{}",
            path.display(),
            map.width,
            map.height
        );
    }
    if !own {
        for id in &mut map.data {
            *id = train_id(*id).unwrap_or(IGNORE);
        }
    }
    Ok(map)
}

/// The name of an image's prediction: it begins with the image's own, by which the official scorer
/// and the benchmark's server find it.
pub fn file_name(image: &str, own: bool) -> String {
    const LONGEST: usize = 255;
    let names = [SUFFIXES[usize::from(own)], ".png"].map(|end| format!("{image}{end}"));
    let name = names.into_iter().find(|name| name.len() <= LONGEST);
    name.unwrap_or_else(|| format!("{}.png", short_name(image, LONGEST - ".png".len())))
}

/// A map of classes as labelIds; what is no class becomes 0, which the scorer ignores.
pub fn label_ids(map: &[u8]) -> Vec<u8> {
    map.iter().map(|&id| label_id(id)).collect()
}
