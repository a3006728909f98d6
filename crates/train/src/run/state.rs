//! What a checkpoint holds besides the weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::TensorData;
use halfseg_amp::GradScaler;
use halfseg_files::parse_json;
use halfseg_segmentor::TensorFile;
use safetensors::{Dtype, SafeTensors};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::finite::REMEDY;
use crate::optimizer::unfit_buffer;

/// Key of the metadata that holds everything but tensors, as JSON.
const KEY: &str = "halfseg.state";
/// Raised when an old state cannot be read as a new one.
const FORMAT: u32 = 1;
const EXPECTED: &str = "the training state that halfseg writes beside its weights";

/// Everything of a run at one moment, besides the weights and running statistics.
///
/// The random numbers of an iteration (dropout) and of a sample (augmentation) are drawn from
/// generators that the seed and the position alone determine, so the state of all generators is
/// `seed`, `iteration` and `sample`.
#[derive(Debug)]
pub(crate) struct RunState {
    pub position: Position,
    /// Momentum by module path.
    pub momentum: BTreeMap<String, TensorData>,
}

/// The part of the state that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Position {
    format: u32,
    /// Iterations that were run: the position in the schedule too.
    pub iteration: u64,
    /// Samples that were drawn.
    pub sample: u64,
    /// The seed that all generators derive from.
    pub seed: u64,
    /// The scaler, with its scale and counts.
    pub scaler: serde_json::Value,
    /// Steps skipped in a row up to now.
    pub skipped_in_a_row: u64,
    /// Best mIoU so far, and the iteration that reached it.
    pub best: Option<(f64, u64)>,
    /// Samples of an iteration; earlier versions did not write it, nor what follows.
    #[serde(default)]
    pub batch: Option<usize>,
    /// Samples that are trained on.
    #[serde(default)]
    pub train_images: Option<usize>,
    /// Parameters that have momentum.
    #[serde(default)]
    pub buffers: Option<usize>,
}

impl Position {
    pub fn new(iteration: u64, seed: u64, scaler: &GradScaler) -> Self {
        Self {
            format: FORMAT,
            iteration,
            sample: 0,
            seed,
            scaler: serde_json::to_value(scaler).expect("a scaler is plain numbers"),
            skipped_in_a_row: 0,
            best: None,
            batch: None,
            train_images: None,
            buffers: None,
        }
    }

    /// Samples of an iteration, as far as is known.
    pub fn batch(&self) -> Option<u64> {
        let counted = || self.sample.checked_div(self.iteration);
        self.batch.map(|batch| batch as u64).or_else(counted)
    }
}

impl RunState {
    /// Writes the state to a temporary file that takes the place of `path`.
    pub fn save(self, path: &Path) -> Result<(), Error> {
        let json = serde_json::to_string(&self.position).expect("plain numbers and texts");
        let mut file = TensorFile::new(BTreeMap::from([(KEY.to_owned(), json)]));
        for (name, data) in self.momentum {
            file.push_data(name, data);
        }
        file.write(path).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads what [`save`](Self::save) wrote.
    #[cfg(test)]
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::parse(path, &Self::read(path)?)
    }

    /// The bytes that [`save`](Self::save) wrote.
    pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
        fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })
    }

    /// The state in the bytes of the file at `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let wrong = |found: String| Error::State {
            path: path.to_owned(),
            expected: EXPECTED.into(),
            found,
        };
        let (length, header) =
            SafeTensors::read_metadata(bytes).map_err(|error| wrong(error.to_string()))?;
        let text = &bytes[size_of::<u64>()..][..length];
        parse_json::<IgnoredAny>(text).map_err(|error| wrong(error.to_string()))?;
        let json = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(KEY))
            .ok_or_else(|| wrong(format!("a safetensors file without `{KEY}`")))?;
        let position: Position =
            parse_json(json).map_err(|error| wrong(format!("`{KEY}`: {error}")))?;
        if position.format != FORMAT {
            return Err(wrong(format!(
                "format {} (this is {FORMAT})",
                position.format
            )));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
        let mut momentum = BTreeMap::new();
        for (name, tensor) in tensors.iter() {
            if tensor.dtype() != Dtype::F32 {
                return Err(wrong(format!(
                    "`{name}` of {:?} instead of F32",
                    tensor.dtype()
                )));
            }
            let values: Vec<f32> = tensor
                .data()
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect();
            momentum.insert(
                name.to_owned(),
                TensorData::new(values, tensor.shape().to_vec()),
            );
        }
        if let Some(found) = unfit_buffer(&momentum) {
            return Err(Error::State {
                path: path.to_owned(),
                expected: "buffers of the optimizer with numbers that training leaves there".into(),
                found: format!("{found}: {REMEDY}"),
            });
        }
        Ok(Self { position, momentum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> RunState {
        let mut position = Position::new(7, 3, &GradScaler::fixed(512.0));
        position.best = Some((0.5, 4));
        RunState {
            position,
            momentum: BTreeMap::from([(
                "head.weight".to_owned(),
                TensorData::new(vec![1.0f32, f32::MIN_POSITIVE / 2.0], [1, 2]),
            )]),
        }
    }

    #[test]
    fn a_state_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.state.safetensors");
        let saved = state();
        state().save(&path).unwrap();
        let loaded = RunState::load(&path).unwrap();
        assert_eq!(loaded.position, saved.position);
        assert_eq!(loaded.momentum, saved.momentum);
        let scaler: GradScaler = serde_json::from_value(loaded.position.scaler).unwrap();
        assert_eq!(scaler.current_scale(), 512.0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.state.safetensors");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let error = state().save(&path).unwrap_err();
        assert!(
            matches!(&error, Error::Write { path: named, .. } if *named == path),
            "{error}"
        );
    }

    #[test]
    fn numbers_that_no_step_leaves_are_refused_by_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let load = |name: &str, value: f32| {
            let mut saved = state();
            let data = TensorData::new(vec![1.0, value], [2]);
            saved.momentum.insert(name.to_owned(), data);
            saved.save(&path).unwrap();
            RunState::load(&path)
        };
        for (name, value) in [
            ("neck.weight", f32::NAN),
            ("neck.weight", f32::NEG_INFINITY),
            ("first_moment.neck.weight", f32::INFINITY),
            ("second_moment.neck.weight", -1.0),
            ("steps", -3.0),
            ("steps", 2.5),
        ] {
            let error = load(name, value).unwrap_err().to_string();
            let found = format!("found {value} in `{name}`");
            assert!(
                [&found, "b.safetensors", "last_checkpoint"]
                    .iter()
                    .all(|part| error.contains(part)),
                "{error}"
            );
        }
        for (name, value) in [
            ("neck.weight", -1.0),
            ("first_moment.neck.weight", -1.0),
            ("steps", 3.0),
        ] {
            assert!(load(name, value).is_ok(), "{name} {value}");
        }
    }

    #[test]
    fn other_files_are_refused_with_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        state().save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = RunState::load(&path).unwrap_err().to_string();
            assert!(error.contains("b.safetensors"), "{error}");
        };
        refused(&bytes[..bytes.len() - 1]);
        refused(&bytes[..5]);
        refused(b"not a checkpoint at all");
        let mut other = state();
        other.position.format = 2;
        other.save(&path).unwrap();
        assert!(
            RunState::load(&path)
                .unwrap_err()
                .to_string()
                .contains("format 2")
        );
    }
}
