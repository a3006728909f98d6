//! What is served.

use std::sync::Arc;

use halfseg_data::{Classes, PictureFormat, PictureRef};
use halfseg_eval::Prediction;
use halfseg_predict::{PredictError, Predictor};

use crate::ServerError;

/// What segments pictures: a [`Predictor`], or what stands for one in a test.
pub trait Network: Send + Sync + 'static {
    /// The classes of pictures of one size, in their order.
    ///
    /// # Errors
    /// When they cannot be segmented.
    fn predict(&self, pictures: &[PictureRef<'_>]) -> Result<Vec<Prediction>, PredictError>;

    /// Segments a grey picture of this width and height.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    fn warm_up(&self, width: usize, height: usize) -> Result<(), PredictError>;
}

impl Network for Predictor {
    fn predict(&self, pictures: &[PictureRef<'_>]) -> Result<Vec<Prediction>, PredictError> {
        self.predict_all(pictures)
    }

    fn warm_up(&self, width: usize, height: usize) -> Result<(), PredictError> {
        Predictor::warm_up(self, width, height)
    }
}

/// A network that requests name, in one or several precisions.
#[derive(Clone)]
pub struct Model {
    pub(crate) name: String,
    pub(crate) classes: Classes,
    pub(crate) pictures: PictureFormat,
    /// The first is that of requests that name none.
    pub(crate) precisions: Vec<(String, Arc<dyn Network>)>,
}

impl Model {
    /// A network whose requests name no precision, or `precision`, and are segmented by `predictor`.
    pub fn new(name: &str, precision: &str, predictor: Predictor) -> Self {
        let (classes, pictures) = (predictor.classes(), predictor.pictures().clone());
        Self::of(name, precision, predictor, classes, pictures)
    }

    /// The same of any [`Network`].
    pub fn of(
        name: &str,
        precision: &str,
        network: impl Network,
        classes: Classes,
        pictures: PictureFormat,
    ) -> Self {
        Self {
            name: name.to_owned(),
            classes,
            pictures,
            precisions: vec![(precision.to_owned(), Arc::new(network))],
        }
    }

    /// The same with a further precision that requests may name.
    pub fn with_precision(mut self, precision: &str, network: impl Network) -> Self {
        self.precisions
            .push((precision.to_owned(), Arc::new(network)));
        self
    }

    /// The names of its precisions.
    pub(crate) fn precision_names(&self) -> Vec<String> {
        self.precisions
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Bytes of a pixel of its pictures in memory.
    pub(crate) fn pixel_bytes(&self) -> u64 {
        match self.pictures.is_rgb() {
            true => 3,
            false => 2 * self.pictures.channels() as u64,
        }
    }
}

/// Refuses networks that requests could not tell apart.
pub(crate) fn check(models: &[Model]) -> Result<(), ServerError> {
    let wrong = |expected, found: String| Err(ServerError::Models { expected, found });
    if models.is_empty() {
        return wrong("at least one", "none".into());
    }
    for (place, model) in models.iter().enumerate() {
        if models[..place].iter().any(|other| other.name == model.name) {
            return wrong("names that differ", format!("`{}` twice", model.name));
        }
        let names = model.precision_names();
        for (place, name) in names.iter().enumerate() {
            if names[..place].contains(name) {
                let found = format!("`{name}` twice for `{}`", model.name);
                return wrong("precisions that differ", found);
            }
        }
    }
    Ok(())
}
