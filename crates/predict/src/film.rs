//! Pictures that follow each other.

use burn::tensor::Tensor;
use halfseg_data::PictureRef;
use halfseg_eval::{Prediction, argmax};

use crate::{InvalidConfig, PredictError, Predictor};

/// The pictures of a film or a camera, one after the other, whose classes may be held back from flickering.
///
/// With a smoothing of `s` a pixel's class is the most likely one of a mean over the pictures so far, which each
/// picture moves by `1 - s` towards its own probabilities: `mean = s * mean + (1 - s) * probabilities`. The first
/// picture is its own mean, and so is one of another size than that before, and the one after a picture with scores
/// that are not finite. What moves trails behind by some `s / (1 - s)` pictures. With 0, each picture stands for
/// itself.
///
/// Memory is that of one picture and, with smoothing, of its probabilities once more.
#[derive(Debug)]
pub struct Film<'a> {
    predictor: &'a Predictor,
    smoothing: f64,
    mean: Option<Tensor<4>>,
}

impl Predictor {
    /// Begins a film, with a smoothing from 0 to below 1.
    ///
    /// # Errors
    /// Another smoothing.
    pub fn film(&self, smoothing: f64) -> Result<Film<'_>, InvalidConfig> {
        if !(0.0..1.0).contains(&smoothing) {
            return Err(InvalidConfig {
                key: "smoothing",
                expected: "a number from 0 to below 1".into(),
                found: smoothing.to_string(),
            });
        }
        Ok(Film {
            predictor: self,
            smoothing,
            mean: None,
        })
    }
}

impl Film<'_> {
    /// The most likely class of each pixel of the next picture.
    ///
    /// # Errors
    /// As [`Predictor::predict`].
    pub fn predict<'a>(
        &mut self,
        picture: impl Into<PictureRef<'a>>,
    ) -> Result<Prediction, PredictError> {
        let picture = picture.into();
        if self.smoothing == 0.0 {
            return self.predictor.predict(picture);
        }
        let new = self.predictor.probabilities(picture)?;
        let before = self.mean.take().filter(|mean| mean.dims() == new.dims());
        let mean = match before {
            Some(mean) => mean * self.smoothing + new * (1.0 - self.smoothing),
            None => new,
        };
        let scores = self.predictor.decisive(mean.clone(), true);
        let found = argmax(scores).swap_remove(0);
        self.mean = (found.not_finite == 0).then_some(mean);
        Ok(found)
    }
}
