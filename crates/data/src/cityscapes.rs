//! The Cityscapes folder layout.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use halfseg_files::is_hidden;

use crate::image::PendingImage;
use crate::labels::{CLASSES, IGNORE, MAX_LABEL_ID, label_id, train_id};
use crate::names::unique_names;
use crate::natural::natural_order;
use crate::{
    CropBox, DataError, Dataset, ImageReader, InstanceMap, LabelMap, PartialSample, Sample,
    write_label, write_rgb,
};

const LAYOUT: &str = "leftImg8bit/<split>/<city>/*_leftImg8bit.png|jpg with gtFine/<split>/<city>/*_gtFine_labelIds.png|_labelTrainIds.png";
const IMAGE_NAMES: &str = "<city>/*_leftImg8bit.png or <city>/*_leftImg8bit.jpg";
const IMAGE_ENDINGS: [&str; 3] = ["_leftImg8bit.png", "_leftImg8bit.jpg", "_leftImg8bit.jpeg"];
const LABEL_IDS: &str = "_gtFine_labelIds.png";
const TRAIN_IDS: &str = "_gtFine_labelTrainIds.png";
const INSTANCE_IDS: &str = "_gtFine_instanceIds.png";
/// Label maps that are looked at when a split is opened.
const MAPS: usize = 8;
/// Values of label maps that tell whether they are labelIds or trainIds.
const MANY: usize = 10;
/// Pixels in a hundred that may be ignored before that is strange.
const MOST_IGNORED: u64 = 99;

/// A split of a data set in the Cityscapes folder layout, in the natural order of city and name.
#[derive(Clone, Debug)]
pub struct Cityscapes {
    items: Vec<Item>,
    reader: ImageReader,
    notes: Vec<String>,
}

#[derive(Clone, Debug)]
struct Item {
    /// The file's name without its ending; that of no other sample once the split is listed.
    name: String,
    image: PathBuf,
    label: Option<PathBuf>,
    instances: Option<PathBuf>,
}

/// The visible entries of a folder in natural order, with their names. Names that are not Unicode are
/// refused where they would belong to the data set, and left out elsewhere.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    let paths = halfseg_files::entries(folder).map_err(|e| DataError::io(folder, e))?;
    let mut found = Vec::with_capacity(paths.len());
    for path in paths.into_iter().filter(|path| !is_hidden(path)) {
        let name = path.file_name().unwrap_or_default();
        match name.to_str() {
            Some(name) => found.push((name.to_owned(), path)),
            None => {
                let (name, labels) = (name.to_string_lossy(), [LABEL_IDS, TRAIN_IDS]);
                let known = IMAGE_ENDINGS.iter().chain(&labels);
                if path.is_dir() || known.into_iter().any(|ending| name.ends_with(ending)) {
                    return Err(DataError::Name { path });
                }
            }
        }
    }
    found.sort_by(|a, b| natural_order(&a.0, &b.0));
    Ok(found)
}

fn missing_folder(path: &Path) -> DataError {
    let parent = path.ancestors().find(|folder| folder.is_dir());
    let found = match parent.map(|folder| (folder, entries(folder))) {
        Some((folder, Ok(entries))) if !entries.is_empty() => {
            let names: Vec<_> = entries.into_iter().take(8).map(|(name, _)| name).collect();
            format!("{} in {}", names.join(", "), folder.display())
        }
        Some((folder, _)) => format!("nothing in {}", folder.display()),
        None => "nothing".to_owned(),
    };
    DataError::MissingFolder {
        path: path.to_owned(),
        expected: LAYOUT,
        found,
    }
}

