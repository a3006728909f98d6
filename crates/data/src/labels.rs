//! The official Cityscapes tables.

use crate::DataError;

/// One row of the official table of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name.
    pub name: &'static str,
    /// The id in `*_labelIds.png`; -1, the licence plate, occurs in no file.
    pub id: i16,
    /// The id that networks learn, 255 where it is ignored. (The official table gives the licence
    /// plate -1, which is 255 in a byte.)
    pub train_id: u8,
    /// Category.
    pub category: &'static str,
    /// Number of the category: 0 is void, 1 to 7 are [`CATEGORIES`].
    pub category_id: u8,
    /// Whether single objects are told apart.
    pub has_instances: bool,
    /// Whether the official scorer leaves pixels of this label out.
    pub ignore_in_eval: bool,
    /// Colour, RGB.
    pub color: [u8; 3],
}

/// The trainId that losses and scores leave out.
pub const IGNORE: u8 = 255;

/// Number of classes that are learnt and scored.
pub const CLASSES: usize = 19;

/// The categories that are scored.
pub const CATEGORIES: [&str; 7] = [
    "flat",
    "construction",
    "object",
    "nature",
    "sky",
    "human",
    "vehicle",
];

/// The columns that the table spells out; the others follow from them.
const fn row(
    name: &'static str,
    id: i16,
    train_id: u8,
    category_id: u8,
    has_instances: bool,
    color: [u8; 3],
) -> Label {
    Label {
        name,
        id,
        train_id,
        category: match category_id {
            0 => "void",
            i => CATEGORIES[i as usize - 1],
        },
        category_id,
        has_instances,
        ignore_in_eval: train_id == IGNORE,
        color,
    }
}

/// The official table (cityscapesScripts `helpers/labels.py`): ids 0 to 33 in order, then -1.
pub const LABELS: [Label; 35] = [
    row("unlabeled", 0, 255, 0, false, [0, 0, 0]),
    row("ego vehicle", 1, 255, 0, false, [0, 0, 0]),
    row("rectification border", 2, 255, 0, false, [0, 0, 0]),
    row("out of roi", 3, 255, 0, false, [0, 0, 0]),
    row("static", 4, 255, 0, false, [0, 0, 0]),
    row("dynamic", 5, 255, 0, false, [111, 74, 0]),
    row("ground", 6, 255, 0, false, [81, 0, 81]),
    row("road", 7, 0, 1, false, [128, 64, 128]),
    row("sidewalk", 8, 1, 1, false, [244, 35, 232]),
    row("parking", 9, 255, 1, false, [250, 170, 160]),
    row("rail track", 10, 255, 1, false, [230, 150, 140]),
    row("building", 11, 2, 2, false, [70, 70, 70]),
    row("wall", 12, 3, 2, false, [102, 102, 156]),
    row("fence", 13, 4, 2, false, [190, 153, 153]),
    row("guard rail", 14, 255, 2, false, [180, 165, 180]),
    row("bridge", 15, 255, 2, false, [150, 100, 100]),
    row("tunnel", 16, 255, 2, false, [150, 120, 90]),
    row("pole", 17, 5, 3, false, [153, 153, 153]),
    row("polegroup", 18, 255, 3, false, [153, 153, 153]),
    row("traffic light", 19, 6, 3, false, [250, 170, 30]),
    row("traffic sign", 20, 7, 3, false, [220, 220, 0]),
    row("vegetation", 21, 8, 4, false, [107, 142, 35]),
    row("terrain", 22, 9, 4, false, [152, 251, 152]),
    row("sky", 23, 10, 5, false, [70, 130, 180]),
    row("person", 24, 11, 6, true, [220, 20, 60]),
    row("rider", 25, 12, 6, true, [255, 0, 0]),
    row("car", 26, 13, 7, true, [0, 0, 142]),
    row("truck", 27, 14, 7, true, [0, 0, 70]),
    row("bus", 28, 15, 7, true, [0, 60, 100]),
    row("caravan", 29, 255, 7, true, [0, 0, 90]),
    row("trailer", 30, 255, 7, true, [0, 0, 110]),
    row("train", 31, 16, 7, true, [0, 80, 100]),
    row("motorcycle", 32, 17, 7, true, [0, 0, 230]),
    row("bicycle", 33, 18, 7, true, [119, 11, 32]),
    row("license plate", -1, 255, 7, false, [0, 0, 142]),
];

