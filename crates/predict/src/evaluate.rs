//! A data set scored by a trained network.

use halfseg_data::{Dataset, IGNORE, LabelMap, Picture, check_labels};
use halfseg_eval::ConfusionMatrix;

use crate::{PredictError, Predictor};

impl Predictor {
    /// Scores every labelled picture of `dataset`. `progress(done, predicted)` is called after
    /// each with its index, name and class map; when it returns `false`, the matrix so far comes
    /// back.
    ///
    /// # Errors
    /// A picture that cannot be read or that memory cannot hold, labels beyond the network's classes, or
    /// scores that are not finite.
    pub fn evaluate(
        &self,
        dataset: &dyn Dataset,
        mut progress: impl FnMut(Evaluated<'_>) -> Result<bool, PredictError>,
    ) -> Result<ConfusionMatrix, PredictError> {
        let classes = self.model().config().num_classes;
        let mut matrix = ConfusionMatrix::new(classes);
        for index in 0..dataset.len() {
            let sample = dataset.get(index)?;
            if let Some(label) = &sample.label {
                check_labels(&label.data, classes, || {
                    format!("the label map of {}", dataset.source(index))
                })?;
            }
            let predicted = self.predict(&sample.image);
            let predicted = predicted.map_err(|error| error.of(&dataset.source(index)))?;
            let map = predicted.finite(&dataset.source(index))?;
            if let Some(label) = &sample.label {
                matrix.update(&map.data, &label.data, IGNORE)?;
            }
            let evaluated = Evaluated {
                index,
                name: &sample.name,
                image: &sample.image,
                map: &map,
                label: sample.label.as_ref(),
            };
            if !progress(evaluated)? {
                break;
            }
        }
        Ok(matrix)
    }
}

/// One picture that [`Predictor::evaluate`] has been through.
#[derive(Debug)]
pub struct Evaluated<'a> {
    /// Its place in the data set.
    pub index: usize,
    /// Its name.
    pub name: &'a str,
    /// The picture.
    pub image: &'a Picture,
    /// The class of each pixel.
    pub map: &'a LabelMap,
    /// The true classes, where the data set has them.
    pub label: Option<&'a LabelMap>,
}