impl Cityscapes {
    /// Lists `split` (`train`, `val`, ...) below `root`. Without the folder `gtFine/<split>` the
    /// samples have no labels, as a split for prediction.
    ///
    /// # Errors
    /// If a folder is missing, the split is empty, two pictures of a city share a name, a picture or
    /// a label map lacks its partner, a name is not Unicode, or the maps of trainIds are masks of 0
    /// and 255.
    pub fn open(root: &Path, split: &str) -> Result<Self, DataError> {
        let images = root.join("leftImg8bit").join(split);
        if !images.is_dir() {
            return Err(missing_folder(&images));
        }
        let labels = root.join("gtFine").join(split);
        let labelled = labels.is_dir();
        let mut items = Vec::new();
        for (city, folder) in entries(&images)? {
            if folder.is_dir() {
                let labels = labelled.then(|| labels.join(&city));
                list_city(&folder, labels.as_deref(), &mut items)?;
            }
        }
        if labelled {
            check_orphans(&labels, &images, &items)?;
        }
        if items.is_empty() {
            return Err(DataError::EmptySplit {
                path: images,
                expected: IMAGE_NAMES,
            });
        }
        let city = |item: &Item| {
            let folder = item.image.parent().and_then(Path::file_name);
            folder.unwrap_or_default().to_string_lossy().into_owned()
        };
        let files: Vec<_> = items
            .iter()
            .map(|item| (city(item), item.name.clone()))
            .collect();
        for (item, name) in items.iter_mut().zip(unique_names(&files)) {
            item.name = name;
        }
        let reader = ImageReader::default();
        let notes = look_at_maps(&items, reader)?;
        Ok(Self {
            items,
            reader,
            notes,
        })
    }

    /// Reads with the limits of `reader` in place of the default ones.
    pub fn with_reader(self, reader: ImageReader) -> Self {
        Self { reader, ..self }
    }

    /// The image files, in order.
    pub fn images(&self) -> impl Iterator<Item = &Path> {
        self.items.iter().map(|item| item.image.as_path())
    }

    /// The label file of sample `index`, where the split has labels.
    ///
    /// # Panics
    /// If `index` is not below the length.
    pub fn label_path(&self, index: usize) -> Option<&Path> {
        self.items[index].label.as_deref()
    }

    /// Whether label maps exist.
    pub fn is_labelled(&self) -> bool {
        self.items.iter().all(|item| item.label.is_some())
    }

    /// Reads the instance ids of sample `index`, where `*_gtFine_instanceIds.png` exists.
    ///
    /// # Errors
    /// If the file cannot be read or differs in size from the label map.
    ///
    /// # Panics
    /// If `index` is not below the length.
    pub fn instances(&self, index: usize) -> Result<Option<InstanceMap>, DataError> {
        let item = &self.items[index];
        let Some(path) = &item.instances else {
            return Ok(None);
        };
        let map = self.reader.instances(path)?;
        let expected = self.reader.size(&item.image)?;
        check_size(item, path, expected, (map.width, map.height))?;
        Ok(Some(map))
    }

    /// The label map of `item` as trainIds, checked against the size of its picture.
    fn label(&self, item: &Item, size: (usize, usize)) -> Result<Option<LabelMap>, DataError> {
        let Some(path) = &item.label else {
            return Ok(None);
        };
        let mut label = self.reader.label(path)?;
        check_size(item, path, size, (label.width, label.height))?;
        to_train_ids(path, &mut label.data)?;
        Ok(Some(label))
    }
}

fn list_city(images: &Path, labels: Option<&Path>, items: &mut Vec<Item>) -> Result<(), DataError> {
    for (file, image) in entries(images)? {
        let name = IMAGE_ENDINGS
            .iter()
            .find_map(|ending| file.strip_suffix(ending));
        let Some(name) = name else {
            continue;
        };
        let previous = items.last().filter(|item: &&Item| item.name == name);
        if let Some(previous) = previous.filter(|item| item.image.parent() == Some(images)) {
            return Err(DataError::DuplicateImage {
                first: previous.image.clone(),
                second: image,
            });
        }
        let partner = |ending: &str| {
            let path = labels?.join(format!("{name}{ending}"));
            path.is_file().then_some(path)
        };
        let label = partner(LABEL_IDS).or_else(|| partner(TRAIN_IDS));
        if let (Some(folder), None) = (labels, &label) {
            return Err(DataError::MissingLabel {
                image,
                expected: folder.join(format!("{name}{LABEL_IDS}")),
            });
        }
        items.push(Item {
            name: name.to_owned(),
            label,
            instances: partner(INSTANCE_IDS),
            image,
        });
    }
    Ok(())
}

