//! The Cityscapes folder layout.

use std::path::{Path, PathBuf};

use crate::{DataError, Dataset, IGNORE, Sample, label_id, labels, read_image, read_label};
use crate::{write_label, write_rgb};

const LAYOUT: &str = "leftImg8bit/<split>/<city>/*_leftImg8bit.png|jpg with gtFine/<split>/<city>/*_gtFine_labelIds.png|_labelTrainIds.png";
const IMAGE_NAMES: &str = "*_leftImg8bit.png or *_leftImg8bit.jpg";

/// A split of a data set in the Cityscapes folder layout.
#[derive(Clone, Debug)]
pub struct Cityscapes {
    items: Vec<Item>,
}

#[derive(Clone, Debug)]
struct Item {
    name: String,
    image: PathBuf,
    label: Option<PathBuf>,
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = std::fs::read_dir(folder)
        .map_err(|e| DataError::io(folder, e))?
        .map(|entry| {
            entry
                .map(|e| e.path())
                .map_err(|e| DataError::io(folder, e))
        })
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

fn image_stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    ["png", "jpg", "jpeg"].iter().find_map(|extension| {
        Some(
            name.strip_suffix(&format!("_leftImg8bit.{extension}"))?
                .to_owned(),
        )
    })
}

impl Cityscapes {
    /// Lists `split` (`train`, `val`, ...) below `root`. Without the folder `gtFine/<split>` the
    /// samples have no labels.
    ///
    /// # Errors
    /// If a folder is missing, the split is empty, or an image or a label map lacks its partner.
    pub fn open(root: &Path, split: &str) -> Result<Self, DataError> {
        let images = root.join("leftImg8bit").join(split);
        if !images.is_dir() {
            return Err(DataError::MissingFolder {
                path: images,
                expected: LAYOUT,
            });
        }
        let labels = root.join("gtFine").join(split);
        let labelled = labels.is_dir();
        let mut items = Vec::new();
        for city in entries(&images)?.into_iter().filter(|path| path.is_dir()) {
            let Some(city_name) = city.file_name().map(PathBuf::from) else {
                continue;
            };
            for image in entries(&city)? {
                let Some(name) = image_stem(&image) else {
                    continue;
                };
                let label = labelled
                    .then(|| {
                        let folder = labels.join(&city_name);
                        let ids = folder.join(format!("{name}_gtFine_labelIds.png"));
                        let train_ids = folder.join(format!("{name}_gtFine_labelTrainIds.png"));
                        match (ids.is_file(), train_ids.is_file()) {
                            (true, _) => Ok(ids),
                            (_, true) => Ok(train_ids),
                            _ => Err(DataError::MissingLabel {
                                image: image.clone(),
                                expected: ids,
                            }),
                        }
                    })
                    .transpose()?;
                items.push(Item { name, image, label });
            }
        }
        if items.is_empty() {
            return Err(DataError::EmptySplit {
                path: images,
                expected: IMAGE_NAMES,
            });
        }
        if labelled {
            check_orphans(&labels, &images)?;
        }
        Ok(Self { items })
    }

    /// The image files, in order.
    pub fn images(&self) -> impl Iterator<Item = &Path> {
        self.items.iter().map(|item| item.image.as_path())
    }

    /// Whether label maps exist.
    pub fn is_labelled(&self) -> bool {
        self.items.iter().all(|item| item.label.is_some())
    }
}

fn check_orphans(labels: &Path, images: &Path) -> Result<(), DataError> {
    for city in entries(labels)?.into_iter().filter(|path| path.is_dir()) {
        let Some(city_name) = city.file_name().map(PathBuf::from) else {
            continue;
        };
        for label in entries(&city)? {
            let Some(file) = label.file_name().and_then(|n| n.to_str()) else {
                continue;
            };
            let stem = ["_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"]
                .iter()
                .find_map(|suffix| file.strip_suffix(suffix));
            let Some(stem) = stem else { continue };
            let folder = images.join(&city_name);
            let candidates = ["png", "jpg", "jpeg"]
                .map(|extension| folder.join(format!("{stem}_leftImg8bit.{extension}")));
            if !candidates.iter().any(|path| path.is_file()) {
                let [expected, ..] = candidates;
                return Err(DataError::MissingImage { label, expected });
            }
        }
    }
    Ok(())
}

fn to_train_ids(path: &Path, data: &mut [u8]) -> Result<(), DataError> {
    let train_ids = path.to_string_lossy().ends_with("_labelTrainIds.png");
    let mut counts = [0usize; 256];
    for &value in data.iter() {
        counts[value as usize] += 1;
    }
    let known = |value: u8| match train_ids {
        true => (value < labels::CLASSES as u8 || value == IGNORE).then_some(value),
        false => labels::train_id(value),
    };
    for value in 0..=255u8 {
        if counts[value as usize] > 0 && known(value).is_none() {
            return Err(DataError::UnknownLabel {
                path: path.to_owned(),
                expected: if train_ids {
                    "trainIds 0 to 18 or 255"
                } else {
                    "labelIds 0 to 33"
                },
                value,
                pixels: counts[value as usize],
            });
        }
    }
    for value in data.iter_mut() {
        *value = known(*value).unwrap_or(IGNORE);
    }
    Ok(())
}

impl Dataset for Cityscapes {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn get(&self, index: usize) -> Result<Sample, DataError> {
        let item = &self.items[index];
        let image = read_image(&item.image)?;
        let label = match &item.label {
            None => None,
            Some(path) => {
                let mut label = read_label(path)?;
                let (expected, found) = ((image.width, image.height), (label.width, label.height));
                if expected != found {
                    return Err(DataError::SizeMismatch {
                        image: item.image.clone(),
                        label: path.clone(),
                        expected,
                        found,
                    });
                }
                to_train_ids(path, &mut label.data)?;
                Some(label)
            }
        };
        Ok(Sample {
            name: item.name.clone(),
            image,
            label,
        })
    }
}

/// Writes `dataset` below `root` in the Cityscapes layout: PNG images and labelId maps.
///
/// # Errors
/// If a sample cannot be read or a file cannot be written.
pub fn write_cityscapes_layout(
    dataset: &dyn Dataset,
    root: &Path,
    split: &str,
    city: &str,
) -> Result<(), DataError> {
    let images = root.join("leftImg8bit").join(split).join(city);
    let labels = root.join("gtFine").join(split).join(city);
    for folder in [&images, &labels] {
        std::fs::create_dir_all(folder).map_err(|e| DataError::io(folder, e))?;
    }
    for index in 0..dataset.len() {
        let sample = dataset.get(index)?;
        let name = format!("{city}_{index:06}_000000");
        write_rgb(
            &images.join(format!("{name}_leftImg8bit.png")),
            &sample.image,
        )?;
        if let Some(mut label) = sample.label {
            label.data.iter_mut().for_each(|id| *id = label_id(*id));
            write_label(&labels.join(format!("{name}_gtFine_labelIds.png")), &label)?;
        }
    }
    Ok(())
}
