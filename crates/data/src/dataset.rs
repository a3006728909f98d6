//! What a data set is.

use crate::{Classes, CropBox, DataError, LabelMap, PartialImage, Picture, PictureFormat};

/// One image with its label map.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Name without extension, unique within the data set.
    pub name: String,
    /// The picture.
    pub image: Picture,
    /// trainIds, or nothing for splits without labels.
    pub label: Option<LabelMap>,
}

/// A [`Sample`] of whose picture only a part may have been read.
#[derive(Clone, Debug)]
pub struct PartialSample {
    /// Name without extension, unique within the data set.
    pub name: String,
    /// The part of the picture.
    pub image: PartialImage,
    /// All trainIds, or nothing for splits without labels.
    pub label: Option<LabelMap>,
}

impl From<Sample> for PartialSample {
    fn from(sample: Sample) -> Self {
        Self {
            name: sample.name,
            image: sample.image.into(),
            label: sample.label,
        }
    }
}

/// A finite, ordered collection of samples that can be read from several threads.
pub trait Dataset: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What sample `index` is read from, such as a file, for messages.
    fn source(&self, index: usize) -> String {
        format!("sample {index}")
    }
    /// What the classes of its label maps are called and shown in; those of Cityscapes unless it says.
    fn classes(&self) -> Classes {
        Classes::cityscapes()
    }
    /// What its pictures hold, and what they are normalised by; RGB and ImageNet's unless it says.
    fn format(&self) -> PictureFormat {
        PictureFormat::default()
    }
    /// The text of the [`Definition`](crate::Definition) that it comes from, if one does.
    fn definition_text(&self) -> Option<&str> {
        None
    }
    /// What whoever trains on it or scores it should know, such as that nearly all pixels are ignored.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    /// Reads sample `index`.
    ///
    /// # Errors
    /// If its files cannot be read or do not fit each other.
    fn get(&self, index: usize) -> Result<Sample, DataError>;

    /// Reads sample `index` for a caller that needs only a part of its picture: `wanted` names it
    /// as soon as the label map is known, and at least that is read. Damage in the rest of the file
    /// may stay unnoticed; `Cityscapes` notices all that a PNG's checksums show. `wanted` is called
    /// once, or never where the sample has no label map.
    ///
    /// # Errors
    /// As [`Self::get`].
    ///
    /// # Panics
    /// If the part leaves the picture.
    fn get_part(
        &self,
        index: usize,
        wanted: &mut dyn FnMut(&LabelMap) -> CropBox,
    ) -> Result<PartialSample, DataError> {
        let sample = self.get(index)?;
        if let Some(label) = &sample.label {
            wanted(label);
        }
        Ok(sample.into())
    }
}
