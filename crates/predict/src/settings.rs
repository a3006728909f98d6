//! What a checkpoint carries about how it is to be run.

use std::path::Path;

use halfseg_amp::Policy;
use halfseg_data::{Classes, PictureFormat};
use halfseg_files::parse_json;
use serde::{Deserialize, Serialize};

use crate::{PredictError, PredictorConfig};

/// How a network is to be run: what [`Predictor::load`](crate::Predictor::load) takes from a checkpoint.
///
/// A checkpoint carries them as JSON in its metadata, under [`KEY`](Self::KEY), so that whoever runs it
/// needs nothing of how it was trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PredictorSettings {
    /// Which operation is computed in which precision.
    pub policy: Policy,
    /// How pictures pass through the network.
    pub config: PredictorConfig,
    /// What pictures hold, and what they are normalised by; RGB and ImageNet's where nothing is said.
    #[serde(skip_serializing_if = "is_default")]
    pub pictures: PictureFormat,
    /// What the network's classes are called and shown in, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
}

fn is_default(pictures: &PictureFormat) -> bool {
    *pictures == PictureFormat::default()
}

impl PredictorSettings {
    /// The key of a checkpoint's metadata.
    pub const KEY: &str = "halfseg.predict";

    /// These settings.
    pub fn new(policy: Policy, config: PredictorConfig) -> Self {
        Self {
            policy,
            config,
            pictures: PictureFormat::default(),
            classes: None,
        }
    }

    /// The same, of a network that takes such pictures.
    pub fn with_pictures(self, pictures: PictureFormat) -> Self {
        Self { pictures, ..self }
    }

    /// The same, of a network with these classes.
    pub fn with_classes(self, classes: Classes) -> Self {
        Self {
            classes: Some(classes),
            ..self
        }
    }

    /// As the metadata of a checkpoint holds them.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("settings are valid JSON")
    }

    /// Those of the checkpoint at `path`; `None` where it says nothing, as files from elsewhere.
    ///
    /// # Errors
    /// A file that cannot be read, and settings that this version does not understand or could not run.
    pub fn read(path: impl AsRef<Path>) -> Result<Option<Self>, PredictError> {
        let path = path.as_ref();
        let metadata = halfseg_segmentor::read_metadata(path)?;
        let Some(text) = metadata.get(Self::KEY) else {
            return Ok(None);
        };
        let wrong = |message: String| PredictError::Settings {
            path: path.to_owned(),
            key: Self::KEY,
            message,
        };
        let settings: Self = parse_json(text).map_err(|error| wrong(error.to_string()))?;
        settings
            .config
            .validate()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Some(settings))
    }
}

/// The classes that the checkpoint at `weights` was trained for, as far as it tells: files of MMSegmentation have
/// them, too.
///
/// # Errors
/// A file that cannot be read.
pub fn known_classes(weights: &Path) -> Result<Option<Classes>, PredictError> {
    let settings = PredictorSettings::read(weights)?;
    if let Some(classes) = settings.and_then(|settings| settings.classes) {
        return Ok(Some(classes));
    }
    let table = halfseg_segmentor::read_classes(weights)?;
    Ok(table.map(|table| {
        let colors = table.palette.into_iter().map(Some);
        let colors = colors.chain(std::iter::repeat(None));
        Classes::new(table.names.into_iter().zip(colors))
    }))
}
