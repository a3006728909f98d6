//! A split of a defined data set, to be trained on or scored.

use std::sync::Arc;

use super::Definition;
use super::finding::{Finding, Kind, Severity};
use super::listing::Item;
use super::report::Report;
use super::survey::SurveyOptions;
use crate::image::PendingImage;
use crate::{
    Classes, CropBox, DataError, Dataset, ImageReader, LabelMap, PartialSample, PictureFormat,
    Sample,
};

/// Pictures of each split that are read before training begins.
const LOOKED_AT: usize = 200;

/// A split of a [`Definition`], in the natural order of paths.
#[derive(Clone, Debug)]
pub struct DefinedData {
    definition: Arc<Definition>,
    split: String,
    items: Vec<Item>,
    /// Places in `items`, some of them several times.
    order: Vec<usize>,
    reader: ImageReader,
    format: PictureFormat,
    notes: Vec<String>,
}

impl DefinedData {
    /// Opens some splits of `definition` together, after a look at what would make training fail or its scores
    /// lie: at all names, and at some 200 pairs of each split, spread over it. What is wrong is told in the words
    /// of [`Definition::survey`]; faults of other files are met when these are read. `train` names the split that
    /// is trained on, if one is.
    ///
    /// # Errors
    /// [`DataError::Finding`] for the worst that was found, if it is an error.
    pub fn open(
        definition: &Arc<Definition>,
        splits: &[&str],
        train: Option<&str>,
    ) -> Result<Vec<Self>, DataError> {
        let options = SurveyOptions {
            train,
            most: Some(LOOKED_AT),
            ..SurveyOptions::default()
        };
        let mut listing = definition.list(splits);
        let report = definition.survey_listed(&mut listing, splits, &options);
        let format = definition.format_by(&report);
        let mut notes = Vec::new();
        if train.is_some() && !definition.is_normalized() {
            notes.push(format!(
                "{}: pictures.mean and pictures.std are not given: taken are {:?} and {:?}, of up to {LOOKED_AT} pictures",
                definition.origin(),
                format.mean(),
                format.std()
            ));
        }
        for finding in report.findings {
            match finding.severity {
                Severity::Error => return Err(finding.into()),
                Severity::Warning => notes.push(finding.to_string()),
                Severity::Note => {}
            }
        }
        let opened = splits.iter().enumerate().map(|(place, split)| {
            let items = listing.splits.remove(*split).unwrap_or_default();
            let order = items
                .iter()
                .enumerate()
                .flat_map(|(i, item)| std::iter::repeat_n(i, item.repeat));
            Self {
                definition: definition.clone(),
                split: (*split).to_owned(),
                order: order.collect(),
                items,
                reader: ImageReader::default(),
                format: format.clone(),
                // Of all splits; said once.
                notes: if place == 0 {
                    std::mem::take(&mut notes)
                } else {
                    Vec::new()
                },
            }
        });
        Ok(opened.collect())
    }

    /// The definition that it is a split of.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Whether all pictures have masks.
    pub fn is_labelled(&self) -> bool {
        self.items.iter().all(|item| item.mask.is_some())
    }

    /// Refuses a split without masks.
    ///
    /// # Errors
    /// [`DataError::Finding`].
    pub fn require_masks(&self) -> Result<(), DataError> {
        match self.items.iter().find(|item| item.mask.is_none()) {
            Some(item) => Err(no_masks(&self.split, item).into()),
            None => Ok(()),
        }
    }

    fn item(&self, index: usize) -> &Item {
        &self.items[self.order[index]]
    }
}

/// That a split lacks masks where it needs them.
pub(super) fn no_masks(split: &str, item: &Item) -> Finding {
    let shown = item.image.display();
    let message = format!("{shown}: expected a mask, found that `masks` of its set is not given");
    Finding::new(Kind::NoMasks, shown, message).within(split)
}

impl Definition {
    /// The format of its pictures, with their own mean and standard deviation where none are given.
    fn format_by(&self, report: &Report) -> PictureFormat {
        let (Some(mean), Some(std), false) = (&report.mean, &report.std, self.is_normalized) else {
            return self.format.clone();
        };
        let mean = mean.iter().map(|v| *v as f32).collect();
        // A channel of one value says nothing, whatever it is divided by.
        let std = std.iter().map(|v| if *v > 0.0 { *v as f32 } else { 1.0 });
        let (channels, bits) = (self.format.channels(), self.format.bits());
        let format = PictureFormat::new(channels, bits, mean, std.collect());
        format.expect("pictures were read in the definition's own format")
    }

    /// The picture of `item` before it is decoded, and the classes of its pixels.
    pub(super) fn pair(
        &self,
        item: &Item,
        reader: ImageReader,
    ) -> Result<(PendingImage, Option<LabelMap>), DataError> {
        let image = PendingImage::open_as(&item.image, reader, &self.format);
        let image = image.map_err(|error| item.unreadable(&error))?;
        let Some(path) = &item.mask else {
            return Ok((image, None));
        };
        let mask = self.mask(item, reader, image.size())?;
        Ok((image, Some(self.mapping.map(path, mask)?)))
    }

    /// The mask of `item`, whose picture has `size` (width, height).
    pub(super) fn mask(
        &self,
        item: &Item,
        reader: ImageReader,
        size: (usize, usize),
    ) -> Result<crate::image::mask::Mask, DataError> {
        let path = item.mask.as_ref().expect("callers look for a mask first");
        let mask = reader.mask(path).map_err(|error| {
            let kind = match error {
                DataError::LabelFormat { .. } => Kind::MaskFormat,
                _ => Kind::MaskUnreadable,
            };
            Finding::of_file(kind, path, &error)
        })?;
        let found = (mask.width, mask.height);
        if found != size {
            let why = match found == (size.1, size.0) {
                true => "; the picture is turned, perhaps by the orientation that its camera noted",
                false => "",
            };
            let message = format!(
                "{}: expected {}x{} pixels (width x height) as {} has, found {}x{}{why}",
                path.display(),
                size.0,
                size.1,
                item.image.display(),
                found.0,
                found.1
            );
            return Err(Finding::new(Kind::SizesDiffer, path.display(), message).into());
        }
        Ok(mask)
    }
}

impl Dataset for DefinedData {
    fn len(&self) -> usize {
        self.order.len()
    }

    fn source(&self, index: usize) -> String {
        self.item(index).image.display().to_string()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn format(&self) -> PictureFormat {
        self.format.clone()
    }

    fn definition_text(&self) -> Option<&str> {
        Some(self.definition.text())
    }

    fn classes(&self) -> Classes {
        self.definition.classes().clone()
    }

    fn get(&self, index: usize) -> Result<Sample, DataError> {
        let item = self.item(index);
        let (image, label) = self.definition.pair(item, self.reader)?;
        let image = image.picture(&self.definition.format);
        Ok(Sample {
            name: item.name.clone(),
            image: image.map_err(|error| item.unreadable(&error))?,
            label,
        })
    }

    fn get_part(
        &self,
        index: usize,
        wanted: &mut dyn FnMut(&LabelMap) -> CropBox,
    ) -> Result<PartialSample, DataError> {
        let item = self.item(index);
        let (image, label) = self.definition.pair(item, self.reader)?;
        let part = label.as_ref().map_or(CropBox::whole(image.size()), wanted);
        let image = image.part_as(part, &self.definition.format);
        Ok(PartialSample {
            name: item.name.clone(),
            image: image.map_err(|error| item.unreadable(&error))?,
            label,
        })
    }
}