/// Refuses label maps that no image of `items` uses.
fn check_orphans(labels: &Path, images: &Path, items: &[Item]) -> Result<(), DataError> {
    let known: BTreeSet<_> = items
        .iter()
        .filter_map(|item| Some((item.image.parent()?.file_name()?, item.name.as_str())))
        .collect();
    for (city, folder) in entries(labels)? {
        if !folder.is_dir() {
            continue;
        }
        for (file, label) in entries(&folder)? {
            let endings = [LABEL_IDS, TRAIN_IDS];
            let Some(name) = endings.iter().find_map(|ending| file.strip_suffix(ending)) else {
                continue;
            };
            if !known.contains(&(city.as_ref(), name)) {
                let expected = images
                    .join(&city)
                    .join(format!("{name}{}", IMAGE_ENDINGS[0]));
                return Err(DataError::MissingImage { label, expected });
            }
        }
    }
    Ok(())
}

/// Looks at a few label maps of a split, and says what is strange about them.
///
/// Maps of trainIds that have two values, 0 and 255, are refused: they are masks of another convention,
/// in which 255 is not left out.
fn look_at_maps(items: &[Item], reader: ImageReader) -> Result<Vec<String>, DataError> {
    let maps: Vec<_> = items
        .iter()
        .filter_map(|item| item.label.as_deref())
        .collect();
    if maps.is_empty() {
        return Ok(Vec::new());
    }
    let count = maps.len().min(MAPS);
    let mut pixels = [0u64; 256];
    let mut ignored = 0;
    for i in 0..count {
        let path = maps[i * maps.len() / count];
        // What cannot be read is an error of its sample.
        let Ok(map) = reader.label(path) else {
            return Ok(Vec::new());
        };
        let mut of_map = [0u64; 256];
        map.data.iter().for_each(|&id| of_map[id as usize] += 1);
        for (id, &found) in of_map.iter().enumerate() {
            let class = match is_train_ids(path) {
                true => Some(id as u8),
                false => train_id(id as u8),
            };
            pixels[id] += found;
            ignored += if class == Some(IGNORE) { found } else { 0 };
        }
    }
    let values = (0..=255u8).filter(|&id| pixels[id as usize] > 0);
    let values: Vec<_> = values.collect();
    let train_ids = maps.iter().filter(|path| is_train_ids(path)).count();
    if maps.len() > 1 && train_ids == maps.len() && values == [0, IGNORE] {
        return Err(DataError::Mask {
            path: maps[0].to_owned(),
            others: count - 1,
        });
    }
    let all = pixels.iter().sum::<u64>().max(1);
    let mut notes = Vec::new();
    let mut note = |what: String| {
        let (first, others) = (maps[0].display(), count - 1);
        notes.push(format!(
            "{first}, and {others} more label maps that were looked at: {what}"
        ));
    };
    let train_ids_are_named = format!("maps of trainIds, and masks, are named *{TRAIN_IDS}");
    if ignored * 100 >= all * MOST_IGNORED {
        let values = values.iter().map(u8::to_string).collect::<Vec<_>>();
        let why = match train_ids == maps.len() {
            true => "255 is left out".to_owned(),
            false => format!(
                "those below 7 are no classes, as *{LABEL_IDS} has them; {train_ids_are_named}"
            ),
        };
        note(format!(
            "{:.1} % of their pixels are ignored in training and scores; of their values ({}), {why}",
            100.0 * ignored as f64 / all as f64,
            values.join(", "),
        ));
    } else if train_ids == 0 && values.len() >= MANY && values.last() < Some(&(CLASSES as u8)) {
        note(format!(
            "they hold {} values, all below {CLASSES}, as trainIds are and labelIds hardly ever; \
             {train_ids_are_named}",
            values.len()
        ));
    }
    Ok(notes)
}

