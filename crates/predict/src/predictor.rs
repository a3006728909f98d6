//! A trained network applied to pictures of any size.

use std::ops::Range;
use std::path::Path;

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, FloatDType, Slice, Tensor, TensorData};
use halfseg_amp::{Policy, autocast};
use halfseg_data::{Classes, CropBox, IGNORE, LabelMap, PictureFormat, PictureRef, ratio_size};
use halfseg_devices::Bytes;
use halfseg_eval::{Confidences, Prediction, Windows, argmax, multi_scale_flip};
#[cfg(feature = "flex")]
use halfseg_kernels::PackedWeights;
use halfseg_layers::{all_finite, binary_logits, most_likely_classes, resize_with};
use halfseg_segmentor::Segmentor;

use crate::config::RATIOS;
use crate::memory::{Plan, fitted};
use crate::{EvalMode, PredictError, PredictorConfig, PredictorSettings, known_classes};

/// A network for inference, with the precision and the way that pictures pass through it.
///
/// Memory is that of one picture, however many are given. Several threads may share a predictor, which was
/// tested on the CPU; each call then takes memory of its own. On the CPU weights are kept as its kernels want
/// them, in two to four bytes a value, until the predictor is dropped.
#[derive(Debug)]
pub struct Predictor {
    model: Segmentor,
    settings: PredictorSettings,
    device: Device,
    #[cfg(feature = "flex")]
    _packed: PackedWeights,
}

impl Predictor {
    /// Runs `model` (of an autodiff device or not) on the device where its weights are, each operation
    /// in the precision that `policy` says. One with precisions of single modules must have been
    /// [bound](Policy::bind) to the model: the first picture panics otherwise.
    pub fn new(model: &Segmentor, policy: Policy, config: PredictorConfig) -> Self {
        let model = model.valid();
        let device = model.devices().into_iter().next();
        Self {
            model,
            settings: PredictorSettings::new(policy, config),
            device: device.expect("a network has parameters").inner(),
            #[cfg(feature = "flex")]
            _packed: PackedWeights::keep(),
        }
    }

