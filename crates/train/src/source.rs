//! From a recipe to data sets and the pipeline.

use std::path::Path;
use std::sync::Arc;

use halfseg_data::{CLASS_NAMES, CLASSES, Cityscapes, Dataset, Pipeline, Scale, SyntheticStreets};
use halfseg_devices::{Bytes, available_memory};

use crate::{DataSource, Error, Recipe};

/// Between the seeds of generated scenes for training and for evaluation.
const HELD_OUT: u64 = 0x0005_EED0_FACE_0FF5;

/// What a run trains on and is evaluated on.
#[derive(Clone)]
pub struct Splits {
    /// Pictures to train on, all with label maps.
    pub train: Arc<dyn Dataset>,
    /// Pictures to evaluate on, if any.
    pub val: Option<Arc<dyn Dataset>>,
}

impl Splits {
    /// The splits that `recipe` names.
    ///
    /// # Errors
    ///
    /// Those of [`open_split`].
    pub fn open(recipe: &Recipe) -> Result<Self, Error> {
        let train = open_split(recipe, &recipe.data.train_split)?;
        let val = match recipe.data.val_split.as_str() {
            "" => None,
            split => Some(open_split(recipe, split)?),
        };
        Ok(Self { train, val })
    }

    /// What whoever trains on them should know.
    pub(crate) fn notes(&self) -> Vec<String> {
        let splits = [Some(&self.train), self.val.as_ref()];
        splits
            .into_iter()
            .flatten()
            .flat_map(|split| split.notes())
            .collect()
    }
}

/// The labelled split of the recipe's data source. Of generated scenes, `data.train_split` names
/// those for training; every other name gives the held-out ones.
///
/// # Errors
///
/// A folder that is missing, empty, without labels, or with images and labels that do not match.
pub fn open_split(recipe: &Recipe, split: &str) -> Result<Arc<dyn Dataset>, Error> {
    let data = &recipe.data;
    let DataSource::Folder(root) = &data.source else {
        let training = split == data.train_split;
        let (count, seed) = match training {
            true => (data.synthetic_train, data.synthetic_seed),
            false => (data.synthetic_val, data.synthetic_seed ^ HELD_OUT),
        };
        let Scale { width, height } = data.scale;
        // A picture of three bytes a pixel and its label map.
        let needed = Bytes(4 * width as u64 * height as u64);
        if let Some(available) = available_memory().filter(|available| needed > *available) {
            return Err(Error::Value {
                key: "data.scale".into(),
                origin: "this configuration".into(),
                expected: format!("generated scenes that fit into the {available} of memory"),
                found: format!("{}, which takes {needed}", data.scale),
            });
        }
        let streets = SyntheticStreets::new(width, height, count, seed);
        return Ok(Arc::new(streets));
    };
    let root = Path::new(root);
    let dataset = Cityscapes::open(root, split)?;
    if !dataset.is_labelled() {
        return Err(Error::Unlabelled {
            path: root.to_owned(),
            split: split.to_owned(),
        });
    }
    Ok(Arc::new(dataset))
}

/// The training pipeline that a recipe describes.
pub fn pipeline(recipe: &Recipe) -> Pipeline {
    let data = &recipe.data;
    Pipeline {
        scale: data.scale,
        ratio: (data.ratio_min, data.ratio_max),
        crop: data.crop,
        max_category_share: data.category_limit,
        flip: data.flip,
        photometric: data.photometric,
    }
}

/// The names of a network's classes: those of Cityscapes if it has as many, else none, since its
/// classes are others.
pub fn class_names(classes: usize) -> &'static [&'static str] {
    match classes {
        CLASSES => &CLASS_NAMES,
        _ => &[],
    }
}