fn is_train_ids(path: &Path) -> bool {
    path.to_string_lossy().ends_with(TRAIN_IDS)
}

fn check_size(
    item: &Item,
    label: &Path,
    expected: (usize, usize),
    found: (usize, usize),
) -> Result<(), DataError> {
    if expected == found {
        return Ok(());
    }
    Err(DataError::SizeMismatch {
        image: item.image.clone(),
        label: label.to_owned(),
        expected,
        found,
    })
}

fn to_train_ids(path: &Path, data: &mut [u8]) -> Result<(), DataError> {
    let (expected, largest, table) = match is_train_ids(path) {
        true => ("trainIds 0 to 18 or 255", CLASSES as u8 - 1, None),
        false => ("labelIds 0 to 33", MAX_LABEL_ID, Some(train_id)),
    };
    let unknown = |v: u8| v > largest && (table.is_some() || v != IGNORE);
    // A plain pass over the map, which compilers vectorise; the search runs only after it.
    if data.iter().fold(false, |bad, &v| bad | unknown(v)) {
        let value = data.iter().copied().find(|&v| unknown(v)).unwrap_or(IGNORE);
        return Err(DataError::UnknownLabel {
            path: path.to_owned(),
            expected,
            value,
            pixels: data.iter().filter(|&&v| v == value).count(),
        });
    }
    if let Some(train_id) = table {
        let table: [u8; 256] = std::array::from_fn(|v| train_id(v as u8).unwrap_or(IGNORE));
        let (blocks, rest) = data.as_chunks_mut::<32>();
        for block in blocks {
            // Most blocks are flat.
            let first = block[0];
            match block.iter().fold(0, |bits, &v| bits | (v ^ first)) {
                0 => *block = [table[first as usize]; 32],
                _ => block.iter_mut().for_each(|v| *v = table[*v as usize]),
            }
        }
        rest.iter_mut().for_each(|v| *v = table[*v as usize]);
    }
    Ok(())
}

impl Dataset for Cityscapes {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn source(&self, index: usize) -> String {
        self.items[index].image.display().to_string()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn get(&self, index: usize) -> Result<Sample, DataError> {
        let item = &self.items[index];
        let image = PendingImage::open(&item.image, self.reader)?;
        let size = image.size();
        Ok(Sample {
            name: item.name.clone(),
            label: self.label(item, size)?,
            image: image.all()?.into(),
        })
    }

    fn get_part(
        &self,
        index: usize,
        wanted: &mut dyn FnMut(&LabelMap) -> CropBox,
    ) -> Result<PartialSample, DataError> {
        let item = &self.items[index];
        let image = PendingImage::open(&item.image, self.reader)?;
        let size = image.size();
        let label = self.label(item, size)?;
        let part = label.as_ref().map_or(CropBox::whole(size), wanted);
        Ok(PartialSample {
            name: item.name.clone(),
            image: image.part(part)?,
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
    let create =
        |folder: &Path| std::fs::create_dir_all(folder).map_err(|e| DataError::io(folder, e));
    create(&images)?;
    for index in 0..dataset.len() {
        let sample = dataset.get(index)?;
        let name = format!("{city}_{index:06}_000000");
        let image = images.join(format!("{name}{}", IMAGE_ENDINGS[0]));
        write_rgb(&image, &dataset.format().shown(&sample.image))?;
        if let Some(mut label) = sample.label {
            create(&labels)?;
            label.data.iter_mut().for_each(|id| *id = label_id(*id));
            write_label(&labels.join(format!("{name}{LABEL_IDS}")), &label)?;
        }
    }
    Ok(())
}