    /// Loads a network of the four methods on `device` and runs it as the checkpoint says (see
    /// [`PredictorSettings`]); in f32 and with the default configuration where it does not say, as files
    /// of MMSegmentation.
    ///
    /// # Errors
    /// A file that cannot be read or is no whole segmentor, and settings that do not fit it.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, PredictError> {
        let path = path.as_ref();
        let settings = PredictorSettings::read(path)?.unwrap_or_default();
        let (model, _) = halfseg_segmentor::load(path, None, device)?;
        let mut policy = settings.policy;
        // Only training uses an auxiliary head, which the file may lack.
        let unmatched = policy.bind(&model).into_iter().find(|module| {
            model.auxiliary_head.is_some() || !module.path.starts_with("auxiliary_head")
        });
        if let Some(module) = unmatched {
            return Err(PredictError::Settings {
                path: path.to_owned(),
                key: PredictorSettings::KEY,
                message: format!(
                    "a precision for the module `{}`, which the network does not have; the nearest is \
                     `{}`",
                    module.path, module.nearest
                ),
            });
        }
        let (channels, taken) = (settings.pictures.channels(), model.config().in_channels);
        if channels != taken {
            return Err(PredictError::Settings {
                path: path.to_owned(),
                key: PredictorSettings::KEY,
                message: format!(
                    "pictures of {channels} channels for a network that takes {taken}"
                ),
            });
        }
        let mut predictor = Self::new(&model, policy, settings.config);
        predictor.settings.classes = known_classes(path)?;
        Ok(predictor.with_pictures(settings.pictures))
    }

    /// The same for such pictures, in place of RGB that is normalised by ImageNet's mean and standard deviation.
    pub fn with_pictures(self, pictures: PictureFormat) -> Self {
        Self {
            settings: self.settings.with_pictures(pictures),
            ..self
        }
    }

    /// The same whose classes are these, in place of those that the checkpoint names.
    pub fn with_classes(self, classes: Classes) -> Self {
        Self {
            settings: self.settings.with_classes(classes),
            ..self
        }
    }

    /// Names and colours of the classes: those that were given or that the checkpoint names, if they are as many as
    /// the network's, else Cityscapes' where these are as many, else numbered ones.
    pub fn classes(&self) -> Classes {
        let count = self.model.config().num_classes;
        Classes::for_network(self.settings.classes.clone(), count)
    }

    /// The network.
    pub fn model(&self) -> &Segmentor {
        &self.model
    }

    /// Bytes of weights that all predictors of the process keep as the CPU's kernels want them; 0 before the
    /// first picture, and on GPUs.
    pub fn packed_weights() -> u64 {
        #[cfg(feature = "flex")]
        return PackedWeights::bytes() as u64;
        #[cfg(not(feature = "flex"))]
        0
    }

    /// How operations are cast.
    pub fn policy(&self) -> &Policy {
        &self.settings.policy
    }

    /// What pictures hold, and what they are normalised by.
    pub fn pictures(&self) -> &PictureFormat {
        &self.settings.pictures
    }

    /// How pictures pass through the network.
    pub fn config(&self) -> &PredictorConfig {
        &self.settings.config
    }

    /// Class scores at the picture's size: logits, or mean probabilities for `ms_flip`;
    /// f32 `[1, classes, height, width]`. Where a network has one output for two classes, the first's logit is 0.
    ///
    /// The picture is resized in whole numbers of its own depth, the logits bilinearly as f32, first by the network
    /// to its input's size, then to the picture's own, as the peer does.
    ///
    /// # Errors
    /// A picture without pixels, whose values do not fit its size, or of other channels than the network takes, and
    /// one that memory cannot hold.
    pub fn scores<'a>(
        &self,
        picture: impl Into<PictureRef<'a>>,
    ) -> Result<Tensor<4>, PredictError> {
        let picture = picture.into();
        self.plan(true).check(self.picture_size(picture)?)?;
        Ok(self.all_scores(picture))
    }

    fn all_scores(&self, image: PictureRef<'_>) -> Tensor<4> {
        let fitted = fitted(self.config(), image.size());
        if !self.config().ms_flip {
            return self.view(image, fitted, false);
        }
        let at = |ratio: f64, mirror: bool| self.view(image, ratio_size(fitted, ratio), mirror);
        multi_scale_flip(&at, &RATIOS, &[false, true])
    }

    /// The probability of each class at each pixel, f32 `[1, classes, height, width]`.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn probabilities<'a>(
        &self,
        picture: impl Into<PictureRef<'a>>,
    ) -> Result<Tensor<4>, PredictError> {
        let scores = self.scores(picture)?;
        Ok(match self.config().ms_flip {
            true => scores,
            false => softmax(scores, 1),
        })
    }

    /// The most likely class of each pixel.
    ///
    /// As a whole at the picture's own size this makes no scores of all pixels, unless one is not finite; in windows at that
    /// size it takes the memory of as many rows of scores as a window has, else that of the scores of all pixels.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn predict<'a>(
        &self,
        picture: impl Into<PictureRef<'a>>,
    ) -> Result<Prediction, PredictError> {
        self.predict_looking(picture.into(), None)
    }

    /// As [`predict`](Self::predict), with the probabilities of these classes at the pixels of a grid, which cost
    /// next to nothing.
    ///
    /// # Errors
    /// As [`scores`](Self::scores).
    pub fn predict_confident<'a>(
        &self,
        picture: impl Into<PictureRef<'a>>,
    ) -> Result<(Prediction, Confidences), PredictError> {
        let picture = picture.into();
        let (width, height) = self.picture_size(picture)?;
        let mut confidences = Confidences::new(width, height);
        let found = self.predict_looking(picture, Some(&mut confidences))?;
        Ok((found, confidences))
    }

    fn predict_looking(
        &self,
        image: PictureRef<'_>,
        mut confidences: Option<&mut Confidences>,
    ) -> Result<Prediction, PredictError> {
        let own = self.picture_size(image)?;
        let plan = self.plan(false);
        plan.check(own)?;
        if !plan.in_bands(own) {
            if plan.decides_at_once(own) && confidences.is_none() {
                return Ok(self
                    .classes_of_batch(self.batch(&[image], own))
                    .swap_remove(0));
            }
            return Ok(self.decided(self.all_scores(image), 0, confidences));
        }
        let mut found = Prediction {
            map: LabelMap::filled(own.0, own.1, [IGNORE]),
            not_finite: 0,
        };
        let window = |[rows, columns]: [Range<usize>; 2]| self.window(image, rows, columns);
        self.windows(own).for_each_band(&window, |rows, scores| {
            let band = self.decided(scores, rows.start, confidences.as_deref_mut());
            let place = rows.start * own.0..rows.end * own.0;
            found.map.data[place].copy_from_slice(&band.map.data);
            found.not_finite += band.not_finite;
        });
        Ok(found)
    }

    /// The classes of a band of a picture, which begins at its row `first`.
    fn decided(
        &self,
        scores: Tensor<4>,
        first: usize,
        confidences: Option<&mut Confidences>,
    ) -> Prediction {
        let probabilities = self.config().ms_flip;
        let [_, classes, rows, _] = scores.dims();
        let looked = confidences.and_then(|looked| {
            let start = looked.grid_rows(first, rows).next()?;
            // Read before the classes are, which take all scores.
            let grid = |start: usize| Slice::new(start as isize, None, looked.stride() as isize);
            let all = |count: usize| Slice::from(0..count);
            let place = [all(1), all(classes), grid(start), grid(0)];
            let grid = scores.clone().slice(place).into_data();
            Some((looked, grid))
        });
        let found = argmax(self.decisive(scores, probabilities)).swap_remove(0);
        if let Some((looked, grid)) = looked {
            let grid = grid.convert::<f32>();
            let grid = grid.as_slice().expect("converted to f32 above");
            looked.push_band(grid, &found.map, first, probabilities);
        }
        found
    }

    /// Memory of the host that [`predict`](Self::predict) needs at least for a picture of `width` and
    /// `height` in pixels, besides the picture and the network: what is counted is there at the same
    /// time in any case. [`PredictError::Memory`] is returned where less is available.
    pub fn needed_memory(&self, width: usize, height: usize) -> Bytes {
        Bytes(self.plan(false).needed((width, height)))
    }

    pub(crate) fn plan(&self, scores: bool) -> Plan<'_> {
        Plan::new(self.model.config(), &self.settings, &self.device, scores)
    }

    /// The most likely class of each pixel of a batch that is normalised already: `[n, channels, h, w]` on
    /// the network's device -> `n` maps of `h * w` classes.
    ///
    /// The whole of inference but for reading pictures: network, logits at the input's size, argmax. The last two are one
    /// kernel, without the logits of all pixels. Pixels with one that is not finite are [`IGNORE`].
    pub fn segment(&self, images: Tensor<4>) -> Vec<LabelMap> {
        let found = self.classes_of_batch(images).into_iter();
        found.map(|one| one.map).collect()
    }

    /// See [`segment`](Self::segment).
    pub(crate) fn classes_of_batch(&self, images: Tensor<4>) -> Vec<Prediction> {
        let [_, _, height, width] = images.dims();
        let logits = autocast(&self.settings.policy, || self.model.head_logits(images));
        let logits = self.of_classes(logits).cast(FloatDType::F32);
        let logits = self.decisive(logits, false);
        let (size, align_corners) = ([height, width], self.model.config().align_corners);
        // What is between finite logits is finite; what is not reaches the pixels around it, which are counted one by one.
        let is_finite = all_finite(logits.clone());
        let maps = is_finite.then(|| most_likely_classes(&logits, size, align_corners));
        let Some(maps) = maps.flatten() else {
            let scores = autocast(&self.settings.policy, || {
                resize_with(logits, size, align_corners)
            });
            return argmax(scores);
        };
        let data = maps.into_data().convert::<u8>();
        let classes = data.as_slice::<u8>().expect("converted to u8 above");
        let maps = classes.chunks_exact(height * width).map(|map| LabelMap {
            width,
            height,
            data: map.to_vec(),
        });
        let finite = maps.map(|map| Prediction { map, not_finite: 0 });
        finite.collect()
    }

    /// What the network takes of pictures of `size` (width, height), normalised.
    pub(crate) fn batch(
        &self,
        pictures: &[PictureRef<'_>],
        (width, height): (usize, usize),
    ) -> Tensor<4> {
        let format = self.pictures();
        let values = match pictures {
            // Without a copy.
            [picture] => format.normalize(*picture),
            _ => {
                let one = format.channels() * width * height;
                let mut values = Vec::with_capacity(pictures.len() * one);
                for picture in pictures {
                    values.extend(format.normalize(*picture));
                }
                values
            }
        };
        let shape = [pictures.len(), format.channels(), height, width];
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// Width and height of a picture that has pixels, and a value for each channel that the network takes.
    pub(crate) fn picture_size(
        &self,
        picture: PictureRef<'_>,
    ) -> Result<(usize, usize), PredictError> {
        let ((width, height), found) = (picture.size(), picture.channels());
        let expected = self.pictures().channels();
        if found != expected {
            return Err(PredictError::Channels { expected, found });
        }
        let pixels = width.checked_mul(height).unwrap_or(0);
        match pixels > 0 && pixels.checked_mul(found) == Some(picture.values()) {
            true => Ok((width, height)),
            false => Err(PredictError::Picture {
                width,
                height,
                values: picture.values(),
            }),
        }
    }

    /// The windows over a picture of `size` (width, height).
    fn windows(&self, size: (usize, usize)) -> Windows {
        let (crop, stride) = (self.config().slide_crop, self.config().slide_stride);
        Windows {
            size: [size.1, size.0],
            crop: [crop.height, crop.width],
            stride: [stride.height, stride.width],
        }
    }

    /// Logits of some rows and columns of `image`, of which only these are normalised.
    fn window(
        &self,
        image: PictureRef<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Tensor<4> {
        let part = CropBox {
            left: columns.start,
            top: rows.start,
            width: columns.len(),
            height: rows.len(),
        };
        let size = (part.width, part.height);
        let values = match part == CropBox::whole(image.size()) {
            true => self.batch(&[image], size),
            false => self.batch(&[PictureRef::from(&image.cropped(part))], size),
        };
        self.of_classes(autocast(&self.settings.policy, || {
            self.model.forward(values)
        }))
    }

    /// The logits of all classes, of which the network may give one of two.
    pub(crate) fn of_classes(&self, logits: Tensor<4>) -> Tensor<4> {
        match self.model.config().binary {
            true => binary_logits(logits),
            false => logits,
        }
    }

    /// `scores` of which the largest is that of the pixel's class: where the network tells two classes apart by one
    /// output, the second's if it is above the threshold, which probabilities and logits have their own of.
    pub(crate) fn decisive(&self, scores: Tensor<4>, probabilities: bool) -> Tensor<4> {
        let config = self.model.config();
        if !config.binary {
            return scores;
        }
        let threshold = match probabilities {
            true => config.threshold,
            false => config.logit_threshold(),
        };
        let second = scores.narrow(1, 1, 1);
        Tensor::cat(vec![second.full_like(threshold), second], 1)
    }

    /// Logits of the picture resized to `size` (width, height) and mirrored or not, at the
    /// picture's size.
    fn view(&self, image: PictureRef<'_>, size: (usize, usize), mirror: bool) -> Tensor<4> {
        let own = image.size();
        let mut input = (size != own || mirror).then(|| image.resized(size));
        if let Some(input) = input.as_mut().filter(|_| mirror) {
            input.flip();
        }
        let input = input.as_ref().map_or(image, PictureRef::from);
        let window = |[rows, columns]: [Range<usize>; 2]| self.window(input, rows, columns);
        let logits = match self.config().mode {
            EvalMode::Whole => window([0..size.1, 0..size.0]),
            EvalMode::Slide => self.windows(size).logits(&window),
        };
        if size == own {
            return logits;
        }
        let align_corners = self.model.config().align_corners;
        resize_with(logits, [own.1, own.0], align_corners)
    }
}
