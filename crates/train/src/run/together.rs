//! What the processes of a run agree on; see [`Ranks`].

use std::collections::hash_map::DefaultHasher;
use std::error::Error as _;
use std::fs;
use std::hash::{Hash, Hasher};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use halfseg_data::Dataset;
use halfseg_devices::{RankFailure, Ranks};
use halfseg_segmentor::Segmentor;

use super::results::spread;
use crate::{Error, Recipe};

/// Pictures of a split whose pixels are compared.
const LOOKED_AT: usize = 3;

/// `own`, if it is no error in any process; else the error, in all of them.
pub(crate) fn together<T>(ranks: &Ranks, own: Result<T, Error>) -> Result<T, Error> {
    if ranks.size() == 1 {
        return own;
    }
    let text = own.as_ref().err().map(with_causes);
    let told = ranks.agree(text.as_deref().map_or(Ok(&[]), Err));
    match (own, told) {
        (Ok(own), Ok(_)) => Ok(own),
        (Err(own), _) => Err(own),
        (Ok(_), Err(failure)) => Err(failure.into()),
    }
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// What `make` gives, in the first process alone.
pub(crate) fn first<T>(
    ranks: &Ranks,
    make: impl FnOnce() -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    together(ranks, ranks.is_first().then(make).transpose())
}

/// Refuses a batch that the processes cannot share.
pub(crate) fn check_shares(recipe: &Recipe, ranks: &Ranks) -> Result<(), Error> {
    let devices = 1 + recipe.further_devices.len();
    let (batch, accumulate) = (recipe.train.batch, recipe.train.accumulate);
    let parts = ranks.size() * devices * accumulate;
    if batch.is_multiple_of(parts) {
        return Ok(());
    }
    let times = |count: usize, what: &str| match count {
        1 => String::new(),
        _ => format!(", {count} {what}"),
    };
    Err(Error::Value {
        key: "train.batch".into(),
        origin: "a run of several processes".into(),
        expected: format!(
            "a multiple of {parts}, for {} processes{}{}",
            ranks.size(),
            times(devices, "devices each"),
            times(accumulate, "parts one after the other (train.accumulate)"),
        ),
        found: batch.to_string(),
    })
}

/// Refuses processes with another version, configuration or data than the first. All of them call it.
///
/// # Errors
///
/// The first process that differs, with what differs.
pub fn check_same(
    ranks: &Ranks,
    recipe: &Recipe,
    data: &[&dyn Dataset],
) -> Result<(), RankFailure> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let splits = data.iter().map(|split| fingerprint(*split));
    let text = format!(
        "version = {}\n{}{}",
        env!("CARGO_PKG_VERSION"),
        recipe.to_toml(),
        splits.collect::<String>()
    );
    ranks.check_same("version, configuration and data", &text)
}

/// A line that is another for other data: names and sizes of all pictures, and the pixels of some.
fn fingerprint(split: &dyn Dataset) -> String {
    let mut hasher = DefaultHasher::new();
    for index in 0..split.len() {
        let source = split.source(index);
        let size = fs::metadata(&source).map_or(0, |file| file.len());
        (source, size).hash(&mut hasher);
    }
    for index in spread(split.len(), LOOKED_AT) {
        // What cannot be read is told where it is used.
        if let Ok(sample) = split.get(index) {
            sample.image.hash(&mut hasher);
            sample.label.map(|label| label.data).hash(&mut hasher);
        }
    }
    format!(
        "{} pictures, fingerprint {:016x}\n",
        split.len(),
        hasher.finish()
    )
}

/// `model` with the parameters and running statistics of the first process.
pub(crate) fn shared(model: Segmentor, ranks: &Ranks) -> Segmentor {
    struct Sharer(Ranks);
    impl ModuleMapper for Sharer {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| {
                let (device, shape) = (value.device(), value.shape());
                let values = value.into_data().try_into_vec();
                let mut values: Vec<f32> = values.expect("weights are f32");
                self.0.broadcast_values(&mut values);
                Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
            })
        }
    }
    match ranks.size() {
        1 => model,
        _ => model.valid().map(&mut Sharer(ranks.clone())).train(),
    }
}

/// Refuses processes with other parameters or running statistics than the first: files that differ, or
/// processors and libraries that compute differently and drift apart. `what` names the weights. All of them call
/// it.
///
/// # Errors
///
/// The first process that differs.
pub fn check_same_weights(ranks: &Ranks, model: &Segmentor, what: &str) -> Result<(), RankFailure> {
    struct Visitor(DefaultHasher);
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.write(param.val().inner().into_data().as_bytes());
        }
    }
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut visitor = Visitor(DefaultHasher::new());
    model.visit(&mut visitor);
    let found = format!("fingerprint {:016x}", visitor.0.finish());
    ranks.check_same(what, &found)
}

impl From<RankFailure> for Error {
    fn from(failure: RankFailure) -> Self {
        Self::Rank(failure)
    }
}
