//! Several pictures at once.

use burn::tensor::{Tensor, TensorData};
use halfseg_amp::autocast;
use halfseg_data::{Bands, Picture, PictureRef, RgbImage};
use halfseg_eval::{Prediction, argmax};

use crate::{EvalMode, PredictError, Predictor};

impl Predictor {
    /// The most likely class of each pixel of several pictures, in their order: at once where they have one size, pass
    /// through the network whole and as they are, and fit into memory together, else one after the other.
    ///
    /// # Errors
    /// As [`predict`](Self::predict), of the first picture that has one.
    pub fn predict_all(
        &self,
        pictures: &[PictureRef<'_>],
    ) -> Result<Vec<Prediction>, PredictError> {
        let sizes = pictures.iter().map(|picture| self.picture_size(*picture));
        let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
        let Some(&(width, height)) = sizes.first() else {
            return Ok(Vec::new());
        };
        let plan = self.plan(false);
        let config = self.config();
        let at_once = sizes.iter().all(|size| *size == (width, height))
            && sizes.len() > 1
            && config.mode == EvalMode::Whole
            && !config.ms_flip
            && crate::memory::fitted(config, (width, height)) == (width, height)
            && plan.fits((width, height), sizes.len());
        if !at_once {
            return pictures
                .iter()
                .map(|picture| self.predict(*picture))
                .collect();
        }
        let format = self.pictures();
        let mut values = Vec::with_capacity(sizes.len() * format.channels() * width * height);
        for picture in pictures {
            values.extend(format.normalize(*picture));
        }
        let shape = [sizes.len(), format.channels(), height, width];
        let values = Tensor::<4>::from_data(TensorData::new(values, shape), self.device());
        let logits = autocast(self.policy(), || self.model().forward(values));
        Ok(argmax(self.decisive(self.of_classes(logits), false)))
    }

    /// Segments a grey picture of `width` and `height` in pixels, so that the first picture of this size does not wait
    /// for what is made once: weights packed for the processor, kernels compiled for a GPU, buffers.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    pub fn warm_up(&self, width: usize, height: usize) -> Result<(), PredictError> {
        let format = self.pictures();
        // Before memory is taken for the picture.
        self.plan(false).check((width, height))?;
        let picture: Picture = match format.is_rgb() {
            true => RgbImage::filled(width, height, [128; 3]).into(),
            false => Picture::Bands(Bands {
                width,
                height,
                channels: format.channels(),
                data: vec![0; width * height * format.channels()],
            }),
        };
        self.predict(&picture).map(drop)
    }
}
