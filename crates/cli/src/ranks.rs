//! Several processes that do one job.

use anyhow::{Context, Result};
use halfseg_devices::{Launched, RankFailure, Ranks};
use halfseg_eval::{BoundaryCounts, CityscapesScorer, ConfusionMatrix};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::Command;
use crate::failure::{Interrupted, chain};
use crate::{interrupt, output};

/// Whether a launcher started this process behind the first of several.
pub fn is_further() -> bool {
    Launched::find().is_some_and(|launched| launched.rank > 0)
}

/// Joins the processes that a launcher has started for a command that several can share. Only the first of them
/// says what is not an error.
pub fn start(command: &Command) -> Result<Ranks> {
    let shares = match command {
        Command::Train(_) | Command::Eval(_) | Command::Predict(_) => true,
        Command::Bench(args) => args.exchange,
        _ => false,
    };
    if !shares {
        return Ok(Ranks::current());
    }
    let ranks = Ranks::start()?;
    if !ranks.is_first() {
        output::silence();
    }
    ranks.check_same("version", env!("HALFSEG_VERSION"))?;
    Ok(ranks)
}

/// `own`, if it is no error in any process; else the error, in all of them.
pub fn together<T>(own: Result<T>) -> Result<T> {
    let (value, bytes) = match own {
        Ok(value) => (Some(value), Ok(Vec::new())),
        Err(error) => (None, Err(error)),
    };
    shared(bytes)?;
    value.context("a failure is returned above")
}

/// What all processes have, in their order, if it is no error in any; else the error, in all of them.
pub fn shared(own: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let ranks = Ranks::current();
    if ranks.size() == 1 {
        return own.map(|own| vec![own]);
    }
    let told = match &own {
        Ok(bytes) => ranks.agree(Ok(bytes)),
        Err(error) => ranks.agree(Err(&chain(error))),
    };
    match (own, told) {
        (Err(own), _) => Err(own),
        (Ok(_), told) => told.map_err(RankFailure::into),
    }
}

/// The same of plain values.
pub fn shared_values<T: Serialize + DeserializeOwned>(own: Result<T>) -> Result<Vec<T>> {
    if Ranks::current().size() == 1 {
        return own.map(|own| vec![own]);
    }
    let own = own.and_then(|own| Ok(serde_json::to_vec(&own)?));
    let all = shared(own)?;
    let all = all.iter().map(|one| Ok(serde_json::from_slice(one)?));
    all.collect()
}

/// Ends the job in all processes if any of them was asked to.
pub fn check_interrupted(why: impl FnOnce() -> String) -> Result<()> {
    match Ranks::current().any(interrupt::requested()) {
        true => Err(Interrupted(why()).into()),
        false => Ok(()),
    }
}

/// Counts that are added up over processes.
pub trait Merge: Serialize + DeserializeOwned {
    /// Adds those of another.
    fn merge(&mut self, other: &Self);
}

impl Merge for ConfusionMatrix {
    fn merge(&mut self, other: &Self) {
        Self::merge(self, other);
    }
}

impl Merge for BoundaryCounts {
    fn merge(&mut self, other: &Self) {
        Self::merge(self, other);
    }
}

impl Merge for CityscapesScorer {
    fn merge(&mut self, other: &Self) {
        Self::merge(self, other);
    }
}

/// The counts of all processes.
pub fn merged<T: Merge>(own: T) -> Result<T> {
    let mut all = shared_values(Ok(own))?.into_iter();
    let mut sum = all.next().context("there is at least one process")?;
    all.for_each(|other| sum.merge(&other));
    Ok(sum)
}
