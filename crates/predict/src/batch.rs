//! Several pictures at once.

use halfseg_data::{Bands, Picture, PictureRef, RgbImage};
use halfseg_eval::Prediction;

use crate::{PredictError, Predictor};

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
        let at_once = sizes.iter().all(|size| *size == (width, height))
            && sizes.len() > 1
            && plan.decides_at_once((width, height))
            && plan.fits((width, height), sizes.len());
        if !at_once {
            return pictures
                .iter()
                .map(|picture| self.predict(*picture))
                .collect();
        }
        Ok(self.classes_of_batch(self.batch(pictures, (width, height))))
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
