//! From a recipe to data sets and the pipeline.

use std::path::Path;
use std::sync::Arc;

use halfseg_data::{
    Cityscapes, Classes, Dataset, DefinedData, Definition, Pipeline, Scale, SyntheticStreets,
};
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
    /// Those of [`open_split`], and, of a data set that a file defines, all errors that
    /// [`DefinedData::open`] finds in both splits together.
    pub fn open(recipe: &Recipe) -> Result<Self, Error> {
        if let DataSource::Definition(path) = &recipe.data.source {
            return Self::defined(recipe, path);
        }
        let train = open_split(recipe, &recipe.data.train_split)?;
        let val = match recipe.data.val_split.as_str() {
            "" => None,
            split => Some(open_split(recipe, split)?),
        };
        Ok(Self { train, val })
    }

    fn defined(recipe: &Recipe, path: &str) -> Result<Self, Error> {
        let definition = definition(recipe, path)?;
        let (train, val) = (&*recipe.data.train_split, &*recipe.data.val_split);
        let mut splits = vec![train];
        splits.extend((!val.is_empty() && val != train).then_some(val));
        let mut opened = DefinedData::open(&definition, &splits, Some(train))?.into_iter();
        let mut next = || {
            opened
                .next()
                .map(|split| Arc::new(split) as Arc<dyn Dataset>)
        };
        let opened_train = next().expect("as many as were asked for");
        let val = match val {
            "" => None,
            same if same == train => Some(opened_train.clone()),
            _ => next(),
        };
        Ok(Self {
            train: opened_train,
            val,
        })
    }

    /// What the classes of a network with so many outputs are called and shown in.
    pub fn classes(&self, count: usize) -> Classes {
        self.train.classes().of_network(count)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<&dyn Dataset> {
        let splits = [Some(&self.train), self.val.as_ref()];
        splits.into_iter().flatten().map(|split| &**split).collect()
    }

    /// What whoever trains on them should know.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.all().iter().flat_map(|split| split.notes()).collect()
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
    if let DataSource::Definition(path) = &data.source {
        let definition = definition(recipe, path)?;
        let opened = DefinedData::open(&definition, &[split], None)?.remove(0);
        opened.require_masks()?;
        return Ok(Arc::new(opened));
    }
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

/// Refuses pictures of other channels than the recipe's network takes.
///
/// # Errors
///
/// [`Error::Value`] of `model.in_channels`.
pub fn check_channels(recipe: &Recipe, data: &dyn Dataset) -> Result<(), Error> {
    let (format, found) = (data.format(), recipe.model.in_channels);
    if format.channels() == found {
        return Ok(());
    }
    Err(Error::Value {
        key: "model.in_channels".into(),
        origin: "this configuration".into(),
        expected: format!(
            "{}, since pictures of {} have {format}",
            format.channels(),
            recipe.data.source
        ),
        found: found.to_string(),
    })
}

/// The training pipeline that a recipe describes, for RGB pictures.
pub fn pipeline(recipe: &Recipe) -> Pipeline {
    let data = &recipe.data;
    Pipeline {
        scale: data.scale,
        ratio: (data.ratio_min, data.ratio_max),
        crop: data.crop,
        max_category_share: data.category_limit,
        flip: data.flip,
        photometric: data.photometric,
        augment: data.augment(),
        ..Pipeline::default()
    }
}

/// The same, for the pictures of `data`.
pub fn pipeline_for(recipe: &Recipe, data: &dyn Dataset) -> Pipeline {
    Pipeline {
        format: data.format(),
        ..pipeline(recipe)
    }
}

/// The definition at `path`, whose classes must be as many as the recipe's network tells apart.
fn definition(recipe: &Recipe, path: &str) -> Result<Arc<Definition>, Error> {
    let definition = Definition::read(Path::new(path))?;
    let (classes, outputs) = (definition.classes(), recipe.model.num_classes);
    if classes.len() != outputs {
        return Err(Error::Classes {
            data: path.to_owned(),
            of: "the network (model.num_classes)".to_owned(),
            expected: Box::new(Classes::cityscapes().of_network(outputs)),
            found: Box::new(classes.clone()),
        });
    }
    Ok(Arc::new(definition))
}

/// Refuses a data set whose classes are not those that the checkpoint at `weights` was trained for, where both
/// are known: the same number in the same order, by their names.
///
/// # Errors
///
/// [`Error::Classes`] with both lists.
pub fn check_classes(
    data: &str,
    found: &Classes,
    weights: &Path,
    trained: &Classes,
) -> Result<(), Error> {
    // As different programs spell them.
    let plain = |name: &str| name.trim().to_lowercase().replace(['_', '-'], " ");
    let [ours, theirs] =
        [found, trained].map(|classes| classes.names().into_iter().map(plain).collect::<Vec<_>>());
    if ours == theirs {
        return Ok(());
    }
    Err(Error::Classes {
        data: data.to_owned(),
        of: weights.display().to_string(),
        expected: Box::new(trained.clone()),
        found: Box::new(found.clone()),
    })
}
