//! A trained network applied to pictures of any size.

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use halfseg_amp::{Policy, autocast};
use halfseg_data::{
    CropBox, Dataset, IGNORE, LabelMap, RgbImage, check_labels, flip, normalize, ratio_size,
    resize_bilinear, scaled_size,
};
use halfseg_eval::{ConfusionMatrix, Prediction, argmax, multi_scale_flip, slide};
use halfseg_layers::{most_likely_classes, resize_with};
use halfseg_segmentor::Segmentor;

use crate::{Error, EvalMode, EvalRecipe, EvalScale, RunPrecision};

/// Ratios of the multi-scale views, each also mirrored
/// (`configs/_base_/datasets/cityscapes.py` of MMSegmentation).
const RATIOS: [f64; 6] = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75];

/// A network for inference, with the precision and the way that pictures pass through it.
///
/// Memory is that of one picture, however many are given.
#[derive(Debug)]
pub struct Predictor {
    model: Segmentor,
    policy: Policy,
    eval: EvalRecipe,
    device: Device,
}

impl Predictor {
    /// Uses `model` (of an autodiff device or not) on `device`, where its weights are.
    pub fn new(
        model: &Segmentor,
        precision: RunPrecision,
        eval: EvalRecipe,
        device: &Device,
    ) -> Self {
        Self {
            model: model.valid(),
            policy: precision.policy(),
            eval,
            device: device.clone(),
        }
    }

    /// Casts as `policy` says in place of the plain policy of the precision. Precisions of modules
    /// that the network lacks have no effect; see [`bound_policy`](crate::bound_policy).
    pub fn with_policy(mut self, mut policy: Policy) -> Self {
        let _ = policy.bind(&self.model);
        self.policy = policy;
        self
    }

    /// Class scores at the picture's size: logits, or mean probabilities for `ms_flip`;
    /// f32 `[1, classes, height, width]`.
    ///
    /// The picture is resized as 8-bit values, the logits bilinearly as f32, first by the network
    /// to its input's size, then to the picture's own, as the peer does.
    pub fn scores(&self, image: &RgbImage) -> Tensor<4> {
        let own = (image.width, image.height);
        let fitted = match self.eval.scale {
            EvalScale::Own => own,
            EvalScale::Fit(scale) => scaled_size(own, (scale.width, scale.height)),
        };
        if !self.eval.ms_flip {
            return self.view(image, fitted, false);
        }
        let at = |ratio: f64, mirror: bool| self.view(image, ratio_size(fitted, ratio), mirror);
        multi_scale_flip(&at, &RATIOS, &[false, true])
    }

    /// The most likely class of each pixel.
    pub fn predict(&self, image: &RgbImage) -> Prediction {
        argmax(self.scores(image)).swap_remove(0)
    }

    /// The most likely class of each pixel of a batch that is normalised already: `[n, 3, h, w]` on
    /// the network's device -> `n` maps of `h * w` classes.
    ///
    /// The whole of inference but for reading pictures: network, logits at the input's size, argmax.
    /// On GPUs the last two are one kernel, and only class maps come back to the host.
    pub fn segment(&self, images: Tensor<4>) -> Vec<Vec<u8>> {
        let [_, _, h, w] = images.dims();
        let logits = autocast(&self.policy, || self.model.head_logits(images));
        let align_corners = self.model.config().align_corners;
        match most_likely_classes(&logits, [h, w], align_corners) {
            Some(maps) => {
                let data = maps.into_data().convert::<u8>();
                let classes = data.as_slice::<u8>().expect("converted to u8 above");
                classes.chunks_exact(h * w).map(<[u8]>::to_vec).collect()
            }
            None => {
                let scores = autocast(&self.policy, || {
                    resize_with(logits.cast(FloatDType::F32), [h, w], align_corners)
                });
                argmax(scores).into_iter().map(|one| one.map.data).collect()
            }
        }
    }

    /// Scores every labelled picture of `dataset`. `progress(done, predicted)` is called after
    /// each with its index, name and class map; when it returns `false`, the matrix so far comes
    /// back.
    ///
    /// # Errors
    ///
    /// A picture that cannot be read, labels beyond the network's classes, or scores that are not
    /// finite.
    pub fn evaluate(
        &self,
        dataset: &dyn Dataset,
        mut progress: impl FnMut(Evaluated<'_>) -> Result<bool, Error>,
    ) -> Result<ConfusionMatrix, Error> {
        let classes = self.model.config().num_classes;
        let mut matrix = ConfusionMatrix::new(classes);
        for index in 0..dataset.len() {
            let sample = dataset.get(index)?;
            if let Some(label) = &sample.label {
                check_labels(&label.data, classes, || sample.name.clone())?;
            }
            let map = self.predict(&sample.image).finite(&sample.name)?;
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

    fn network(&self, x: Tensor<4>) -> Tensor<4> {
        autocast(&self.policy, || self.model.forward(x))
    }

    /// Logits of the picture resized to `size` (width, height) and mirrored or not, at the
    /// picture's size.
    fn view(&self, image: &RgbImage, size: (usize, usize), mirror: bool) -> Tensor<4> {
        let own = (image.width, image.height);
        let all = CropBox {
            left: 0,
            top: 0,
            width: size.0,
            height: size.1,
        };
        let mut input = (size != own || mirror).then(|| resize_bilinear(image, size, all));
        if let Some(input) = input.as_mut().filter(|_| mirror) {
            flip(input);
        }
        let values = normalize(input.as_ref().unwrap_or(image));
        let values = TensorData::new(values, [1, 3, size.1, size.0]);
        let values = Tensor::<4>::from_data(values, &self.device);
        let network = |x| self.network(x);
        let logits = match self.eval.mode {
            EvalMode::Whole => network(values),
            EvalMode::Slide => {
                let (crop, stride) = (self.eval.slide_crop, self.eval.slide_stride);
                let (crop, stride) = ([crop.height, crop.width], [stride.height, stride.width]);
                slide(&network, values, crop, stride)
            }
        };
        if size == own {
            return logits;
        }
        let align_corners = self.model.config().align_corners;
        resize_with(logits, [own.1, own.0], align_corners)
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
    pub image: &'a RgbImage,
    /// The class of each pixel.
    pub map: &'a LabelMap,
    /// The true classes, where the data set has them.
    pub label: Option<&'a LabelMap>,
}