/// Colours of the trainIds, RGB.
pub const PALETTE: [[u8; 3]; CLASSES] = {
    let mut palette = [[0; 3]; CLASSES];
    let mut i = 0;
    while i < LABELS.len() {
        if LABELS[i].train_id != IGNORE {
            palette[LABELS[i].train_id as usize] = LABELS[i].color;
        }
        i += 1;
    }
    palette
};

/// The highest labelId that a file may hold.
pub(crate) const MAX_LABEL_ID: u8 = 33;

/// The trainId of a labelId, or nothing where the table lacks it.
pub fn train_id(label_id: u8) -> Option<u8> {
    (label_id <= MAX_LABEL_ID).then(|| LABELS[label_id as usize].train_id)
}

/// The labelId of a trainId; 0 (unlabeled) for any other value.
pub fn label_id(train_id: u8) -> u8 {
    LABELS[..=MAX_LABEL_ID as usize]
        .iter()
        .find(|label| label.train_id == train_id && train_id != IGNORE)
        .map_or(0, |label| label.id as u8)
}

/// Names of the classes, by trainId.
pub const CLASS_NAMES: [&str; CLASSES] = {
    let mut names = [""; CLASSES];
    let mut i = 0;
    while i < LABELS.len() {
        if LABELS[i].train_id != IGNORE {
            names[LABELS[i].train_id as usize] = LABELS[i].name;
        }
        i += 1;
    }
    names
};

/// Refuses trainIds that are neither below `classes` nor [`IGNORE`]; some devices would crash on
/// them. `name` says whose they are.
///
/// # Errors
/// [`DataError::LabelOutOfRange`] with the largest such value and the pixels of all of them.
pub fn check_labels(
    labels: &[u8],
    classes: usize,
    name: impl Fn() -> String,
) -> Result<(), DataError> {
    let wrong = labels
        .iter()
        .filter(|&&id| id != IGNORE && usize::from(id) >= classes);
    let (pixels, value) = wrong.fold((0, 0), |(n, max), &id| (n + 1, id.max(max)));
    if pixels > 0 {
        return Err(DataError::LabelOutOfRange {
            name: name(),
            expected: classes,
            value,
            pixels,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_positions_and_every_class_has_one_label() {
        for (i, label) in LABELS[..34].iter().enumerate() {
            assert_eq!(label.id as usize, i);
        }
        for class in 0..CLASSES as u8 {
            assert_eq!(train_id(label_id(class)), Some(class));
        }
        assert_eq!(train_id(34), None);
        assert_eq!(label_id(IGNORE), 0);
        assert_eq!(PALETTE[0], [128, 64, 128]);
        assert_eq!(CLASS_NAMES[18], "bicycle");
    }

    #[test]
    fn the_licence_plate_is_a_vehicle_that_no_one_learns() {
        let plate = LABELS[34];
        assert_eq!(
            (plate.id, plate.train_id, plate.category),
            (-1, IGNORE, "vehicle")
        );
        assert!(plate.ignore_in_eval && !plate.has_instances);
    }

    #[test]
    fn categories_instances_and_ignored_labels_are_counted_as_in_the_official_table() {
        let per_category: Vec<usize> = (0..8)
            .map(|c| LABELS.iter().filter(|label| label.category_id == c).count())
            .collect();
        assert_eq!(per_category, [7, 4, 6, 4, 2, 1, 2, 9]);
        assert_eq!(
            LABELS.iter().filter(|label| label.has_instances).count(),
            10
        );
        assert_eq!(
            LABELS.iter().filter(|label| !label.ignore_in_eval).count(),
            CLASSES
        );
    }
}
