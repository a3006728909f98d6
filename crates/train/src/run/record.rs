//! What a run's folder holds, for whoever only reads it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use halfseg_data::Classes;
use halfseg_predict::known_classes;
use serde_json::Value;

use super::details::RunEvaluation;
use super::folder::{Places, resolve_checkpoint};
use super::manifest::Manifest;
use crate::atomic::read_json;
use crate::{Error, Log, Recipe};

/// The parts of a run's folder as they are now, also of a run that goes on, was cut short or is that of an earlier
/// version. Nothing is locked or changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunRecord {
    /// The folder.
    pub path: PathBuf,
    /// What the run was told to do.
    pub recipe: Option<Recipe>,
    /// Names and colours of its classes.
    pub classes: Option<Classes>,
    /// Its last evaluation.
    pub evaluation: Option<RunEvaluation>,
    /// Its scores at the end, as `scores.json` has them.
    pub scores: Option<Value>,
    /// What could not be read, and why, for people.
    pub faults: Vec<String>,
}

impl RunRecord {
    /// Reads the folder at `path`; what is missing in it is missing here, too.
    ///
    /// # Errors
    ///
    /// A path that is no folder, or one without any file of a run.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let places = Places::of(path);
        let files = [&places.log, &places.config, &places.manifest];
        if !files.iter().any(|file| file.is_file()) {
            return Err(Error::NoRun {
                path: path.to_owned(),
            });
        }
        let mut faults = Vec::new();
        let recipe = there(&places.config, &mut faults, Recipe::read);
        let mut evaluation = there(&places.evaluation, &mut faults, RunEvaluation::read).flatten();
        if evaluation.is_none() {
            let manifest = there(&places.manifest, &mut faults, Manifest::read).flatten();
            evaluation = manifest.and_then(|manifest| {
                let marks = manifest.checkpoints.values().rev();
                let mut evaluations = marks.filter_map(|mark| mark.evaluated.as_ref());
                evaluations.find_map(RunEvaluation::of_manifest)
            });
        }
        let scores = |path: &Path| read_json(path, "the scores that halfseg writes");
        let scores = there(&places.scores, &mut faults, scores).flatten();
        let named = evaluation
            .as_ref()
            .and_then(|evaluation| evaluation.classes.clone());
        // Checkpoints of a run carry them, too.
        let of_weights = || {
            let weights = resolve_checkpoint(path).ok()?;
            known_classes(&weights).ok().flatten()
        };
        let classes = named.or_else(of_weights);
        Ok(Self {
            path: path.to_owned(),
            recipe,
            classes,
            evaluation,
            scores,
            faults,
        })
    }

    /// Calls `take` with each line of the log, oldest first, and returns how many lines are no JSON: the last may be
    /// cut short, or about to be written. `None` where there is no log.
    ///
    /// # Errors
    ///
    /// A log that cannot be read.
    pub fn for_each_line(&self, mut take: impl FnMut(&Value)) -> Result<Option<usize>, Error> {
        let mut cut = 0;
        let read = Log::lines(&Places::of(&self.path).log, |line| match line {
            Some(line) if line.is_object() => take(&line),
            _ => cut += 1,
        });
        match read {
            Err(Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(|()| Some(cut)),
        }
    }

    /// The file of a picture of the run: `NAME.png` for an empty `kind` (picture, prediction and label side by side),
    /// or `NAME_KIND.png`. It need not be there; `None` for a name that leads elsewhere.
    pub fn picture(&self, name: &str, kind: &str) -> Option<PathBuf> {
        let file = match kind {
            "" => format!("{name}.png"),
            kind => format!("{name}_{kind}.png"),
        };
        let plain = Path::new(&file)
            .file_name()
            .is_some_and(|own| *own == *file);
        plain.then(|| Places::of(&self.path).pictures.join(file))
    }
}

/// What `read` gives, if there is a file; a fault is noted.
fn there<T>(
    path: &Path,
    faults: &mut Vec<String>,
    read: impl FnOnce(&Path) -> Result<T, Error>,
) -> Option<T> {
    if !path.exists() {
        return None;
    }
    read(path)
        .map_err(|error| faults.push(error.to_string()))
        .ok()
}
