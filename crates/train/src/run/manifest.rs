//! What a run's manifest, `run.json`, holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use halfseg_eval::{BoundaryCounts, ConfusionMatrix, Scores};
use serde::{Deserialize, Serialize};

use super::log::LogLine;
use crate::Error;
use crate::atomic::{read_json, write_text};

/// Raised when an old manifest cannot be read as a new one.
const FORMAT: u32 = 1;

/// Which run a folder is that of, and what is known at each of its checkpoints.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    /// Tells runs apart.
    run: String,
    /// Seconds since 1970.
    begun: u64,
    /// Names of the run's files besides checkpoints.
    files: BTreeSet<String>,
    /// By iteration.
    pub checkpoints: BTreeMap<u64, Mark>,
}

/// What is known at a checkpoint besides weights and optimizer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Bytes of the log that belong to iterations up to this one.
    pub log_bytes: u64,
    /// Sums of the iterations since the last line of the log.
    pub line: LogLine,
    /// The best score so far.
    pub best: Option<Best>,
    /// The last evaluation.
    pub evaluated: Option<Evaluation>,
    /// Whether everything of the run is done.
    pub finished: bool,
    /// Whether the checkpoint has averages of the weights, too.
    #[serde(default)]
    pub averaged: bool,
}

/// The best score of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub miou: f64,
    /// What was compared, where that was another score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    pub iteration: u64,
    /// What was scored, and how; unknown of runs that earlier versions began.
    pub of: Option<String>,
}

impl Best {
    /// What a better evaluation exceeds.
    pub fn score(&self) -> f64 {
        self.score.unwrap_or(self.miou)
    }
}

/// A whole evaluation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    pub iteration: u64,
    /// What was scored, and how.
    pub of: String,
    /// Unknown of runs that earlier versions wrote.
    pub matrix: Option<ConfusionMatrix>,
    /// Where outlines were scored, too.
    #[serde(default)]
    pub boundary: Option<BoundaryCounts>,
}

impl Evaluation {
    /// The scores, where they are known.
    pub fn scores(&self) -> Option<Scores> {
        let matrix = self.matrix.as_ref()?;
        Some(scores_of(matrix, self.boundary.as_ref()))
    }
}

/// The scores that follow from counts, of outlines where these were counted.
pub fn scores_of(matrix: &ConfusionMatrix, boundary: Option<&BoundaryCounts>) -> Scores {
    let mut scores = matrix.scores();
    if let Some(boundary) = boundary {
        boundary.add_to(&mut scores);
    }
    scores
}

impl Manifest {
    /// That of a new run, which has no checkpoints and these `files`.
    pub fn new<'a>(files: impl IntoIterator<Item = &'a str>) -> Self {
        let now = SystemTime::now();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            format: FORMAT,
            run: format!("{:x}-{:x}", now.as_nanos(), std::process::id()),
            begun: now.as_secs(),
            files: files.into_iter().map(str::to_owned).collect(),
            checkpoints: BTreeMap::new(),
        }
    }

    /// That at `path`; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let expected = "the list of a run's files that halfseg writes";
        let Some(manifest) = read_json::<Self>(path, expected)? else {
            return Ok(None);
        };
        if manifest.format != FORMAT {
            let found = format!("format {} (this is {FORMAT})", manifest.format);
            return Err(Error::state(path, expected, found));
        }
        Ok(Some(manifest))
    }

    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let json = serde_json::to_string(self).expect("names and numbers are JSON");
        write_text(path, &(json + "\n"))
    }
}
